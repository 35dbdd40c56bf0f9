"""The TPU VM script, run with a stand-in for gcloud whose TPUs come, go and are taken away."""

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.launch.targets import make_plan
from tests.launch.cases import TPU_VM, job, program

# Answers from `states` (one a call of describe; the last one stays until create or delete), and runs what `ssh`
# is given on two workers that are folders here. The status of each ssh comes from `ssh`.
GCLOUD = f"""#!{sys.executable}
import json, os, subprocess, sys
from pathlib import Path

home = Path(os.environ["FAKE_HOME"])
verb, arguments = sys.argv[4], sys.argv[5:]
plan = json.loads((home / "plan.json").read_text())
shown = [a if not a.startswith("--command=") else "--command" for a in arguments]
with (home / "calls.jsonl").open("a") as log:
    log.write(json.dumps([*sys.argv[1:4], verb, *shown]) + "\\n")
status = 0
if verb == "describe":
    now = plan["states"].pop(0) if len(plan["states"]) > 1 else plan["states"][0]
    (home / "plan.json").write_text(json.dumps(plan))
    if now == "ABSENT":
        sys.exit("ERROR: (gcloud) NOT_FOUND: Resource was not found")
    if now == "UNKNOWN":
        sys.exit("ERROR: the network is down")
    print(now)
elif verb == "ssh":
    command = next(a for a in arguments if a.startswith("--command=")).removeprefix("--command=")
    for worker in "01":
        (home / worker).mkdir(exist_ok=True)
        subprocess.run(["bash", "-c", command], env=os.environ | {{"HOME": str(home / worker)}}, check=True)
    status = plan["ssh"].pop(0)
elif verb == "create":
    status = plan.get("create", 0)
(home / "plan.json").write_text(json.dumps(plan))
sys.exit(status)
"""


@dataclass(frozen=True)
class Ran:
    status: int
    calls: list[list[str]]
    err: str

    @property
    def verbs(self) -> list[str]:
        """What was asked of gcloud, questions aside."""
        return [call[3] for call in self.calls if call[3] != "describe"]


def script(folder: Path, **changes: Any) -> str:
    changes["tpu_vm"] = TPU_VM | changes.pop("tpu_vm", {})
    settings: dict[str, Any] = {"accelerator": "v5e", "nodes": 4, "command": "true"} | changes
    return make_plan(job(folder, "tpu-vm", workdir=str(folder / "work"), **settings), folder).files["train.sh"]


def run(
    folder: Path, text: str, states: list[str], ssh: list[int], env: dict[str, str] | None = None, **plan: int
) -> Ran:
    program(folder / "bin", "gcloud", GCLOUD)
    (folder / "plan.json").write_text(json.dumps({"states": states, "ssh": ssh} | plan))
    variables = (
        os.environ
        | {
            "PATH": f"{folder / 'bin'}{os.pathsep}/usr/bin:/bin",
            "FAKE_HOME": str(folder),
            "HOME": str(folder),
            "LAUNCH_POLL_S": "0",
        }
        | (env or {})
    )
    done = subprocess.run(["bash"], input=text, env=variables, capture_output=True, text=True, timeout=300)
    log = folder / "calls.jsonl"
    calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return Ran(done.returncode, calls, done.stderr)


