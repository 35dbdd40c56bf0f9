"""What can be known of a job before it starts: that it fits the mesh, the batch, the memory and the storage."""

import glob
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from abi_jax.data.sources import is_demo
from abi_jax.errors import InputError
from abi_jax.launch.accelerators import GIB
from abi_jax.launch.job import Job
from abi_jax.model.config import ModelConfig
from abi_jax.model.costs import MOMENTS, costs
from abi_jax.model.directory import ModelDirectory
from abi_jax.sharding.mesh import AXES, MeshConfig, abstract_mesh, describe
from abi_jax.sharding.rules import AxisRules
from abi_jax.train.setup import check_batch, check_length

_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm", "/run")
# JAX takes this part of a GPU's memory when it starts, unless one of these says otherwise.
_GPU_SHARE, _GPU_SHARE_ENV = 0.75, ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@dataclass
class Report:
    """`checks`: what was found to be right; `warnings`: what may go wrong, though nobody can know from here."""

    checks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(job: Job) -> Report:
    """Checks all that can be checked here. Raises `InputError` for what cannot work."""
    report = Report([f"training configuration: {job.source} loads, with {len(job.launch.overrides)} overrides"])
    sections: tuple[Callable[[Job, Report], None], ...] = (_check_mesh, _check_storage, _check_model)
    for section in sections:
        section(job, report)
    return report


def resolved_mesh(job: Job) -> MeshConfig:
    """Returns the job's mesh with a size on every axis."""
    try:
        sizes = job.train.mesh.sizes(job.devices)
    except InputError as error:
        raise InputError(f"{_shape(job)}: {error}") from None
    found: dict[str, Any] = dict(zip(AXES, sizes, strict=True))
    return replace(job.train.mesh, **found)


def _shape(job: Job) -> str:
    if job.target == "local":
        return f"{job.processes} processes x {job.devices_per_process} devices"
    launch = job.launch
    return f"{launch.nodes} nodes x {launch.devices} {launch.accelerator} in {job.processes} processes"


def _check_mesh(job: Job, report: Report) -> None:
    mesh, data = resolved_mesh(job), job.train.data
    grid, rules = abstract_mesh(mesh, job.devices), AxisRules()
    report.checks.append(f"mesh: {_shape(job)} = {describe(grid)}")
    slices, nodes = mesh.num_slices, job.launch.nodes
    accelerator = job.accelerator
    if accelerator is not None and accelerator.kind == "tpu":
        if nodes % slices:
            raise InputError(f"mesh.slices = {dict(mesh.slices)}: {nodes} nodes do not divide into {slices} slices")
        if nodes == slices and job.launch.devices not in accelerator.single_host:
            fits = ", ".join(map(str, accelerator.single_host))
            raise InputError(
                f"devices_per_node = {job.launch.devices}; a slice of one {job.launch.accelerator} host has {fits}"
            )
        chips = nodes // slices * job.launch.devices
        if job.target == "tpu-vm" and nodes > slices and chips in accelerator.single_host:
            raise InputError(
                f"nodes = {nodes} with devices_per_node = {job.launch.devices}: {chips} {job.launch.accelerator} chips "
                f"are one TPU VM; expected nodes: {slices}, devices_per_node: {chips}"
            )
        if nodes > slices and job.launch.devices != accelerator.devices_per_node:
            raise InputError(
                f"devices_per_node = {job.launch.devices}; hosts of a larger {job.launch.accelerator} slice have "
                f"{accelerator.devices_per_node}"
            )
    elif accelerator is not None and slices not in (1, nodes, job.processes):
        raise InputError(
            f"mesh.slices = {dict(mesh.slices)} asks for {slices} slices; on GPUs a slice is a node: expected {nodes}"
        )
    check_batch(job.train, grid, rules)
    ways = grid.shape["data"] * grid.shape["fsdp"]
    report.checks.append(f"batch: {data.batch_size} rows of {data.length} tokens, {data.batch_size // ways} a device")


def paths(job: Job) -> Iterator[tuple[str, Path]]:
    """Yields key and path of everything that the job reads or writes, as the configuration has them."""
    train = job.train
    yield "out", train.out
    if train.model.init is not None:
        yield "model.init", train.model.init
    for key in ("train", "evaluate"):
        for name in getattr(train.data, key):
            if not is_demo(name):
                yield f"data.{key}", Path(name)
    for name in train.personas:
        if "/" in name or name.endswith((".yaml", ".yml")):
            yield "personas", Path(name)


