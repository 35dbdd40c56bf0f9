"""How large a store is, and what of it is there for whom."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from abi_jax.wdbx.contents import Collection, Contents
from abi_jax.wdbx.storage.base import FOLDERS, Storage


@dataclass(frozen=True)
class CollectionStats:
    """A collection. dead: rows that are kept for older versions. horizon: the first version that can be read.

    tail: rows that only the log holds. indexed: segments whose lists are stored. vector_bytes: of live rows.
    """

    name: str
    rows: int
    dead: int
    tail: int
    segments: int
    indexed: int
    horizon: int
    vector_bytes: int


@dataclass(frozen=True)
class Stats:
    """A store. bytes: on disk, by folder; `unsealed`: of the log. pins: versions that are being read."""

    version: int
    manifest: int
    collections: tuple[CollectionStats, ...]
    bytes: dict[str, int]
    unsealed: int
    tags: dict[str, int]
    pins: tuple[int, ...]
    sealing: bool

    @property
    def total_bytes(self) -> int:
        """Bytes on disk."""
        return sum(self.bytes.values())

    @property
    def rows(self) -> int:
        """Live rows of all collections."""
        return sum(each.rows for each in self.collections)


def measure(
    storage: Storage, contents: Contents, manifest: int, unsealed: int, pins: Iterable[int], sealing: bool
) -> Stats:
    """The statistics of a store that is open."""
    files = sum(storage.size(name) for name in storage.all_names("") if name not in FOLDERS)
    sizes = {"store": files} | {folder: storage.size(folder) for folder in FOLDERS}
    found = tuple(
        _collection(each, contents.version) for each in list(contents.collections.values()) if not each.dropped
    )
    return Stats(contents.version, manifest, found, sizes, unsealed, dict(contents.tags), tuple(sorted(pins)), sealing)


def _collection(collection: Collection, version: int) -> CollectionStats:
    rows = collection.rows
    alive = [np.count_nonzero(each.alive(version)) for each in rows.segments]
    alive.append(np.count_nonzero(rows.tail.alive(rows.tail.count, version)))
    there = sum(map(len, rows.segments)) + rows.tail.count
    spec, live = collection.spec, int(sum(alive))
    return CollectionStats(
        spec.name,
        live,
        there - live,
        rows.tail.count,
        len(rows.segments),
        sum(each.stored_lists is not None for each in rows.segments),
        collection.horizon,
        live * spec.dim * spec.numpy_dtype.itemsize,
    )
