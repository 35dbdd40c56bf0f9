"""`abi launch`: what it prints, runs, and leaves behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from abi_jax.config import load
from abi_jax.sharding.local import LocalConfig, launch
from abi_jax.train.config import TrainConfig
from tests.cli.conftest import Abi, abi
from tests.conftest import ROOT
from tests.launch.cases import CPU, IMAGE, TPU_VM, launch_file, losses, program
from tests.train.tiny import listing

__all__ = ["abi"]

TRAIN = f'{sys.executable} -m abi_jax.cli "$@"'
FILES = {"slurm": "train.sbatch", "gke": "jobset.yaml", "tpu-vm": "train.sh", "local": "train.yaml"}
NEEDS = {"slurm": "sbatch", "gke": "kubectl", "tpu-vm": "gcloud"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, where processes that are started find this checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.fixture
def alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`here`, with no program on the path but those in its `bin`: nothing can reach a real cluster."""
    monkeypatch.setenv("PATH", str(here / "bin"))
    return here


def one_file(folder: Path, target: str) -> Path:
    accelerator = "v5e" if target == "tpu-vm" else "h100"
    return launch_file(folder, accelerator=accelerator, nodes=4, gke=IMAGE, tpu_vm=TPU_VM)


@pytest.mark.parametrize("target", FILES)
def test_a_dry_run_prints_everything_and_writes_nothing(target: str, here: Path, abi: Abi) -> None:
    path = one_file(here, target)
    before = listing(here)
    shown = abi("launch", target, path, "--dry-run")
    assert shown.status == 0, shown.err
    said = abi("launch", target, path, "--dry-run", "--json").json
    assert listing(here) == before
    file = str(Path("runs", "launch", "tiny", FILES[target]))
    assert list(said["files"]) == [file]
    assert said["files"][file] in shown.out and shown.out.endswith(f"== would run\n{said['command']}\n")
    assert all(f"ok       {line}\n" in shown.out for line in said["checks"])
    assert all(f"warning  {line}\n" in shown.err for line in said["warnings"])
    assert (said["target"], said["dry_run"]) == (target, True)
    assert said["command"].endswith(file)


def test_a_dry_run_keeps_the_files_where_it_is_told(here: Path, abi: Abi) -> None:
    path = one_file(here, "local")
    assert abi("launch", "local", path, "--dry-run", "--out", "kept", "--train", "steps=9").status == 0
    assert load(TrainConfig, here / "kept" / "train.yaml", env={}).steps == 9


@pytest.mark.parametrize("target", NEEDS)
def test_the_program_of_a_cluster_must_be_there(target: str, alone: Path, abi: Abi) -> None:
    path = one_file(alone, target)
    result = abi("launch", target, path, "--json")
    assert result.status == 2 and not (alone / "runs").exists()
    assert result.json["error"] == f"{NEEDS[target]} is not installed here, and {target} needs it; --dry-run does not"


@pytest.mark.parametrize(("target", "arguments"), [("slurm", ""), ("gke", "apply -f ")])
def test_it_is_submitted(target: str, arguments: str, alone: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch) -> None:
    program(alone / "bin", NEEDS[target], '#!/bin/sh\necho "$@" > called\necho submitted\nexit ${FAKE_STATUS:-0}\n')
    path, file = one_file(alone, target), Path("runs", "launch", "tiny", FILES[target])
    done = abi("launch", target, path)
    assert (done.status, done.out.splitlines()[-1]) == (0, "submitted")
    assert Path("called").read_text() == f"{arguments}{file}\n"
    assert file.read_text() == abi("launch", target, path, "--json").json["files"][str(file)]
    monkeypatch.setenv("FAKE_STATUS", "3")
    failed = abi("launch", target, path, "--json")
    assert (failed.status, failed.json["exit_status"]) == (3, 3)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("slurm", "nothing.yaml"), "launch configuration 'nothing.yaml' is neither a file nor a known name"),
        (("slurm", "launch.yaml", "--set", "node=2"), "unknown key 'node'"),
        (("slurm", "launch.yaml", "--train", "step=2"), "unknown key 'step'"),
        (("slurm", "launch.yaml", "--set", "train=nothing"), "train configuration 'nothing'"),
        (("gke", "launch.yaml"), "gke.image is empty"),
    ],
)
def test_bad_input_leaves_nothing(arguments: tuple[str, ...], reason: str, alone: Path, abi: Abi) -> None:
    launch_file(alone)
    before = listing(alone)
    result = abi("launch", *arguments, "--json")
    assert result.status == 2 and reason in result.json["error"]
    assert listing(alone) == before


