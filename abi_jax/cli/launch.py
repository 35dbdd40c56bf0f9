"""Train on many hosts, from one launch file (see configs/launch/example.yaml).

The target is slurm, gke (a JobSet), tpu-vm (queued resources), or local (several processes on this machine). The
training configuration is checked first, against the mesh, the memory of the accelerators and the storage, and
travels with the job. --dry-run prints what would be submitted, needs no cluster, and leaves nothing behind.

  abi launch slurm configs/launch/example.yaml --dry-run
  abi launch gke launch.yaml --set nodes=8 --train steps=2000
  abi launch tpu-vm launch.yaml --set accelerator=v5e
  abi launch local launch.yaml --set local.processes=2 --set local.devices=4     a rehearsal
"""

import argparse
import contextlib
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from abi_jax.launch.job import Job
    from abi_jax.launch.plan import Plan

HELP = "train on many hosts: SLURM, GKE, TPU VMs, or processes of this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the verb's arguments."""
    parser.add_argument("target", choices=("slurm", "gke", "tpu-vm", "local"), help="where to run")
    parser.add_argument("config", type=Path, help="launch file, or a name in configs/launch")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of it"
    )
    parser.add_argument(
        "--train", action="append", default=[], metavar="KEY=VALUE", help="override a key of the training configuration"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where its files go (default: runs/launch/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="check, print what would be run, and stop")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Checks, then prints or runs the plan."""
    from abi_jax.config import find_config, load
    from abi_jax.launch.checks import check
    from abi_jax.launch.config import LaunchConfig
    from abi_jax.launch.job import make_job
    from abi_jax.launch.targets import make_plan

    config = load(LaunchConfig, find_config(options.config, "launch"), options.overrides, env={})
    config = replace(config, overrides=(*config.overrides, *options.train))
    job = make_job(config, options.target)
    folder = options.out or Path("runs", "launch", config.name)
    plan = make_plan(job, folder)
    report = check(job)
    if not options.json:
        for line in report.checks:
            print(f"ok       {line}")
    for line in report.warnings:
        print(f"warning  {line}", file=sys.stderr)
    result: dict[str, Any] = {
        "target": job.target,
        "dry_run": options.dry_run,
        "command": shlex.join(plan.command),
        "files": {str(folder / name): text for name, text in plan.files.items()},
        "checks": report.checks,
        "warnings": report.warnings,
    }
    if not options.dry_run:
        return result | {"exit_status": _start(job, plan, folder, options.json)}
    if options.out is not None:
        plan.write(folder)
    if not options.json:
        for name, text in plan.files.items():
            print(f"\n== {folder / name}\n{text}", end="")
        print(f"\n== would run\n{result['command']}")
    return result


def _start(job: "Job", plan: "Plan", folder: Path, as_json: bool) -> int:
    """Writes the plan's files and runs it; returns its exit status. With `as_json`, it speaks on standard error."""
    import shutil

    from abi_jax.errors import InputError
    from abi_jax.launch.targets import local_config
    from abi_jax.sharding.local import launch

    if plan.needs and shutil.which(plan.needs) is None:
        raise InputError(f"{plan.needs} is not installed here, and {job.target} needs it; --dry-run does not")
    plan.write(folder)
    output = sys.stderr if as_json else sys.stdout
    if job.target == "local":
        return launch(local_config(job, folder), stdout=output)
    print(shlex.join(plan.command), file=sys.stderr, flush=True)
    with _passed_on() as receivers:
        process = subprocess.Popen(plan.command, stdout=output)
        receivers.append(process)
        status = process.wait()
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _passed_on() -> "Iterator[list[subprocess.Popen[bytes]]]":
    """Passes the signals that stop a program on to the processes of the list, while entered."""
    receivers: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        for process in receivers:
            process.send_signal(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = (s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN)
        before = {s: signal.signal(s, pass_on) for s in heard}  # nohup has one ignored
    try:
        yield receivers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
