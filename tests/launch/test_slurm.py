"""The SLURM script, run with stand-ins for SLURM's own programs that start the job's tasks on this machine."""

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.launch.targets import make_plan
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.verify import verify
from abi_jax.sharding.local import LocalConfig, launch
from tests.conftest import ROOT
from tests.launch.cases import CPU, job, losses, program

# Starts the tasks of a step with the environment that SLURM gives them; sends SIGTERM when a file has grown, and makes
# the file `told` then.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
from pathlib import Path

command = sys.argv[1:]
while command[0].startswith("-"):
    command.pop(0)
count = int(os.environ["SLURM_NTASKS"])
tasks = []
for i in range(int(os.environ.get("FAKE_STARTED", count))):
    mine = {{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i), "SLURM_STEP_NODELIST": "127.0.0.1"}}
    tasks.append(subprocess.Popen(command, env=os.environ | mine | {{"SLURM_STEP_TASKS_PER_NODE": str(count)}}))
watched, lines = Path(os.environ.get("FAKE_TERM_FILE", "/nonexistent")), int(os.environ.get("FAKE_TERM_LINES", "0"))
told = False
while any(task.poll() is None for task in tasks):
    if not told and watched.exists() and len(watched.read_text().splitlines()) >= lines:
        told = True
        for task in tasks:
            task.send_signal(signal.SIGTERM)
        Path("told").touch()
    time.sleep(0.02)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo "JobId=$3 JobState=${FAKE_STATE:-RUNNING} Reason=None"; else echo "$*" >> scontrol.log; fi
"""
ABI = f"{shlex.quote(sys.executable)} -m abi_jax.cli"
# `abi`, whose training is not over before it is told to stop, nor before it has heard of that.
WAITS = """
import sys, time
from pathlib import Path

from abi_jax.cli import main
from abi_jax.train.preemption import Preemption

reached = Preemption.reached

def slowly(self, step):
    while step > 3 and not Path("told").exists():
        time.sleep(0.02)
    time.sleep(1 if step > 3 else 0)
    return reached(self, step)

Preemption.reached = slowly
sys.exit(main(sys.argv[1:]))
"""


@dataclass(frozen=True)
class Ran:
    """What one run of the script did."""

    status: int
    out: str
    err: str
    requeued: int


def sbatch(folder: Path, script: str, tasks: int = 2, **env: str) -> Ran:
    """Runs a script as `sbatch` does once the job starts."""
    programs = folder / "bin"
    program(programs, "srun", SRUN)
    program(programs, "scontrol", SCONTROL)
    path = folder / "train.sbatch"
    path.write_text(script)
    given = {"SLURM_JOB_ID": job_number(), "SLURM_NTASKS": str(tasks), "PYTHONPATH": str(ROOT)}
    path_variable = f"{programs}{os.pathsep}{os.environ['PATH']}"
    before = _requeued(folder)
    done = subprocess.run(
        ["bash", str(path)],
        env=os.environ | {"PATH": path_variable} | given | env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    return Ran(done.returncode, done.stdout, done.stderr, _requeued(folder) - before)


def job_number() -> str:
    """A number of a job whose coordinator's port, which follows from it, nobody uses."""
    for number in range(os.getpid(), os.getpid() + 4096):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", 61440 + number % 4096)):
            return str(number)
    raise AssertionError("no port is free")


def _requeued(folder: Path) -> int:
    log = folder / "scontrol.log"
    return len(log.read_text().splitlines()) if log.exists() else 0


def script(folder: Path, train: dict[str, Any] | None = None, **changes: Any) -> str:
    made = job(folder, "slurm", train, **{"workdir": str(folder)} | changes)
    return make_plan(made, folder).files["train.sbatch"]


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]


def test_what_is_asked_of_slurm(tmp_path: Path) -> None:
    slurm = {
        "partition": "gpu",
        "account": "me",
        "cpus_per_process": 12,
        "gpu_type": "h100",
        "options": ["--exclusive"],
    }
    text = script(tmp_path, processes_per_node=4, slurm=slurm | {"srun": ["--container-image=a b"]})
    assert directives(text) == [
        *("--job-name=tiny", "--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=h100:8", "--cpus-per-task=12"),
        *(
            "--time=24:00:00",
            "--partition=gpu",
            "--account=me",
            f"--chdir={tmp_path}",
            f"--output={tmp_path}/tiny-%j.log",
        ),
        *("--open-mode=append", "--signal=TERM@120", "--requeue", "--exclusive"),
    ]
    # Since SLURM 22.05 srun does not take it from the job.
    assert "srun --kill-on-bad-exit=0 --wait=900 --cpus-per-task=12 '--container-image=a b' bash -c" in text
    assert not any("gpus" in line for line in directives(script(tmp_path, **CPU)))


