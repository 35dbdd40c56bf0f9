"""How long a search would take on devices that are elsewhere, from rates that were measured there. Arithmetic only."""

from dataclasses import dataclass
from math import ceil, log2

from abi_jax.errors import InputError
from abi_jax.wdbx.search.mesh import BATCHES, FEWEST_KEPT
from abi_jax.wdbx.search.mesh_pages import NUMPY, page_shape, parts_of

HIT_BYTES = 8  # score and row, as devices exchange them


@dataclass(frozen=True)
class Rates:
    """What a device does in a second, as measured: bytes that a scan reads, operations of a product (a multiplication
    and an addition are two), bytes that it sends to others and receives; and seconds from one device to another."""

    read: float
    product: float
    link: float
    latency: float

    def __post_init__(self) -> None:
        for name in ("read", "product", "link"):
            if not getattr(self, name) > 0:
                raise InputError(f"rate {name} {getattr(self, name)}: expected a positive number")
        if not self.latency >= 0:
            raise InputError(f"latency {self.latency}: expected at least 0 seconds")


@dataclass(frozen=True)
class Estimate:
    """Seconds of a batch: in all, reading rows, multiplying (at the same time as reading), and merging.

    bytes_per_device: of memory that the rows take.
    """

    seconds: float
    reading: float
    multiplying: float
    merging: float
    bytes_per_device: int


def estimate(
    rows: int, dim: int, batch: int, devices: int, rates: Rates, compute: str = "bfloat16", top_k: int = 10
) -> Estimate:
    """What an exact search of `batch` queries takes on `devices` devices, without what a host does before and after.

    A device reads its rows once a program (512 queries at most) and multiplies meanwhile; the best of all devices are
    gathered in a ring, `devices - 1` times what one sends, after one latency for each doubling of devices.
    """
    if min(rows, dim, batch, devices, top_k) < 1:
        raise InputError(f"rows {rows}, dim {dim}, batch {batch}, devices {devices}, top_k {top_k}: expected 1 or more")
    shape = page_shape("ip", dim, compute)
    programs = ceil(batch / BATCHES[-1])
    each = ceil(rows / devices / shape.rows) * shape.rows
    held = each // shape.rows * shape.nbytes
    reading = programs * held / rates.read
    multiplying = 2 * each * dim * batch * parts_of(compute, batch) / rates.product
    keep = max(FEWEST_KEPT[compute], 2 * top_k)
    merging = programs * rates.latency * ceil(log2(devices)) + (devices - 1) * batch * keep * HIT_BYTES / rates.link
    return Estimate(max(reading, multiplying) + merging, reading, multiplying, merging, held)


def smallest(rows: int, dim: int, bytes_per_device: int, compute: str = "bfloat16") -> int:
    """The least number of devices whose memory holds the rows."""
    fit = bytes_per_device // (dim * NUMPY[compute].itemsize + 9)
    if fit < 1:
        raise InputError(f"bytes_per_device {bytes_per_device}: no row of {dim} x {compute} fits")
    return ceil(rows / fit)
