"""Heads of versions whose log is gone: 128 bytes each, one after the other."""

import hashlib
from collections.abc import Iterator, Mapping

from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.log.record import HEAD, Head, parse_head
from abi_jax.wdbx.manifest import HistoryEntry, Manifest
from abi_jax.wdbx.storage.base import Storage

FOLDER = "history"


def add_history(storage: Storage, before: Mapping[str, HistoryEntry], heads: list[Head]) -> dict[str, HistoryEntry]:
    """What a manifest says of history when `heads`, oldest first, come behind it.

    They are written with those before them that are no more, so that there are few files however often is sealed.
    """
    made, newest = dict(before), heads
    for name, entry in sorted(before.items(), reverse=True):
        if not heads or entry.last - entry.first >= len(newest):
            break
        newest = parse_history(f"{storage}/{FOLDER}/{name}", storage.read(f"{FOLDER}/{name}"), entry) + newest
        del made[name]
    if newest:
        name, entry = write_history(storage, newest)
        made[name] = entry
    return made


def write_history(storage: Storage, heads: list[Head]) -> tuple[str, HistoryEntry]:
    """Writes heads, oldest first, to a file of their own; its name and what a manifest says of it."""
    data = b"".join(head.encode() for head in heads)
    name = f"{heads[0].version:020d}-{heads[-1].version:020d}.bin"
    storage.put(f"{FOLDER}/{name}", data)
    return name, HistoryEntry(heads[0].version, heads[-1].version, hashlib.sha256(data).hexdigest())


def read_history(storage: Storage, manifest: Manifest | None, newest_first: bool = False) -> Iterator[Head]:
    """All heads that a manifest's history has. Raises `DamagedError` where a file is not as it was written."""
    entries = sorted(manifest.history.items() if manifest else (), key=lambda each: each[1].first, reverse=newest_first)
    for name, entry in entries:
        heads = parse_history(f"{storage}/{FOLDER}/{name}", storage.read(f"{FOLDER}/{name}"), entry)
        yield from reversed(heads) if newest_first else heads


def parse_history(name: str, data: bytes | None, entry: HistoryEntry) -> list[Head]:
    """The heads in a file of history."""
    if data is None:
        raise DamagedError(f"{name} is missing: versions {entry.first} to {entry.last}")
    heads = [parse_head(data[at : at + HEAD.size]) for at in range(0, len(data), HEAD.size)]
    if hashlib.sha256(data).hexdigest() != entry.digest or None in heads:
        raise DamagedError(f"{name} is damaged: versions {entry.first} to {entry.last}")
    return [head for head in heads if head is not None]


def history_head(storage: Storage, manifest: Manifest | None, version: int) -> Head:
    """The head of a version that is sealed."""
    for name, entry in manifest.history.items() if manifest else ():
        if entry.first <= version <= entry.last:
            return parse_history(f"{storage}/{FOLDER}/{name}", storage.read(f"{FOLDER}/{name}"), entry)[
                version - entry.first
            ]
    raise DamagedError(f"{storage}: version {version} is in no file of history")
