"""Digests of tensors: the same for the same content, however it is laid out on a mesh.

    tensor digest = SHA-256(domain, {path, dtype, shape, chunk}, Merkle root of its chunks)
    content root  = Merkle root of the hashes of [path, dtype, shape, tensor digest], sorted by path

Chunks are a grid that follows from dtype and shape alone, hashed in row-major order; each chunk is the bytes of
its elements, row-major and little-endian. Wherever shards are whole chunks, each is hashed where its shard is,
and nothing but hashes moves between processes.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

CHUNK_BYTES = 64 * 1024
HASH = 32  # bytes of a SHA-256
CHUNKS_A_JOB = 256  # handing a job to a thread takes about as long as hashing one chunk
LEAF = np.dtype([("at", np.int64), ("hash", np.uint8, (HASH,))])  # a chunk's place in its grid, row-major, and hash

Region = tuple[slice, ...]


def sha256(domain: str, *parts: bytes | memoryview) -> bytes:
    """SHA-256 of `parts` in a domain of their own: a hash of one kind can never be passed off as one of another."""
    made = hashlib.sha256(b"abi-jax/" + domain.encode() + b"\0")
    for part in parts:
        made.update(part)
    return made.digest()


def canonical(value: Any) -> bytes:
    """Returns the one JSON text of `value`: sorted keys, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Merkle root of hashes; an odd one rises unchanged (RFC 6962). Of none: the hash of nothing."""
    if not leaves:
        return sha256("empty")
    level = list(leaves)
    while len(level) > 1:
        paired = [sha256("node", a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def chunk_shape(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Sizes of a chunk of an array of `shape`: halved along the axis with the fewest pieces until it is small enough.

    An axis of even size is halved no further than it is even while another can be cut instead, so that the shards of
    an axis split evenly by a power of two are whole chunks.
    """
    pieces = [1] * len(shape)
    sizes = list(shape)
    while itemsize * prod(sizes) > CHUNK_BYTES:
        free = [a for a, size in enumerate(sizes) if size > 1]
        cuttable = [a for a in free if sizes[a] % 2 == 0 or shape[a] % 2] or free
        axis = min(cuttable, key=lambda a: pieces[a])
        pieces[axis] *= 2
        sizes[axis] = -(-sizes[axis] // 2)
    return tuple(sizes)


def grid(shape: Sequence[int], chunk: Sequence[int]) -> tuple[int, ...]:
    """How many chunks lie along each axis; 0 where the array is empty."""
    return tuple(-(-size // step) if step else 0 for size, step in zip(shape, chunk, strict=True))


@dataclass(frozen=True)
class TensorDigest:
    """What a tensor was: dtype by name, shape, and the digest as hexadecimal."""

    dtype: str
    shape: tuple[int, ...]
    digest: str


@dataclass(frozen=True)
class _About:
    """What a tensor is, besides its content."""

    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def chunk(self) -> tuple[int, ...]:
        return chunk_shape(self.shape, np.dtype(self.dtype).itemsize)

    @cached_property
    def grid(self) -> tuple[int, ...]:
        return grid(self.shape, self.chunk)

    def digest(self, path: str, leaves: Sequence[bytes]) -> TensorDigest:
        said = canonical({"path": path, "dtype": self.dtype, "shape": self.shape, "chunk": self.chunk})
        return TensorDigest(self.dtype, self.shape, sha256("tensor", said, b"\0", merkle_root(leaves)).hex())


@dataclass(frozen=True)
class _Part:
    """Host copy of a region of a tensor: whole chunks, the first at `at` in the grid."""

    path: str
    array: np.ndarray
    at: tuple[int, ...]


class Snapshot:
    """Host copies of what this process must hash of a tree; taking it waits for the devices, hashing it does not.

    Taken by all processes, since a tensor whose shards cut through chunks is gathered. Each region is hashed by one of
    the processes that have it, so that all have about as much to do.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        """`tensors`: arrays by path; random keys are taken as their data."""
        arrays = {path: _data(tensors[path]) for path in sorted(tensors)}
        self._about = {path: _About(np.dtype(x.dtype).name, tuple(x.shape)) for path, x in arrays.items()}
        loads = [0] * jax.process_count()
        shares = {path: _share(x, self._about[path].chunk, loads) for path, x in arrays.items()}
        for data in (data for regions in shares.values() for data, _ in regions or ()):
            if isinstance(data, jax.Array):
                data.copy_to_host_async()
        self._parts: list[_Part] = []
        for path, regions in shares.items():
            found = _gathered(arrays[path]) if regions is None else regions
            self._parts += [_Part(path, _host_copy(data), at) for data, at in found]

    def leaves(self) -> dict[str, np.ndarray]:
        """This process's leaves by path: `LEAF` `[chunks that it has]`, in no particular order."""
        found: dict[str, list[np.ndarray]] = {}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            jobs = [(part, first) for part in self._parts for first in range(0, self._count(part), CHUNKS_A_JOB)]
            for (part, _), leaves in zip(jobs, pool.map(lambda job: self._hash(*job), jobs), strict=True):
                found.setdefault(part.path, []).append(leaves)
        return {path: np.concatenate(leaves) for path, leaves in found.items()}

    def _count(self, part: _Part) -> int:
        return prod(grid(part.array.shape, self._about[part.path].chunk))

    def _hash(self, part: _Part, first: int) -> np.ndarray:
        about = self._about[part.path]
        own = grid(part.array.shape, about.chunk)
        made = np.empty(min(CHUNKS_A_JOB, prod(own) - first), LEAF)
        places, hashes = made["at"], made["hash"]
        for i in range(len(made)):
            at = _unravel(first + i, own)
            region = tuple(slice(a * step, (a + 1) * step) for a, step in zip(at, about.chunk, strict=True))
            places[i] = _ravel([a + b for a, b in zip(at, part.at, strict=True)], about.grid)
            hashes[i] = np.frombuffer(_leaf(part.array[region]), np.uint8)
        return made

    def digests(self, shares: Iterable[Mapping[str, np.ndarray]]) -> dict[str, TensorDigest]:
        """The digest of every tensor, from the `leaves` of all processes, which are read one at a time.

        Raises `RuntimeError` where a chunk is in none of them.
        """
        whole = {path: np.zeros((prod(about.grid), HASH), np.uint8) for path, about in self._about.items()}
        there = {path: np.zeros(len(leaves), bool) for path, leaves in whole.items()}
        for share in shares:
            for path, leaves in share.items():
                whole[path][leaves["at"]] = leaves["hash"]
                there[path][leaves["at"]] = True
        for path, filled in there.items():
            if not filled.all():
                raise RuntimeError(f"{path}: no process hashed {np.sum(~filled)} of its {len(filled)} chunks")
        return {path: about.digest(path, list(map(bytes, whole[path]))) for path, about in self._about.items()}


def digest_tree(tensors: Mapping[str, Any]) -> dict[str, TensorDigest]:
    """The digest of every tensor, in one process; one at a time is copied to the host."""
    return {path: _digest(path, tensors[path]) for path in sorted(tensors)}


def _digest(path: str, x: Any) -> TensorDigest:
    taken = Snapshot({path: x})
    return taken.digests([taken.leaves()])[path]


def content_root(digests: Mapping[str, TensorDigest]) -> str:
    """One hash for all that is said of all tensors, as hexadecimal."""
    said = ([path, digest.dtype, digest.shape, digest.digest] for path, digest in sorted(digests.items()))
    return merkle_root([sha256("said", canonical(entry)) for entry in said]).hex()


def _leaf(view: np.ndarray) -> bytes:
    little = view if view.dtype.byteorder != ">" else view.astype(view.dtype.newbyteorder("<"))
    return sha256("chunk", np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def _unravel(index: int, sizes: Sequence[int]) -> list[int]:
    """Place in a grid of the element at `index` in row-major order."""
    at = []
    for size in reversed(sizes):
        index, i = divmod(index, size)
        at.append(i)
    return at[::-1]


def _ravel(at: Sequence[int], sizes: Sequence[int]) -> int:
    index = 0
    for i, size in zip(at, sizes, strict=True):
        index = index * size + i
    return index


def _data(x: Any) -> Any:
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def _share(x: Any, chunk: Sequence[int], loads: list[int]) -> list[tuple[Any, tuple[int, ...]]] | None:
    """The regions of `x` that this process hashes, and where each begins in the grid; None where it must be gathered.

    loads: bytes that every process has to hash so far. A region goes to the least loaded that has it.
    """
    if not isinstance(x, jax.Array):
        return [(x, (0,) * x.ndim)] if jax.process_index() == 0 else []
    devices: dict[tuple[tuple[int, int], ...], dict[int, Any]] = {}  # region -> process -> one of its devices
    places: dict[Any, Any] = dict(x.sharding.devices_indices_map(x.shape))
    for device, region in places.items():
        devices.setdefault(_bounds(region, x.shape), {}).setdefault(device.process_index, device)
    if not all(_whole(bounds, x.shape, chunk) for bounds in devices):
        loads[0] += x.nbytes
        return None
    shards = {shard.device: shard.data for shard in x.addressable_shards}
    mine = []
    for bounds in sorted(devices):
        owner = min(devices[bounds], key=lambda process: (loads[process], process))
        loads[owner] += x.dtype.itemsize * prod(stop - start for start, stop in bounds)
        if owner == jax.process_index():
            at = tuple(start // step if step else 0 for (start, _), step in zip(bounds, chunk, strict=True))
            mine.append((shards[devices[bounds][owner]], at))
    return mine


def _gathered(x: jax.Array) -> list[tuple[Any, tuple[int, ...]]]:
    whole = x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
    return [(whole, (0,) * x.ndim)] if jax.process_index() == 0 else []


def _host_copy(x: Any) -> np.ndarray:
    """The values of `x` in memory that no later computation writes to: a CPU's own is donated with the array."""
    on_cpu = isinstance(x, jax.Array) and any(device.platform == "cpu" for device in x.devices())
    return np.array(x) if on_cpu else np.asarray(x)


def _bounds(region: Region, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(region, shape, strict=True))


def _whole(bounds: Sequence[tuple[int, int]], shape: Sequence[int], chunk: Sequence[int]) -> bool:
    """Whether a region begins and ends where chunks do."""
    return all(
        start % step == 0 and (stop % step == 0 or stop == size) if step else True
        for (start, stop), size, step in zip(bounds, shape, chunk, strict=True)
    )
