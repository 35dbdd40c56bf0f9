"""The plan of each target."""

import os
import shlex
import sys
from pathlib import Path

from abi_jax.config import RESERVED_ENV
from abi_jax.errors import InputError
from abi_jax.launch.config import Target
from abi_jax.launch.job import Job
from abi_jax.launch.plan import Plan, render
from abi_jax.sharding.cluster import KUBERNETES_PORT
from abi_jax.sharding.local import LocalConfig

TRAIN_YAML = "train.yaml"
# Kubernetes: a label's value, and the host name of a pod.
_LONGEST = 63
# By how much SLURM may send a signal too early.
_EARLY_S = 60


def make_plan(job: Job, folder: Path) -> Plan:
    """Returns what `job`'s target runs; its files belong into `folder`. Raises `InputError` for what is missing."""
    plans = {"slurm": _slurm, "gke": _gke, "tpu-vm": _tpu_vm, "local": _local}
    return plans[job.target](job, folder)


def _slurm(job: Job, folder: Path) -> Plan:
    if job.launch.kind.kind == "tpu":
        raise InputError(f"accelerator = {job.launch.accelerator!r} for slurm; expected a GPU or cpu")
    limit, least = job.launch.slurm.time_limit_s, 2 * (job.launch.grace_s + _EARLY_S)
    if limit is not None and limit <= least:
        raise InputError(
            f"slurm.time_limit = {job.launch.slurm.time_limit!r} is {limit} s, with grace_s = {job.launch.grace_s}; "
            f"expected more than {least} s: SIGTERM may come {_EARLY_S} s early, and no step would be taken"
        )
    script = render("slurm/train.sbatch", job, checkpoints=job.on_hosts(job.train.out) / "checkpoints")
    return Plan({"train.sbatch": script}, ("sbatch", str(folder / "train.sbatch")), "sbatch")


def _gke(job: Job, folder: Path) -> Plan:
    launch = job.launch
    if launch.kind.kind == "cpu":
        raise InputError("accelerator = 'cpu' for gke; expected a GPU or TPU")
    _given(job.target, "gke.image", launch.gke.image)
    pods = job.processes // job.slices
    coordinator = f"{launch.name}-worker-0-0.{launch.name}"
    longest_pod = f"{launch.name}-worker-{job.slices - 1}-{pods - 1}-abcde"
    for text, what in ((coordinator, "the coordinator's address"), (longest_pod, "a pod's name")):
        if len(text) > _LONGEST:
            raise InputError(
                f"name = {launch.name!r}: {what}, {text}, has {len(text)} characters; expected at most {_LONGEST}"
            )
    selector = dict(launch.gke.node_selector)
    if launch.kind.kind == "tpu":
        chips = launch.devices * launch.nodes // job.slices
        selector = {
            "cloud.google.com/gke-tpu-accelerator": launch.kind.gke,
            "cloud.google.com/gke-tpu-topology": launch.kind.topology(chips, launch.gke.topology),
        } | selector
    else:
        selector = {"cloud.google.com/gke-accelerator": launch.kind.gke} | selector
    if launch.gke.spot:
        selector = {"cloud.google.com/gke-spot": "true"} | selector
    resource = "google.com/tpu" if launch.kind.kind == "tpu" else "nvidia.com/gpu"
    text = render("gke/jobset.yaml", job, pods=pods, selector=selector, resource=resource, port=KUBERNETES_PORT)
    return Plan({"jobset.yaml": text}, ("kubectl", "apply", "-f", str(folder / "jobset.yaml")), "kubectl")


def _tpu_vm(job: Job, folder: Path) -> Plan:
    launch = job.launch
    if launch.kind.kind != "tpu":
        raise InputError(f"accelerator = {launch.accelerator!r} for tpu-vm; expected a TPU")
    for name in ("project", "zone", "runtime_version"):
        _given(job.target, f"tpu_vm.{name}", getattr(launch.tpu_vm, name))
    chips = launch.devices * launch.nodes // job.slices
    topology = launch.kind.topology(chips, launch.tpu_vm.topology)
    if launch.tpu_vm.topology is None:
        machine = [f"--accelerator-type={launch.kind.tpu_type}-{chips * launch.kind.type_unit}"]
    else:
        machine = [f"--type={launch.kind.tpu_type}", f"--topology={topology}"]
    many = job.slices > 1
    machine += [f"--node-count={job.slices}", f"--node-prefix={launch.name}"] if many else [f"--node-id={launch.name}"]
    machine += [f"--runtime-version={launch.tpu_vm.runtime_version}"]
    machine += [f"--{name}" for name in ("spot", "reserved") if getattr(launch.tpu_vm, name)]
    machine += ["--internal-ips"] if launch.tpu_vm.internal_ips else []
    for name in ("network", "subnetwork", "service_account"):
        value = getattr(launch.tpu_vm, name)
        machine += [f"--{name.replace('_', '-')}={value}"] if value else []
    text = render("tpu-vm/train.sh", job, machine=machine)
    return Plan({"train.sh": text}, ("bash", str(folder / "train.sh")), "gcloud")


def _local(job: Job, folder: Path) -> Plan:
    config = local_config(job, folder)
    devices = ["--gpus", str(config.gpus)] if config.gpus else ["--devices", str(config.devices)]
    command = ("launch/local", "-n", str(config.processes), *devices, "--", *config.command)
    return Plan({TRAIN_YAML: job.train_yaml}, command)


def local_config(job: Job, folder: Path) -> LocalConfig:
    """Returns what `sharding.local.launch` is given to run `job` on this machine."""
    gpus = job.devices_per_process if job.launch.local.gpus else 0
    if gpus and job.launch.kind.kind != "gpu":
        raise InputError(f"local.gpus = true with accelerator = {job.launch.accelerator!r}; expected a GPU")
    # `abi` by itself means this program, which need not be on the path.
    abi = [sys.executable, "-m", "abi_jax.cli"] if job.launch.command == "abi" else shlex.split(job.launch.command)
    # The file holds what they say, and the overrides that go before them.
    keys = [part for name in sorted(os.environ) if _is_key(name) for part in ("-u", name)]
    variables = [f"{name}={value}" for name, value in job.environment.items()]
    command = ("env", *keys, *variables, *abi, "train", str(folder / TRAIN_YAML))
    devices = 1 if gpus else job.devices_per_process
    return LocalConfig(command, job.processes, devices, gpus, grace_s=float(job.launch.grace_s))


def _is_key(variable: str) -> bool:
    return variable.startswith("ABI_") and variable not in RESERVED_ENV


def _given(target: Target, key: str, value: str) -> None:
    if not value:
        raise InputError(f"{key} is empty; {target} needs it: set it in the launch file or with --set {key}=...")