def test_a_tpu_is_asked_for_used_and_given_back(tmp_path: Path) -> None:
    states = ["ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    ran = run(tmp_path, script(tmp_path, tpu_vm={"spot": True, "network": "net"}), states, [0])
    assert ran.status == 0, ran.err
    assert ran.verbs == ["create", "ssh", "delete"]
    create, ssh, delete = (call for call in ran.calls if call[3] != "describe")
    where = ["tiny", "--project=p", "--zone=z"]
    assert create[:4] == ["compute", "tpus", "queued-resources", "create"]
    assert create[4:] == [
        *where,
        *("--accelerator-type=v5litepod-16", "--node-id=tiny", "--runtime-version=v2-alpha-tpuv5-lite"),
        *("--spot", "--network=net"),
    ]
    assert ssh[4:] == [*where, "--node=all", "--worker=all", "--batch-size=all", "--command"]
    assert delete[4:] == [*where, "--force", "--quiet"]


@pytest.mark.parametrize(
    ("changes", "machine"),
    [
        ({"accelerator": "v4"}, ["--accelerator-type=v4-32", "--node-id=tiny"]),
        ({"accelerator": "v5p", "nodes": 16}, ["--accelerator-type=v5p-128", "--node-id=tiny"]),
        ({"accelerator": "v6e", "nodes": 1, "devices_per_node": 8}, ["--accelerator-type=v6e-8", "--node-id=tiny"]),
        ({"accelerator": "v4", "tpu_vm": {"topology": "2x2x4"}}, ["--type=v4", "--topology=2x2x4", "--node-id=tiny"]),
        (
            {"nodes": 8, "overrides": ["mesh.slices={data: 2}"]},
            ["--accelerator-type=v5litepod-16", "--node-count=2", "--node-prefix=tiny"],
        ),
    ],
)
def test_how_tpus_are_named(changes: dict[str, Any], machine: list[str], tmp_path: Path) -> None:
    ran = run(tmp_path, script(tmp_path, **changes), ["ABSENT", "ACTIVE"], [0])
    create = next(call for call in ran.calls if call[3] == "create")
    assert create[7:-1] == machine


@pytest.mark.parametrize(
    ("states", "ssh", "status", "verbs"),
    [
        # Taken away while training: its request is deleted, and made again; that does not count as a failure.
        (
            ["ACTIVE", "SUSPENDING", "SUSPENDED", "ABSENT", "ACTIVE"],
            [255, 0],
            0,
            ["ssh", "delete", "create", "ssh", "delete"],
        ),
        (["ACTIVE"], [143] * 6 + [0], 0, ["ssh"] * 7 + ["delete"]),
        (["ACTIVE"], [1, 1, 1, 1, 0], 1, ["ssh"] * 4),
        (["FAILED"], [], 1, []),
        (["UNKNOWN", "UNKNOWN", "ACTIVE"], [0], 0, ["ssh", "delete"]),
        (["UNKNOWN"], [], 1, []),
    ],
)
def test_what_is_started_again(
    states: list[str], ssh: list[int], status: int, verbs: list[str], tmp_path: Path
) -> None:
    ran = run(tmp_path, script(tmp_path), states, ssh)
    assert (ran.status, ran.verbs) == (status, verbs), ran.err
    assert ("3 restarts are used up" in ran.err) == (ssh[:4] == [1] * 4)


def test_a_request_that_is_refused_ends_it(tmp_path: Path) -> None:
    ran = run(tmp_path, script(tmp_path), ["ABSENT"], [], create=1)
    assert (ran.status, ran.verbs) == (1, ["create"])


def test_workers_get_settings_variables_and_setup(tmp_path: Path) -> None:
    odd = 'it\'s "$HOME" `x` \\ $(y)'
    said = 'sh -c \'printenv ODD ABI_NUM_PROCESSES > "$HOME/said"; pwd >> "$HOME/said"; echo "$2" >> "$HOME/said"\' sh'
    text = script(tmp_path, env={"ODD": odd}, setup=['echo ready > "$HOME/ready"'], command=said)
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    assert run(tmp_path, text, ["ACTIVE"], [0]).status == 0
    for worker in ("0", "1"):
        home = tmp_path / worker
        settings = home / ".abi-launch" / "tiny" / "train.yaml"
        assert (home / "said").read_text().splitlines() == [odd, "4", str(tmp_path / "work"), str(settings)]
        assert (home / "ready").exists()
        assert settings.read_text() == job(tmp_path, "tpu-vm", accelerator="v5e", nodes=4).train_yaml


def test_what_is_set_on_a_worker_does_not_reach_training(tmp_path: Path) -> None:
    text = script(tmp_path, setup=["export ABI_DATA__LENGTH=9"], command='env > "$HOME/env" #')
    assert run(tmp_path, text, ["ACTIVE"], [0], {"ABI_STEPS": "3", "ABI_PROCESS_ID": "1"}).status == 0
    lines = (tmp_path / "0" / "env").read_text().splitlines()
    assert {n.split("=")[0] for n in lines if n.startswith("ABI_")} == {"ABI_NUM_PROCESSES", "ABI_START_TIMEOUT"}


def test_training_outlives_the_connection_that_started_it(tmp_path: Path) -> None:
    """What it says goes to a file, of which the connection sees what is new."""
    said = "sh -c 'echo one; sleep 1; echo two; sleep 0.5; echo three; exit 7' sh"
    text = script(tmp_path, command=said)
    worker = text.partition("<<'ON_EVERY_WORKER' || true\n")[2].partition("ON_EVERY_WORKER\n")[0]
    env = os.environ | {"HOME": str(tmp_path)}
    log = tmp_path / ".abi-launch" / "tiny" / "log"
    log.parent.mkdir(parents=True)
    log.write_text("from before\n")
    heard = subprocess.run(["bash", "-c", worker], env=env, capture_output=True, text=True, timeout=300)
    assert (heard.returncode, heard.stdout) == (7, "one\ntwo\nthree\n")
    with subprocess.Popen(["bash", "-c", worker], env=env, stdout=subprocess.PIPE, text=True) as lost:
        assert lost.stdout is not None and lost.stdout.readline() == "one\n"
        lost.stdout.close()
        assert lost.wait(timeout=300) == 7
    assert log.read_text() == "from before\n" + "one\ntwo\nthree\n" * 2


def test_two_launches_of_one_tpu_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / ".abi-launch").mkdir()
    with (tmp_path / ".abi-launch" / "tiny.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = run(tmp_path, script(tmp_path), ["ACTIVE"], [0])
        assert (ran.status, ran.calls) == (1, []) and "another launch of it runs on this machine" in ran.err
    assert run(tmp_path, script(tmp_path), ["ACTIVE"], [0]).status == 0


def test_what_an_earlier_connection_left_behind_is_stopped_first(tmp_path: Path) -> None:
    state = tmp_path / "0" / ".abi-launch" / "tiny"
    state.mkdir(parents=True)
    with subprocess.Popen(["bash", "-c", "while true; do sleep 0.1; done", str(state / "train.yaml")]) as left:
        (state / "pid").write_text(str(left.pid))
        ran = run(tmp_path, script(tmp_path, grace_s=1), ["ACTIVE"], [0])
        assert ran.status == 0, ran.err
        assert left.wait(timeout=100) == -15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accelerator": "h100"}, "accelerator = 'h100' for tpu-vm; expected a TPU"),
        ({"tpu_vm": {"zone": ""}}, "tpu_vm.zone is empty; tpu-vm needs it"),
        ({"nodes": 3}, "a slice of 12 v5litepod chips"),
    ],
)
def test_what_is_missing_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        script(tmp_path, **changes)
