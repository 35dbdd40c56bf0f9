"""What the checks know of accelerators: memory, devices a host, and how each target names them."""

from dataclasses import dataclass, field
from math import prod
from types import MappingProxyType
from typing import Literal

from abi_jax.errors import InputError

GIB = 2**30
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBIC = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
}


@dataclass(frozen=True)
class Accelerator:
    """One kind of device. `hbm_bytes` 0: not a limit that can be checked.

    devices_per_node: on a host of a full-sized machine. gke: value of the node label that selects it. TPU only:
    `tpu_type` and `type_unit` give the accelerator type (`v5litepod-16`, or `v4-32`, which counts two cores a
    chip); `single_host` are the chips that a slice of one host may have; `topologies` the slice of so many chips.
    """

    kind: Literal["gpu", "tpu", "cpu"]
    hbm_bytes: int
    devices_per_node: int
    gke: str = ""
    tpu_type: str = ""
    type_unit: int = 1
    single_host: tuple[int, ...] = (4,)
    topologies: MappingProxyType[int, str] = field(default_factory=lambda: MappingProxyType({}))

    def topology(self, chips: int, asked: str | None = None) -> str:
        """Returns the topology of a slice of `chips`: the one that was asked for, or the usual one."""
        if asked is not None:
            sides = asked.split("x")
            if not all(side.isdigit() and int(side) for side in sides) or prod(map(int, sides)) != chips:
                raise InputError(f"topology {asked!r}; expected sides whose product is the slice's {chips} chips")
            return asked
        if chips not in self.topologies:
            sizes = ", ".join(map(str, self.topologies))
            raise InputError(f"a slice of {chips} {self.tpu_type} chips; expected {sizes}, or a topology of its own")
        return self.topologies[chips]


def _gpu(gib: int, gke: str) -> Accelerator:
    return Accelerator("gpu", gib * GIB, 8, gke)


def _flat(gib: int, gke: str, tpu_type: str) -> Accelerator:
    return Accelerator("tpu", gib * GIB, 4, gke, tpu_type, 1, (1, 4, 8), MappingProxyType(_FLAT))


def _cubic(gib: int, gke: str, tpu_type: str) -> Accelerator:
    return Accelerator("tpu", gib * GIB, 4, gke, tpu_type, 2, (4,), MappingProxyType(_CUBIC))


# Memory: what nvidia-smi reports, in whole GiB; for TPUs what Google's pages on each version say.
ACCELERATORS = {
    "a100-40": _gpu(40, "nvidia-tesla-a100"),
    "a100-80": _gpu(80, "nvidia-a100-80gb"),
    "h100": _gpu(79, "nvidia-h100-80gb"),
    "h200": _gpu(140, "nvidia-h200-141gb"),
    "v4": _cubic(32, "tpu-v4-podslice", "v4"),
    "v5e": _flat(16, "tpu-v5-lite-podslice", "v5litepod"),
    "v5p": _cubic(95, "tpu-v5p-slice", "v5p"),
    "v6e": _flat(32, "tpu-v6e-slice", "v6e"),
    "cpu": Accelerator("cpu", 0, 1),
}
