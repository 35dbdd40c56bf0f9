"""Copies of a whole store, whole or no store at all. docs/wdbx-format.md, "Operations", back up."""

import contextlib
import logging
from collections.abc import Collection, Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from abi_jax.errors import InputError
from abi_jax.wdbx.collect import collect
from abi_jax.wdbx.crypto.keyring import KEYS_FILE
from abi_jax.wdbx.errors import DamagedError, StorageError, WdbxError
from abi_jax.wdbx.history import FOLDER as HISTORY
from abi_jax.wdbx.history import history_head
from abi_jax.wdbx.load import STORE_FILE, read_logs, read_manifest, read_store, step_name
from abi_jax.wdbx.log.order import Logs
from abi_jax.wdbx.manifest import Sealed, manifest_name
from abi_jax.wdbx.pins import EVERYTHING, held, hold
from abi_jax.wdbx.storage.base import FOLDERS, Storage
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.storage.lock import LOCK_FILE
from abi_jax.wdbx.storage.place import open_storage, place_of
from abi_jax.wdbx.stored_lists import FOLDER as INDEXES
from abi_jax.wdbx.stored_lists import index_name
from abi_jax.wdbx.transfer.replace import Progress, Replacement
from abi_jax.wdbx.witness import HEAD_FILE, Witness

if TYPE_CHECKING:
    from abi_jax.wdbx.transfer.replace_objects import ObjectReplacement

logger = logging.getLogger("abi_jax.wdbx")


@dataclass(frozen=True)
class Copied:
    """What a backup holds: its last version; bytes that were copied, and those that were there already."""

    version: int
    copied: int
    kept: int


@dataclass(frozen=True)
class _Source:
    """What is copied: logs cut off behind a version, and their bytes, the manifest in force there, and data keys."""

    storage: Storage
    logs: Logs
    files: dict[str, bytes]
    sealed: Sealed
    keys: bytes | None

    def link(self, version: int) -> bytes:
        """The link of a version that there is."""
        first = self.logs.scans[0].head
        if version >= first.first:
            return self.logs.records[version - first.first].head.link
        if version == first.first - 1:
            return first.link
        return history_head(self.storage, self.sealed.manifest, version).link

    def others(self) -> Iterator[tuple[str, str]]:
        """Names and hashes of what a manifest names beside steps, and its own; of the one before, if it is there."""
        manifest = self.sealed.manifest
        if manifest is None:
            return
        for name, entry in manifest.history.items():
            yield f"{HISTORY}/{name}", entry.digest
        before = manifest.previous
        names = [self.sealed.name] + ([] if before is None else [manifest_name(before[0], bytes.fromhex(before[1]))])
        for name in names:
            digest = self.storage.digest(name)
            if digest is not None:
                yield name, digest
            elif name == self.sealed.name:
                raise DamagedError(f"{self.storage}/{name} is missing; see abi wdbx verify")


def copy_store(
    storage: Storage, there: Storage, version: int, progress: Progress = lambda size: None, new: bool = False
) -> Copied:
    """Copies a store up to `version` to `there`; nobody may seal meanwhile. Every file is checked as it is copied.

    Each may be a folder or a store of objects. Where there is an older backup, what it has already is not copied again,
    and it stays as it is until all that is new is there. new: nothing may be there, and nothing is left of a copy that
    fails; what somebody else puts there meanwhile stays as it is. Raises `InputError` where there is another store, one
    that has gone on by itself, or something else, `LockedError` where somebody writes to it, `DamagedError` where a
    file is not as it was sealed.
    """
    _refuse_others(storage, there)
    source = _source(storage, version)
    try:
        there.make()
        lock = there.lock()
        began, done = False, False
        try:
            if new:
                _refuse_filled(there, (LOCK_FILE, *FOLDERS))
            older = _older(source, there)
            coming = _replacement(storage, there, progress)
            try:
                copied = _copy(source, there, coming)
                done = True
            except BaseException:
                began = coming.began
                with contextlib.suppress(OSError, WdbxError):
                    if there.holds(lock):
                        coming.drop()
                    if older is not None and not began:
                        collect(there, older, held(there))
                    if new and there.holds(lock):
                        _remove(there)
                raise
            with contextlib.suppress(OSError, WdbxError):  # what an older backup held goes with the next one
                collect(there, source.sealed, held(there))
        finally:
            lock.release(closed=done, began=began)
    except StorageError:
        raise
    except OSError as error:
        raise InputError(f"{error.filename or there} cannot be read or written: {error.strerror}") from error
    return copied


def _replacement(source: Storage, there: Storage, progress: Progress) -> "Replacement | ObjectReplacement":
    if isinstance(there, LocalStorage):
        return Replacement(source, there, progress)
    from abi_jax.wdbx.storage.objects import ObjectStorage
    from abi_jax.wdbx.transfer.replace_objects import ObjectReplacement

    assert isinstance(there, ObjectStorage)
    return ObjectReplacement(source, there, progress)