def _check_storage(job: Job, report: Report) -> None:
    for key, path in paths(job):
        if path.parts and path.parts[0] in ("gs:", "s3:", "r2:", "az:"):
            raise InputError(
                f"{key} = {str(path)!r}: buckets are not read or written directly; expected a path on a file system "
                "that every host sees, which a bucket may be mounted as"
            )
    out = job.on_hosts(job.train.out)
    if job.target == "local":
        report.checks.append(f"output: {out}")
        return
    if not job.train.out.is_absolute():
        report.warnings.append(f"out = {str(job.train.out)!r} is relative: on the hosts it is {out}")
    if job.target == "gke":
        mounts = [volume.path for volume in job.launch.gke.volumes]
        for key, path in paths(job):
            if any(job.on_hosts(path).is_relative_to(mount) for mount in mounts):
                continue
            where = f"{key}: {job.on_hosts(path)} is under none of gke.volumes"
            if key == "out":
                raise InputError(f"{where}; what is written there goes with the pod: expected a mounted claim")
            report.warnings.append(f"{where}: it must be in the image")
    elif any(out.is_relative_to(place) for place in _NODE_LOCAL):
        report.warnings.append(f"output: {out} looks like storage of one host; every host must see the same directory")
    report.checks.append(f"output: {out}")
    if job.target == "slurm" and job.workdir.is_dir():  # it is shared with this machine
        for key, path in paths(job):
            if key != "out" and not _exists(job.on_hosts(path)):
                report.warnings.append(f"{key}: {job.on_hosts(path)} does not exist")


def _exists(path: Path) -> bool:
    path = path.expanduser()
    return path.exists() or any(glob.iglob(str(path), recursive=True))


def _check_model(job: Job, report: Report) -> None:
    model = _model(job)
    if model is None:
        report.warnings.append(f"model.init = {str(job.train.model.init)!r} is not here: its memory is not estimated")
        return
    check_length(job.train, model)
    needed = memory_per_device(job, model)
    accelerator = job.accelerator
    if accelerator is None:
        report.checks.append(f"memory: at least {needed / GIB:.2f} GiB a device")
        return
    share = _gpu_share(job) if accelerator.kind == "gpu" else 1.0
    usable = accelerator.hbm_bytes * share
    said = f"memory: at least {needed / GIB:.2f} GiB a device, of {usable / GIB:.1f} GiB"
    said += f" that JAX takes of {accelerator.hbm_bytes // GIB}" if share != 1.0 else ""
    if needed > usable:
        report.warnings.append(f"{said}: does not fit; split the weights further (mesh.fsdp, mesh.tensor)")
    else:
        report.checks.append(said)


def _model(job: Job) -> ModelConfig | None:
    """The model's configuration; None where it is in a directory that cannot be seen from here."""
    init, out = job.train.model.init, job.train.out
    if init is None:
        model = job.train.model.config
    else:
        # A run that goes on starts from its own directory.
        found = [p for p in (job.on_hosts(out), job.on_hosts(init), init) if (p / "model.yaml").is_file()]
        if not found and job.target != "local":
            return None
        model = ModelDirectory.open(found[0] if found else init).config
    if job.train.data.mode == "persona" and model.persona is None:
        shape = job.train.model.persona
        model = replace(model, persona=replace(shape, capacity=max(shape.capacity, len(job.train.personas))))
    return model


def memory_per_device(job: Job, model: ModelConfig) -> int:
    """Bytes that a device holds at the least: weights, gradients, moments, and activations under full remat.

    A frozen backbone has neither gradients nor moments; its persona terms are counted as if no mesh split them.
    """
    mesh, train = resolved_mesh(job), job.train
    rows = max(1, train.data.batch_size // train.accumulate // (mesh.data * mesh.fsdp))
    table = costs(model, mesh, train.data.length, rows, train.optimizer.kind)
    if train.data.mode == "persona" and train.freeze_backbone:
        trained = 4 * table["persona_parameters"] * (1 + MOMENTS[train.optimizer.kind])
        state = table["weight_bytes_per_device_f32"] + trained
    else:
        state = table["training_state_bytes_per_device"]
    return int(state + table["training_activation_bytes_per_device"])


def _gpu_share(job: Job) -> float:
    for name in _GPU_SHARE_ENV:
        text = job.launch.env.get(name)
        if text is not None:
            try:
                return float(text)
            except ValueError:
                raise InputError(f"env.{name} = {text!r}; expected a number") from None
    return _GPU_SHARE