def alive(number: str) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return "State:\tZ" not in Path("/proc", number, "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_stopping_it_stops_what_it_runs(alone: Path) -> None:
    """The controller of a TPU, and the connection that it waits for; its status is the signal's."""
    answer = (
        '#!/bin/sh\ncase "$4" in describe) echo ACTIVE ;; ssh) echo $PPID $$ > called; exec /bin/sleep 300 ;; esac\n'
    )
    program(alone / "bin", "gcloud", answer)
    for name in ("bash", "cat", "tail", "mkdir", "flock", "sleep"):
        (alone / "bin" / name).symlink_to(shutil.which(name, path="/usr/bin:/bin") or name)
    command = [sys.executable, "-m", "abi_jax.cli", "launch", "tpu-vm", str(one_file(alone, "tpu-vm"))]
    with subprocess.Popen(command, env=os.environ | {"HOME": str(alone)}, stdout=subprocess.PIPE) as process:
        called = alone / "called"
        wait_for(lambda: called.exists() and called.read_text().endswith("\n"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) == 143
    wait_for(lambda: not any(alive(number) for number in called.read_text().split()))


def test_what_is_started_with_nohup_outlives_its_terminal(alone: Path) -> None:
    answer = 'trap "echo hung up; exit 5" HUP; echo $PPID > called; while [ ! -e go ]; do /bin/sleep 0.05; done'
    program(alone / "bin", "sbatch", f"#!/bin/sh\n{answer}\n")
    command = [sys.executable, "-m", "abi_jax.cli", "launch", "slurm", str(one_file(alone, "slurm"))]
    with subprocess.Popen(["/usr/bin/nohup", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for((alone / "called").exists)
        process.send_signal(signal.SIGHUP)
        (alone / "go").touch()
        assert process.wait(timeout=100) == 0


def test_a_program_that_a_signal_ended_is_told_by_its_number(alone: Path, abi: Abi) -> None:
    program(alone / "bin", "sbatch", "#!/bin/sh\nkill -KILL $$\n")
    assert abi("launch", "slurm", one_file(alone, "slurm")).status == 137


def test_what_the_environment_says_is_in_the_file_already(
    here: Path, abi: Abi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABI_STEPS", "5")
    path = launch_file(here, accelerator="cpu", nodes=1, devices_per_node=1, command="printenv ABI_STEPS #")
    result = abi("launch", "local", path, "--train", "steps=7")
    assert result.status == 1 and load(TrainConfig, here / "runs/launch/tiny/train.yaml", env={}).steps == 7


def test_a_process_that_never_comes_is_named(here: Path, abi: Abi) -> None:
    late = f"sh -c 'test $ABI_PROCESS_ID = 0 || exec sleep 600; exec {TRAIN}' sh"
    path = launch_file(here, **CPU, command=late, start_timeout_s=3, grace_s=1)
    result = abi("launch", "local", path)
    assert result.status == 2
    assert "missing process 1 of 2: not heard of within 3 s" in result.err
    assert "process 0 failed (exit status 2); stopping the others" in result.err


def test_a_process_that_dies_takes_the_others_along(here: Path, abi: Abi) -> None:
    dies = f"sh -c 'test $ABI_PROCESS_ID = 0 || kill -KILL $$; exec {TRAIN}' sh"
    result = abi("launch", "local", launch_file(here, **CPU, command=dies, grace_s=1), "--json")
    assert (result.status, result.json["exit_status"]) == (137, 137)
    assert "process 1 failed (killed by SIGKILL); stopping the others" in result.err


@pytest.mark.slow
def test_a_local_launch_trains_as_the_plain_launcher_does(here: Path, abi: Abi) -> None:
    path = launch_file(here, {"data": {"batch_size": 8}}, **CPU)
    result = abi("launch", "local", path, "--json")
    assert result.status == 0, result.err
    plain = (sys.executable, "-m", "abi_jax.cli", "train", str(here / "train.yaml"), "--set", "out=plain")
    assert launch(LocalConfig(plain, 2, devices=4)) == 0
    assert losses(here / "run") == losses(here / "plain") and len(losses(here / "run")) == 4