def test_tpus_have_no_slurm(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accelerator = 'v4' for slurm; expected a GPU or cpu"):
        script(tmp_path, accelerator="v4")


def test_the_script_is_bash_whatever_is_in_it(tmp_path: Path) -> None:
    odd = 'it\'s "$HOME" `x` \\ $(y)'
    text = script(tmp_path, env={"ODD": odd}, setup=["source env.sh", "module load cuda"], command="printenv ODD #")
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    (tmp_path / "env.sh").write_text('module() { echo "module $*"; }\n')
    ran = sbatch(tmp_path, text)
    assert (ran.status, sorted(ran.out.splitlines())) == (0, sorted([odd, "module load cuda"] * 2))


def test_setup_is_run_where_every_task_is(tmp_path: Path) -> None:
    text = script(tmp_path, setup=["export NODE=on-$SLURM_PROCID"], command="printenv NODE #")
    assert sorted(sbatch(tmp_path, text).out.split()) == ["on-0", "on-1"]
    failed = sbatch(tmp_path, script(tmp_path, setup=["false"], command="echo trained"))
    assert (failed.status, failed.out) == (1, "")


def test_what_is_set_where_it_is_submitted_does_not_reach_training(tmp_path: Path) -> None:
    text = script(tmp_path, setup=["export ABI_DATA__LENGTH=9"], command="env #")
    ran = sbatch(tmp_path, text, ABI_STEPS="3", ABI_PROCESS_ID="0", ABI_COORDINATOR="elsewhere:1")
    names = {line.split("=")[0] for line in ran.out.splitlines() if line.startswith("ABI_")}
    assert names == {"ABI_NUM_PROCESSES", "ABI_START_TIMEOUT"}


@pytest.mark.parametrize("limit", ["1", "0:30", "6"])
def test_a_time_limit_that_leaves_no_time_to_train_is_refused(limit: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"slurm\.time_limit = .*, with grace_s = 120; expected more than 360 s"):
        script(tmp_path, slurm={"time_limit": limit})
    script(tmp_path, slurm={"time_limit": "6:01"})
    script(tmp_path, slurm={"time_limit": "0"})


@pytest.mark.parametrize(
    ("status", "state", "runs", "requeued"),
    [
        (0, "RUNNING", 1, 0),
        (143, "RUNNING", 6, 3),  # stopped without a step further
        (1, "RUNNING", 6, 3),  # failed: `max_restarts` times
        (143, "CANCELLED", 1, 0),  # by scancel
        (143, "COMPLETING", 1, 0),  # SLURM queues it again by itself
    ],
)
def test_what_is_started_again(status: int, state: str, runs: int, requeued: int, tmp_path: Path) -> None:
    text = script(tmp_path, command=f"sh -c 'exit {status}'")
    ran = [sbatch(tmp_path, text, FAKE_STATE=state, SLURM_JOB_ID="77") for _ in range(runs)]
    assert {r.status for r in ran} == {status}
    assert sum(r.requeued for r in ran) == requeued
    assert ("3 restarts are used up" in ran[-1].err) == (runs > requeued > 0)


def test_a_job_that_gets_further_is_queued_again_every_time(tmp_path: Path) -> None:
    further = "mkdir -p run/checkpoints/$(($(ls run/checkpoints | wc -l) + 8)) run/checkpoints/99.partial; exit 143"
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    text = script(tmp_path, command=f"sh -c '{further}'")
    ran = [sbatch(tmp_path, text, tasks=1, SLURM_JOB_ID="77") for _ in range(6)]
    assert [(r.status, r.requeued) for r in ran] == [(143, 1)] * 6


def test_a_task_that_never_starts_is_named(tmp_path: Path) -> None:
    text = script(tmp_path, **CPU, command=ABI, start_timeout_s=3)
    ran = sbatch(tmp_path, text, FAKE_STARTED="1")
    assert (ran.status, ran.requeued) == (2, 1)
    assert "missing process 1 of 2: not heard of within 3 s at 127.0.0.1" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.slow
def test_a_job_whose_time_is_up_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    steps = 24
    train = {"steps": steps, "checkpoint_every": steps, "data": {"batch_size": 8}}
    waits = tmp_path / "waits.py"
    waits.write_text(WAITS)
    text = script(tmp_path, train, **CPU, command=f"{shlex.quote(sys.executable)} {shlex.quote(str(waits))}")
    first = sbatch(tmp_path, text, FAKE_TERM_FILE=str(tmp_path / "run" / "metrics.jsonl"), FAKE_TERM_LINES="3")
    assert (first.status, first.requeued) == (128 + signal.SIGTERM, 1), first.err
    (stopped,) = ModelDirectory(tmp_path / "run").steps()
    assert 3 <= stopped < steps
    second = sbatch(tmp_path, script(tmp_path, train, **CPU, command=ABI))
    assert (second.status, second.requeued) == (0, 0), second.err

    plain = tmp_path / "plain"
    command = (sys.executable, "-m", "abi_jax.cli", "train", str(tmp_path / "train.yaml"), "--set", f"out={plain}")
    assert launch(LocalConfig(command, 2, devices=4)) == 0
    assert losses(tmp_path / "run") == losses(plain)
    assert verify(tmp_path / "run").findings == ()
