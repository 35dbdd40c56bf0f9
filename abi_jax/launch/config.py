"""One launch: what to train, on how many hosts of what, and what each target has to know besides."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from abi_jax.config import RESERVED_ENV
from abi_jax.errors import InputError
from abi_jax.launch.accelerators import ACCELERATORS, Accelerator

Target = Literal["slurm", "gke", "tpu-vm", "local"]
# The launcher sets these itself; by hand they would make every process the same one.
_OWN_ENV = RESERVED_ENV
_VARIABLE = re.compile(r"[A-Za-z_]\w*")
# What Kubernetes calls an RFC 1035 label, an RFC 1123 label and an RFC 1123 subdomain.
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"{_LABEL.pattern}(\.{_LABEL.pattern})*")


@dataclass(frozen=True)
class SlurmSection:
    """`sbatch`. options: further lines (`--exclusive`); srun: further options of `srun` (`--container-image=...`)."""

    partition: str = ""
    account: str = ""
    qos: str = ""
    time_limit: str = "24:00:00"
    cpus_per_process: int = 0
    gpu_type: str = ""
    options: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "gpu_type"):
            if re.search(r"\s", getattr(self, name)):
                raise InputError(f"{name} = {getattr(self, name)!r}; expected a name without spaces")
        if not re.fullmatch(r"(\d+-)?\d+(:\d\d){0,2}", self.time_limit):
            raise InputError(f"time_limit = {self.time_limit!r}; expected minutes, HH:MM:SS or D-HH:MM:SS")
        if self.cpus_per_process < 0:
            raise InputError(f"cpus_per_process = {self.cpus_per_process}; expected 0 (the cluster's default) or more")
        for name in ("options", "srun"):
            for option in getattr(self, name):
                if not option.startswith("-") or "\n" in option:
                    raise InputError(f"{name} has {option!r}; expected options such as --exclusive, one an entry")

    @property
    def time_limit_s(self) -> int | None:
        """`time_limit` in seconds, as `sbatch` reads it; None for none (0)."""
        days, _, rest = self.time_limit.rpartition("-")
        parts = [int(part) for part in rest.split(":")]
        if not days and len(parts) < 3:
            parts = [0, *parts]  # minutes, or minutes and seconds
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds or None


@dataclass(frozen=True)
class GkeVolume:
    """A persistent volume claim, mounted at `path` in every pod."""

    claim: str
    path: Path

    def __post_init__(self) -> None:
        _subdomain("claim", self.claim)
        if not self.path.is_absolute():
            raise InputError(f"path = {str(self.path)!r}; expected an absolute path")


@dataclass(frozen=True)
class GkeSection:
    """`kubectl apply` of a JobSet. `image` holds abi-jax; `volumes` what outlives the pods. queue: of Kueue.

    secrets: names of Secrets, whose keys become variables of every process; no file has their values.
    """

    image: str = ""
    namespace: str = "default"
    service_account: str = ""
    queue: str = ""
    spot: bool = False
    topology: str | None = None
    volumes: tuple[GkeVolume, ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.namespace) or len(self.namespace) > 63:
            raise InputError(
                f"namespace = {self.namespace!r}; expected at most 63 small letters, digits and dashes, neither the "
                "first nor the last a dash"
            )
        for name in self.secrets:
            _subdomain("secrets", name)
        if re.search(r"\s", self.image):
            raise InputError(f"image = {self.image!r}; expected a container image without spaces")


@dataclass(frozen=True)
class TpuVmSection:
    """`gcloud compute tpus queued-resources`. delete_when_done: give the TPU back when training has finished."""

    project: str = ""
    zone: str = ""
    runtime_version: str = ""
    topology: str | None = None
    spot: bool = False
    reserved: bool = False
    network: str = ""
    subnetwork: str = ""
    service_account: str = ""
    internal_ips: bool = False
    delete_when_done: bool = True

    def __post_init__(self) -> None:
        if self.spot and self.reserved:
            raise InputError("spot and reserved are both true; expected at most one")


@dataclass(frozen=True)
class LocalSection:
    """This machine, which may be smaller: None is what the other targets have.

    devices: of a process. gpus: real ones; else CPU devices are simulated.
    """

    processes: int | None = None
    devices: int | None = None
    gpus: bool = False

    def __post_init__(self) -> None:
        for name in ("processes", "devices"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}; expected at least 1, or null for the whole launch")


@dataclass(frozen=True)
class LaunchConfig:
    """A launch; the same file serves every target.

    train: a training configuration, a file or a name in configs/train; overrides: as `abi train --set` takes them.
    nodes: hosts; processes_per_node: processes that share a host's devices evenly (a TPU host has one).
    workdir: directory on storage that every host sees; relative paths of the training configuration start there.
    setup: shell lines that every process runs first. command: what `abi` is called there. env: of every process; keys
    of the training configuration belong into `overrides`, and secrets elsewhere, for the files have it all in clear.
    max_restarts: how often a run that failed is started again; one that was pre-empted always is.
    grace_s: seconds between SIGTERM and the end, for the last checkpoint.
    """

    name: str
    train: Path
    accelerator: str
    overrides: tuple[str, ...] = ()
    nodes: int = 1
    processes_per_node: int = 1
    devices_per_node: int | None = None
    workdir: Path | None = None
    setup: tuple[str, ...] = ()
    command: str = "abi"
    env: Mapping[str, str] = field(default_factory=dict)
    start_timeout_s: int = 600
    grace_s: int = 120
    max_restarts: int = 3
    slurm: SlurmSection = field(default_factory=SlurmSection)
    gke: GkeSection = field(default_factory=GkeSection)
    tpu_vm: TpuVmSection = field(default_factory=TpuVmSection)
    local: LocalSection = field(default_factory=LocalSection)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > 40:
            raise InputError(
                f"name = {self.name!r}; expected at most 40 small letters, digits and dashes, the first a letter and "
                "the last no dash"
            )
        if self.accelerator not in ACCELERATORS:
            raise InputError(f"accelerator = {self.accelerator!r}; expected one of {', '.join(ACCELERATORS)}")
        for name, least in (
            ("nodes", 1),
            ("processes_per_node", 1),
            ("start_timeout_s", 1),
            ("grace_s", 1),
            ("max_restarts", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}; expected at least {least}")
        if self.devices_per_node is not None and self.devices_per_node < 1:
            raise InputError(f"devices_per_node = {self.devices_per_node}; expected at least 1")
        if self.devices % self.processes_per_node:
            raise InputError(
                f"processes_per_node = {self.processes_per_node} does not divide the {self.devices} devices of a node"
            )
        if self.kind.kind == "tpu" and self.processes_per_node != 1:
            raise InputError(f"processes_per_node = {self.processes_per_node} on TPU; expected 1")
        if self.workdir is not None and re.search(r"\s", str(self.workdir)):
            raise InputError(f"workdir = {str(self.workdir)!r}; expected a path without spaces")
        if not self.command.strip() or "\n" in self.command:
            raise InputError(f"command = {self.command!r}; expected one line, such as abi or /shared/venv/bin/abi")
        for name in self.env:
            if not _VARIABLE.fullmatch(name):
                raise InputError(f"env has {name!r}; expected the name of an environment variable")
            if name in _OWN_ENV:
                raise InputError(f"env sets {name}, which the launcher does itself")
            if name.startswith("ABI_"):
                raise InputError(f"env sets {name}, a key of the training configuration; expected it in overrides")

    @property
    def kind(self) -> Accelerator:
        """What is known of the accelerator."""
        return ACCELERATORS[self.accelerator]

    @property
    def devices(self) -> int:
        """Devices of a node."""
        return self.devices_per_node or self.kind.devices_per_node


def _subdomain(name: str, value: str) -> None:
    if not _SUBDOMAIN.fullmatch(value) or len(value) > 253:
        raise InputError(
            f"{name} = {value!r}; expected at most 253 small letters, digits, dashes and dots, each part beginning and "
            "ending with a letter or digit"
        )