def _refuse_others(storage: Storage, there: Storage) -> None:
    if f"{_place(there)}/".startswith(f"{_place(storage)}/"):
        raise InputError(f"{there} is in the store itself; expected another place")
    there.refuse_file()
    if there.read(STORE_FILE) is not None:
        if read_store(there) != read_store(storage):
            raise InputError(f"{there} holds another store; expected a backup of this one, or an empty folder")
    elif strange := [name for name in there.names("") if name not in (*FOLDERS, HEAD_FILE, KEYS_FILE, LOCK_FILE)]:
        raise InputError(f"{there} is not empty: it has {strange[0]}; expected a backup of this store, or nothing")


def _refuse_filled(there: Storage, own: Collection[str]) -> None:
    """Raises `InputError` where something is there. own: names that count as nothing; folders while they are empty."""
    for name in there.all_names(""):
        if name not in own or there.all_names(name):
            raise InputError(f"{there} is not empty: it has {name}; expected a path where nothing is yet")


def _remove(there: Storage) -> None:
    """Takes a folder away that this process has locked, the lock last: until then nobody else begins a store in it."""
    if isinstance(there, LocalStorage):
        for name in there.all_names(""):
            if name != LOCK_FILE:
                there.operations.remove_tree(there.root / name)
                there.operations.remove(there.root / name)
        there.operations.remove(there.root / LOCK_FILE)
        there.root.rmdir()


def _place(storage: Storage) -> str:
    return str(storage.root.resolve()) if isinstance(storage, LocalStorage) else str(storage).rstrip("/")


def _source(storage: Storage, version: int) -> _Source:
    logs = read_logs(storage, read_store(storage)).up_to(version)
    at, digest = logs.manifest
    if not logs.scans or logs.version < version or logs.scans[0].head.first > at + 1:
        raise InputError(f"version {version} is sealed; a backup can be of versions that the log has")
    logs = Logs([each for each in logs.scans if each.next_version > at + 1 or each is logs.newest])
    found = {each.head.name: (storage.read(f"log/{each.head.name}") or b"")[: each.end] for each in logs.scans}
    keys = storage.read(KEYS_FILE)
    # A log that is there now was there when data keys were read, and these go after what they encrypt.
    if any(storage.read(f"log/{name}") is None for name in found):
        raise InputError(f"version {version} is sealed; a backup can be of versions that the log has")
    plain = copy(storage)
    plain.ring = None  # what is sealed is copied as it is
    manifest = read_manifest(plain, at, digest) if at else None
    return _Source(storage, logs, found, Sealed(manifest, digest), keys)


def _older(source: _Source, there: Storage) -> Sealed | None:
    """What is sealed in an older backup, None where there is none. Raises `InputError` where it has gone on."""
    if there.read(STORE_FILE) is None:
        return None
    try:
        logs = read_logs(there, read_store(there))
        version, digest = logs.manifest
        sealed = Sealed(read_manifest(there, version, digest) if version else None, digest)
    except DamagedError as error:
        raise InputError(f"{error}; expected a backup that is whole, or another place") from None
    if logs.version > source.logs.version:
        raise InputError(
            f"{there} is of version {logs.version} already; expected a backup of at most {source.logs.version}, or "
            "another place"
        )
    if source.link(logs.version) != logs.link:
        raise InputError(
            f"{there} has gone on by itself: its version {logs.version} is not that of {source.storage}; expected a "
            "backup that nobody has written to, or another place"
        )
    return sealed


def _copy(source: _Source, there: Storage, coming: "Replacement | ObjectReplacement") -> Copied:
    copied = kept = 0
    manifest = source.sealed.manifest
    for number, step in sorted(manifest.segments.items()) if manifest else ():
        name = step_name(number)
        new, old = coming.copy_step(name, step.files)
        copied, kept = copied + new, kept + old
    for number, index in sorted(manifest.indexes.items()) if manifest else ():
        name = index_name(number)
        try:
            new, old = coming.copy_step(name, index.files)
            copied, kept = copied + new, kept + old
        except DamagedError as error:  # it can be made again, and must not stand in the way of all else
            logger.warning("an index is left out: %s", error)
    for name, digest in source.others():
        size, new_file = coming.copy(name, digest)
        copied, kept = copied + (size if new_file else 0), kept + (0 if new_file else size)
    coming.settle(["segments", INDEXES, "manifests", HISTORY])
    logs = source.logs
    for name, data in source.files.items():
        coming.put(f"log/{name}", data)
    witness = Witness(logs.version, logs.link.hex(), logs.newest.head.epoch, closed=True)
    coming.put(HEAD_FILE, witness.encode())
    if source.keys is not None:
        coming.put(KEYS_FILE, source.keys)
    coming.put(STORE_FILE, source.storage.read(STORE_FILE) or b"")
    coming.switch([f"log/{name}" for name in there.names("log") if name not in source.files])
    return Copied(logs.version, copied, kept)


def restore(backup: str | Path, path: str | Path) -> Copied:
    """Makes a store at `path`, where there must be none, of a backup; every file is checked on the way.

    Both are paths or URLs.
    """
    source, target = open_storage(backup), place_of(path)
    store = read_store(source)
    # A lock that is no file is left of a copy that was interrupted.
    _refuse_filled(target, () if isinstance(target, LocalStorage) else (LOCK_FILE,))
    looking = hold(source, EVERYTHING)
    try:
        return copy_store(source, target, read_logs(source, store).version, new=True)
    finally:
        if looking is not None:
            looking.release()
