"""Copies of a whole store, whole or no store at all. docs/wdbx-format.md, "Operations", back up."""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from abi_jax.errors import InputError
from abi_jax.wdbx.collect import collect
from abi_jax.wdbx.crypto.keyring import KEYS_FILE
from abi_jax.wdbx.errors import DamagedError, WdbxError
from abi_jax.wdbx.history import FOLDER as HISTORY
from abi_jax.wdbx.history import history_head
from abi_jax.wdbx.load import STORE_FILE, read_logs, read_manifest, read_store, step_name
from abi_jax.wdbx.log.order import Logs
from abi_jax.wdbx.manifest import Sealed, manifest_name
from abi_jax.wdbx.pins import EVERYTHING, held, hold
from abi_jax.wdbx.storage.base import FOLDERS
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.storage.lock import LOCK_FILE
from abi_jax.wdbx.storage.place import folder_of
from abi_jax.wdbx.stored_lists import FOLDER as INDEXES
from abi_jax.wdbx.stored_lists import index_name
from abi_jax.wdbx.transfer.replace import Progress, Replacement
from abi_jax.wdbx.witness import HEAD_FILE, Witness

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

    storage: LocalStorage
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
    storage: LocalStorage, there: LocalStorage, version: int, progress: Progress = lambda size: None
) -> Copied:
    """Copies a store up to `version` to `there`; nobody may seal meanwhile. Every file is checked as it is copied.

    Where there is an older backup, what it has already is not copied again, and it stays as it is until all that is new
    is on disk. Raises `InputError` where there is another store, one that has gone on by itself, or something else,
    `LockedError` where somebody writes to it, `DamagedError` where a file is not as it was sealed.
    """
    _refuse_others(storage, there)
    source = _source(storage, version)
    try:
        there.make()
        lock = there.lock()
        began, done = False, False
        try:
            older = _older(source, there)
            coming = Replacement(there, progress)
            try:
                copied = _copy(source, there, coming)
                done = True
            except BaseException:
                began = coming.began
                with contextlib.suppress(OSError, WdbxError):
                    coming.drop()
                    if older is not None and not began:
                        collect(there, older, held(there))
                raise
            with contextlib.suppress(OSError, WdbxError):  # what an older backup held goes with the next one
                collect(there, source.sealed, held(there))
        finally:
            lock.release(closed=done, began=began)
    except OSError as error:
        raise InputError(f"{error.filename or there} cannot be read or written: {error.strerror}") from error
    return copied


def _refuse_others(storage: LocalStorage, there: LocalStorage) -> None:
    own, target = storage.root.resolve(), there.root.resolve()
    if target == own or own in target.parents:
        raise InputError(f"{there} is in the store itself; expected another place")
    if target.is_file():
        raise InputError(f"{there} is a file; expected a folder, or a path where nothing is yet")
    if there.read(STORE_FILE) is not None:
        if read_store(there) != read_store(storage):
            raise InputError(f"{there} holds another store; expected a backup of this one, or an empty folder")
    elif strange := [name for name in there.names("") if name not in (*FOLDERS, HEAD_FILE, KEYS_FILE, LOCK_FILE)]:
        raise InputError(f"{there} is not empty: it has {strange[0]}; expected a backup of this store, or nothing")


def _source(storage: LocalStorage, version: int) -> _Source:
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
    manifest = read_manifest(LocalStorage(storage.root), at, digest) if at else None
    return _Source(storage, logs, found, Sealed(manifest, digest), keys)


def _older(source: _Source, there: LocalStorage) -> Sealed | None:
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


def _copy(source: _Source, there: LocalStorage, coming: Replacement) -> Copied:
    copied = kept = 0
    manifest = source.sealed.manifest
    for number, step in sorted(manifest.segments.items()) if manifest else ():
        name = step_name(number)
        new, old = coming.copy_step(source.storage.root / name, name, step.files)
        copied, kept = copied + new, kept + old
    for number, index in sorted(manifest.indexes.items()) if manifest else ():
        name = index_name(number)
        try:
            new, old = coming.copy_step(source.storage.root / name, name, index.files)
            copied, kept = copied + new, kept + old
        except DamagedError as error:  # it can be made again, and must not stand in the way of all else
            logger.warning("an index is left out: %s", error)
    for name, digest in source.others():
        size, copy = coming.copy(source.storage.root / name, name, digest)
        copied, kept = copied + (size if copy else 0), kept + (0 if copy else size)
    for folder in ("segments", INDEXES, "manifests", HISTORY):
        there.operations.sync_folder(there.root / folder)
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
    """Makes a store at `path`, where there must be none, of a backup; every file is checked on the way."""
    source, target = LocalStorage(folder_of(backup)), LocalStorage(folder_of(path))
    store = read_store(source)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.listdir(target.root):
            raise InputError(f"{target} is not empty; expected a path where nothing is yet")
    looking = hold(source, EVERYTHING)
    try:
        return copy_store(source, target, read_logs(source, store).version)
    except BaseException:
        shutil.rmtree(target.root, ignore_errors=True)
        raise
    finally:
        if looking is not None:
            looking.release()
