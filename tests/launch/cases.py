"""Launch files of a tiny run, and programs that stand in for a cluster's own."""

import json
from pathlib import Path
from typing import Any

import yaml

from abi_jax.config import dump_yaml, load
from abi_jax.launch.config import LaunchConfig, Target
from abi_jax.launch.job import Job, make_job
from abi_jax.sharding import MeshConfig
from tests.train.tiny import config

CPU: dict[str, Any] = {"accelerator": "cpu", "nodes": 2, "devices_per_node": 4}
IMAGE = {"image": "registry/abi:1", "volumes": [{"claim": "shared", "path": "/shared"}]}
TPU_VM = {"project": "p", "zone": "z", "runtime_version": "v2-alpha-tpuv5-lite"}


def train_file(folder: Path, **changes: Any) -> Path:
    """Writes the training configuration of a tiny backbone; its batch of 64 divides every mesh used here."""
    data = {"batch_size": 64} | changes.pop("data", {})
    run = config("backbone", data=data, **{"out": Path("run"), "mesh": MeshConfig(), "steps": 4} | changes)
    path = folder / "train.yaml"
    path.write_text(dump_yaml(run))
    return path


def launch_file(folder: Path, train: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Writes a launch file for GPUs, with `changes`, and the training configuration that it names."""
    settings = {
        "name": "tiny",
        "train": str(train_file(folder, **train or {})),
        "accelerator": "h100",
        "nodes": 2,
        "workdir": "/shared/abi",
    }
    path = folder / "launch.yaml"
    path.write_text(yaml.safe_dump(settings | changes))
    return path


def job(folder: Path, target: Target, train: dict[str, Any] | None = None, **changes: Any) -> Job:
    """The job of such a launch file."""
    return make_job(load(LaunchConfig, launch_file(folder, train, **changes), env={}), target, env={})


def program(folder: Path, name: str, text: str) -> Path:
    """Makes an executable that stands in for a cluster's own."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def losses(out: Path) -> list[float]:
    """The loss of every step, as the run wrote it."""
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
