"""Digests of tensors: the same for the same content, however it is laid out on a mesh.

    tensor digest = SHA-256(domain, {path, dtype, shape, chunk}, Merkle root of its chunks)
    content root  = Merkle root of the hashes of [path, dtype, shape, tensor digest], sorted by path

Chunks are a grid that follows from dtype and shape alone, hashed in row-major order; each chunk is the bytes of
its elements, row-major and little-endian. Wherever shards are whole chunks, each is hashed where its shard is,
and nothing but hashes moves between processes.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

CHUNK_BYTES = 64 * 1024
HASH = 32  # bytes of a SHA-256

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

    Pieces are powers of two, so that shards of an evenly split array are whole chunks.
    """
    pieces = [1] * len(shape)
    sizes = list(shape)
    while itemsize * prod(sizes) > CHUNK_BYTES:
        axis = min((a for a, size in enumerate(sizes) if size > 1), key=lambda a: pieces[a])
        pieces[axis] *= 2
        sizes[axis] = -(-shape[axis] // pieces[axis])
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
class _Part:
    """Host copy of a region of a tensor: whole chunks, the first at `at` in the grid."""

    path: str
    array: np.ndarray
    at: tuple[int, ...]


class Snapshot:
    """Host copies of what this process must hash of a tree; taking it waits for the devices, hashing it does not.

    Taken by all processes, since a tensor whose shards cut through chunks is gathered.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        """`tensors`: arrays by path; random keys are taken as their data."""
        self._about: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._parts: list[_Part] = []
        for path in sorted(tensors):
            x = tensors[path]
            if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                x = jax.random.key_data(x)
            self._about[path] = (np.dtype(x.dtype).name, tuple(x.shape))
            self._parts += [_Part(path, array, at) for array, at in _owned(x)]

    def leaves(self) -> dict[str, np.ndarray]:
        """This process's leaves by path, uint8 `[chunks, 32]`; zero where another process has the chunk."""
        found = {}
        for path, (dtype, shape) in self._about.items():
            chunks = grid(shape, chunk_shape(shape, np.dtype(dtype).itemsize))
            found[path] = np.zeros((*chunks, HASH), np.uint8)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            jobs = [job for part in self._parts for job in self._jobs(part)]
            for (path, at), digest in zip(
                ((path, at) for path, at, _ in jobs), pool.map(_leaf, (view for *_, view in jobs)), strict=True
            ):
                found[path][at] = np.frombuffer(digest, np.uint8)
        return {path: x.reshape(-1, HASH) for path, x in found.items()}

    def _jobs(self, part: _Part) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
        dtype, shape = self._about[part.path]
        chunk = chunk_shape(shape, np.dtype(dtype).itemsize)
        for at in itertools.product(*map(range, grid(part.array.shape, chunk))):
            region = tuple(slice(i * step, (i + 1) * step) for i, step in zip(at, chunk, strict=True))
            yield part.path, tuple(a + b for a, b in zip(part.at, at, strict=True)), part.array[region]

    def digests(self, shares: Iterable[Mapping[str, np.ndarray]]) -> dict[str, TensorDigest]:
        """The digest of every tensor, from the `leaves` of all processes."""
        whole: dict[str, np.ndarray] = {}
        for share in shares:
            for path, leaves in share.items():
                whole[path] = np.maximum(whole.get(path, 0), leaves)
        made = {}
        for path, (dtype, shape) in self._about.items():
            chunk = chunk_shape(shape, np.dtype(dtype).itemsize)
            about = {"path": path, "dtype": dtype, "shape": shape, "chunk": chunk}
            root = merkle_root([bytes(leaf) for leaf in whole[path]])
            made[path] = TensorDigest(dtype, shape, sha256("tensor", canonical(about), b"\0", root).hex())
        return made


def digest_tree(tensors: Mapping[str, Any]) -> dict[str, TensorDigest]:
    """The digest of every tensor, in one process."""
    taken = Snapshot(tensors)
    return taken.digests([taken.leaves()])


def content_root(digests: Mapping[str, TensorDigest]) -> str:
    """One hash for all that is said of all tensors, as hexadecimal."""
    said = ([path, digest.dtype, digest.shape, digest.digest] for path, digest in sorted(digests.items()))
    return merkle_root([sha256("said", canonical(entry)) for entry in said]).hex()


def _leaf(view: np.ndarray) -> bytes:
    little = view if view.dtype.byteorder != ">" else view.astype(view.dtype.newbyteorder("<"))
    return sha256("chunk", np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def _owned(x: Any) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    """Host copies of this process's share of `x`, and where each begins in the grid of chunks."""
    first = (0,) * x.ndim
    if not isinstance(x, jax.Array):
        if jax.process_index() == 0:
            yield np.array(x), first
        return
    chunk = chunk_shape(x.shape, x.dtype.itemsize)
    places: dict[Any, Any] = dict(x.sharding.devices_indices_map(x.shape))
    owners: dict[tuple[tuple[int, int], ...], Any] = {}
    for device, region in sorted(places.items(), key=lambda place: place[0].id):
        owners.setdefault(_bounds(region, x.shape), device)
    if not all(_whole(bounds, x.shape, chunk) for bounds in owners):
        whole = np.array(x) if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True)
        if jax.process_index() == 0:
            yield np.asarray(whole), first
        return
    shards = {shard.device: shard for shard in x.addressable_shards}
    for bounds, device in owners.items():
        if device in shards:
            at = tuple(start // step if step else 0 for (start, _), step in zip(bounds, chunk, strict=True))
            yield np.array(shards[device].data), at


def _bounds(region: Region, shape: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple(part.indices(size)[:2] for part, size in zip(region, shape, strict=True))


def _whole(bounds: Sequence[tuple[int, int]], shape: Sequence[int], chunk: Sequence[int]) -> bool:
    """Whether a region begins and ends where chunks do."""
    return all(
        start % step == 0 and (stop % step == 0 or stop == size) if step else True
        for (start, stop), size, step in zip(bounds, shape, chunk, strict=True)
    )
