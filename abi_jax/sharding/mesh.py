"""The device mesh, from configuration.

Axes, slowest network first:

    data      batch; parameters are copied
    stage     pipeline stages
    fsdp      batch; parameters are split and gathered layer by layer
    expert    experts of a mixture
    sequence  positions of one sequence
    tensor    heads and hidden units of one layer

Every mesh has all six axes, so one table of rules fits every mesh; unused axes have size 1. Nothing is split over
`stage` and `expert` yet, so devices along them would only repeat each other's work: they are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from abi_jax.errors import InputError

AXES = ("data", "stage", "fsdp", "expert", "sequence", "tensor")
RESERVED = ("stage", "expert")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one axis may be -1, "all the devices that are left".

    `slices` says which axes run between slices (pods, hosts without a fast interconnect) and how
    many ways: `{"data": 2}` puts two slices on the data axis. An axis's size includes its slices:
    with `data=8` and `slices={"data": 2}` each slice holds 4 of the 8.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    expert: int = 1
    stage: int = 1
    slices: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        free = [a for a in AXES if getattr(self, a) == -1]
        if len(free) > 1:
            raise InputError(f"mesh axes {', '.join(free)} are all -1; at most one axis can take the remaining devices")
        for axis in AXES:
            size = getattr(self, axis)
            if size < 1 and size != -1:
                raise InputError(f"mesh axis {axis!r} is {size}; expected a positive number of devices, or -1")
            if axis in RESERVED and size != 1:
                raise InputError(f"mesh axis {axis!r} is {size}; expected 1, since no weight is split over it yet")
        for axis, count in self.slices.items():
            if axis not in AXES:
                raise InputError(f"mesh.slices names {axis!r}, which is not a mesh axis; known: {', '.join(AXES)}")
            if count < 1:
                raise InputError(f"mesh.slices[{axis!r}] is {count}; expected a positive number of slices")

    @property
    def num_slices(self) -> int:
        """How many slices the mesh spans."""
        return prod(self.slices.values())

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Returns the size of every axis of `AXES` on `num_devices`; `InputError` when they do not fit."""
        asked = [getattr(self, a) for a in AXES]
        fixed = prod(s for s in asked if s != -1)
        if -1 in asked:
            if num_devices % fixed:
                free = AXES[asked.index(-1)]
                raise InputError(
                    f"mesh {self} cannot use {_devices(num_devices)}: the other axes take {fixed}, "
                    f"which leaves no whole number for {free}=-1; choose sizes whose product divides {num_devices}"
                )
            asked[asked.index(-1)] = num_devices // fixed
        elif fixed != num_devices:
            raise InputError(
                f"mesh {self} asks for {_devices(fixed)}, there {'is' if num_devices == 1 else 'are'} {num_devices}; "
                "set one axis to -1 to use them all"
            )
        for axis, count in self.slices.items():
            size = asked[AXES.index(axis)]
            if size % count:
                raise InputError(f"mesh axis {axis}={size} does not divide into {count} slices (mesh.slices)")
        return tuple(asked)

    def __str__(self) -> str:
        parts = [f"{a}={getattr(self, a)}" for a in AXES if getattr(self, a) != 1]
        parts += [f"slices={dict(self.slices)}"] if self.slices else []
        return f"({', '.join(parts) or 'one device'})"


def make_mesh(config: MeshConfig | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all), with automatic axes.

    Raises `InputError` saying how many devices there are and what was asked when they do not fit.
    """
    config = config or MeshConfig()
    devices = list(jax.devices() if devices is None else devices)
    sizes = config.sizes(len(devices))
    types = (AxisType.Auto,) * len(AXES)
    if config.num_slices == 1:
        return jax.make_mesh(sizes, AXES, types, devices=devices)
    between = tuple(config.slices.get(a, 1) for a in AXES)
    within = tuple(s // b for s, b in zip(sizes, between, strict=True))
    return Mesh(_hybrid(within, between, devices), AXES, axis_types=types)


def abstract_mesh(config: MeshConfig, num_devices: int) -> AbstractMesh:
    """Returns the mesh without devices, to lower and measure programs for machines that are elsewhere."""
    return AbstractMesh(config.sizes(num_devices), AXES, (AxisType.Auto,) * len(AXES))


def describe(mesh: Mesh | AbstractMesh) -> str:
    """Returns the axes that split anything, e.g. `8 devices: data=2 tensor=4`."""
    split = " ".join(f"{a}={n}" for a, n in mesh.shape.items() if n > 1)
    return f"{_devices(mesh.size)}{': ' if split else ''}{split}"


def _hybrid(within: tuple[int, ...], between: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Arranges devices so that axes run inside slices first, and between them only where configured."""
    count = prod(between)
    slices = {getattr(d, "slice_index", None) for d in devices}
    processes = {d.process_index for d in devices}
    if len(slices) == count:
        return mesh_utils.create_hybrid_device_mesh(within, between, devices)
    if len(slices) == 1 and len(processes) == count:
        return mesh_utils.create_hybrid_device_mesh(within, between, devices, process_is_granule=True)
    if devices[0].platform != "cpu":
        raise InputError(
            f"mesh.slices asks for {count} slices; the {_devices(len(devices))} form {len(slices)} "
            f"slices on {len(processes)} processes"
        )
    # Simulated devices have no slices: number them in order, so that hybrid meshes run in tests.
    ordered = np.empty(len(devices), object)
    ordered[:] = sorted(devices, key=lambda d: (d.process_index, d.id))
    blocks = ordered.reshape(*between, *within)
    axes = len(within)
    interleaved = blocks.transpose([i for pair in zip(range(axes), range(axes, 2 * axes), strict=True) for i in pair])
    return interleaved.reshape([b * w for b, w in zip(between, within, strict=True)])


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"
