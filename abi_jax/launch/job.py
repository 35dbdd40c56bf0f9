"""A launch made definite for one target: the training configuration that travels with it, and how many of what."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from abi_jax.config import dump_yaml, find_config, load
from abi_jax.errors import InputError
from abi_jax.launch.accelerators import Accelerator
from abi_jax.launch.config import LaunchConfig, Target
from abi_jax.sharding.simulate import simulated_devices
from abi_jax.train.config import TrainConfig


@dataclass(frozen=True)
class Job:
    """What one target is to run. `train` is whole: file, environment and overrides are in it."""

    target: Target
    launch: LaunchConfig
    source: Path
    train: TrainConfig
    processes: int
    devices_per_process: int

    @property
    def devices(self) -> int:
        """Devices of all processes."""
        return self.processes * self.devices_per_process

    @property
    def slices(self) -> int:
        """TPU slices; everything else counts as one."""
        return self.train.mesh.num_slices if self.launch.kind.kind == "tpu" else 1

    @property
    def accelerator(self) -> Accelerator | None:
        """What the processes run on; None where CPU devices are simulated."""
        simulated = self.target == "local" and not self.launch.local.gpus
        return None if simulated or self.launch.kind.kind == "cpu" else self.launch.kind

    @property
    def train_yaml(self) -> str:
        """The training configuration as the hosts read it."""
        return dump_yaml(self.train)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of every process that do not depend on which one it is."""
        env = dict(self.launch.env) | {"ABI_START_TIMEOUT": str(self.launch.start_timeout_s), "PYTHONUNBUFFERED": "1"}
        if self.target != "local" and self.launch.kind.kind == "cpu":
            env |= simulated_devices(self.devices_per_process, env)
        if self.target != "local" and self.processes > 1:
            # A process that cannot tell which one it is then stops, where it would train alone.
            env["ABI_NUM_PROCESSES"] = str(self.processes)
        return env

    def on_hosts(self, path: Path) -> Path:
        """Returns where `path` of the training configuration is on the hosts."""
        at_home = path.parts[:1] and path.parts[0].startswith("~")
        return path if self.target == "local" or at_home else self.workdir / path

    @property
    def workdir(self) -> Path:
        """The directory that processes start in. Raises `InputError` where a cluster has none."""
        if self.target == "local":
            return Path.cwd()
        path = self.launch.workdir
        if path is None or not path.is_absolute():
            given = "null" if path is None else repr(str(path))
            raise InputError(
                f"workdir = {given}; expected, for {self.target}, the absolute path of a directory on storage that "
                "every host sees"
            )
        return path


def make_job(launch: LaunchConfig, target: Target, env: Mapping[str, str] | None = None) -> Job:
    """Loads the training configuration of `launch`, with its overrides. Raises `InputError` for what does not fit."""
    source = find_config(launch.train, "train")
    env = os.environ if env is None else env
    train = load(TrainConfig, source, launch.overrides, env=env)
    processes, devices = launch.nodes * launch.processes_per_node, launch.devices // launch.processes_per_node
    if target == "local":
        processes, devices = launch.local.processes or processes, launch.local.devices or devices
    return Job(target, launch, source, train, processes, devices)
