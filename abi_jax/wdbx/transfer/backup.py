"""Copies of a whole store, whole or no store at all. docs/wdbx-format.md, "Operations", back up."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from abi_jax.errors import InputError
from abi_jax.files import sync_folder
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.history import FOLDER as HISTORY
from abi_jax.wdbx.load import STORE_FILE, read_manifest, read_store, step_name
from abi_jax.wdbx.log.file import LOG_HEAD, parse_log_head, scan
from abi_jax.wdbx.log.record import Kind
from abi_jax.wdbx.manifest import Manifest, manifest_name
from abi_jax.wdbx.storage.base import FOLDERS
from abi_jax.wdbx.storage.local import PARTIAL, LocalStorage
from abi_jax.wdbx.witness import HEAD_FILE, Witness

COPIED_AT_ONCE = 1 << 22
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Copied:
    """What a backup holds: its last version; bytes that were copied, and those that were there already."""

    version: int
    copied: int
    kept: int


@dataclass(frozen=True)
class _Logs:
    """Log files cut off behind a version, and the manifest that is in force there."""

    files: Mapping[str, bytes]
    version: int
    link: bytes
    epoch: int
    manifest: tuple[int, bytes]


def copy_store(storage: LocalStorage, target: Path, version: int, progress: Progress = lambda size: None) -> Copied:
    """Copies a store up to `version`; nobody may seal meanwhile. Every file is checked as it is copied.

    A file that is in `target` already, and is the same, is not copied again. While files change places there is no
    store in `target`; before that, the one that was there stays. Raises `InputError` where `target` is another store,
    or something else, `DamagedError` where a file is not as it was sealed.
    """
    _refuse_others(storage, target)
    logs = _logs(storage, version)
    manifest = read_manifest(LocalStorage(storage.root), *logs.manifest) if logs.manifest[0] else None
    there = LocalStorage(target)
    there.make()
    sizes = [
        _copy(storage.root / name, target / name, digest, progress) for name, digest in _sealed(storage, manifest, logs)
    ]
    (target / STORE_FILE).unlink(missing_ok=True)
    sync_folder(target)
    for name in there.names("log"):
        there.delete(f"log/{name}")
    for name, data in logs.files.items():
        there.put(f"log/{name}", data)
    there.put(HEAD_FILE, Witness(logs.version, logs.link.hex(), logs.epoch, closed=True).encode())
    for name in storage.names(""):
        if (storage.root / name).is_file() and name not in (STORE_FILE, HEAD_FILE, "lock"):
            there.put(name, (storage.root / name).read_bytes())
    _tidy(there, manifest, logs)
    there.put(STORE_FILE, (storage.root / STORE_FILE).read_bytes())
    return Copied(logs.version, sum(size for size, new in sizes if new), sum(size for size, new in sizes if not new))


def _refuse_others(storage: LocalStorage, target: Path) -> None:
    if target.resolve() == storage.root.resolve() or storage.root.resolve() in target.resolve().parents:
        raise InputError(f"{target} is in the store itself; expected another place")
    if target.is_file():
        raise InputError(f"{target} is a file; expected a folder, or a path where nothing is yet")
    there = LocalStorage(target)
    if there.read(STORE_FILE) is not None:
        if read_store(there) != read_store(storage):
            raise InputError(f"{target} holds another store; expected a backup of this one, or an empty folder")
    elif strange := [name for name in there.names("") if name not in (*FOLDERS, HEAD_FILE, "keys.json")]:
        raise InputError(f"{target} is not empty: it has {strange[0]}; expected a backup of this store, or nothing")


def _logs(storage: LocalStorage, version: int) -> _Logs:
    files: dict[str, bytes] = {}
    manifest, link, last, epoch = (0, bytes(32)), bytes(32), 0, 0
    for name in storage.names("log"):
        data = storage.read(f"log/{name}") or b""
        head = parse_log_head(data)
        if head is None:
            raise DamagedError(f"{storage}/log/{name} does not begin as a log does; see abi wdbx verify")
        if head.first > version + 1:
            continue
        found = scan(head, data)
        if found.damaged_version and found.damaged_version <= version:
            raise DamagedError(f"{storage}/log/{name}: version {found.damaged_version} is damaged; see abi wdbx verify")
        kept = [record for record in found.records if record.head.version <= version]
        files[name] = data[: found.ends[len(kept) - 1] if kept else LOG_HEAD.size]
        link, last, epoch = (kept[-1].head.link if kept else head.link), head.first + len(kept) - 1, head.epoch
        if head.manifest:
            manifest = head.manifest, head.manifest_hash
        for record in kept:
            if record.head.kind is Kind.SEAL:
                said = json.loads(record.payload)
                manifest = said["version"], bytes.fromhex(said["hash"])
    if not files or last < version:
        raise InputError(f"version {version} is sealed; a backup can be of versions that the log has")
    return _Logs(files, last, link, epoch, manifest)


def _sealed(storage: LocalStorage, manifest: Manifest | None, logs: _Logs) -> Iterator[tuple[str, str]]:
    """Names and hashes of the files that a manifest names, and its own."""
    if manifest is None:
        return
    for number, step in sorted(manifest.segments.items()):
        for path, digest in step.files.items():
            yield f"{step_name(number)}/{path}", digest
    for name, entry in manifest.history.items():
        yield f"{HISTORY}/{name}", entry.digest
    for name in _manifests(storage, manifest, logs):
        yield name, hashlib.sha256(storage.read(name) or b"").hexdigest()


def _manifests(storage: LocalStorage, manifest: Manifest, logs: _Logs) -> list[str]:
    """The manifest in force, and the one before it, where that is still there."""
    names = [manifest_name(*logs.manifest)]
    if manifest.previous is not None:
        before = manifest_name(manifest.previous[0], bytes.fromhex(manifest.previous[1]))
        names += [before] if storage.read(before) is not None else []
    return names


def _copy(source: Path, target: Path, digest: str, progress: Progress) -> tuple[int, bool]:
    """Copies a file unless it is there; its size, and whether it was copied."""
    size = source.stat().st_size if source.exists() else -1
    if target.is_file() and target.stat().st_size == size and _digest(target) == digest:
        progress(size)
        return size, False
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{PARTIAL}{uuid4().hex}")
    try:
        hashed = hashlib.sha256()
        with source.open("rb") as read, partial.open("xb") as file:
            while data := read.read(COPIED_AT_ONCE):
                hashed.update(data)
                file.write(data)
                progress(len(data))
            file.flush()
            os.fsync(file.fileno())
        if hashed.hexdigest() != digest:
            raise DamagedError(f"{source} is not what was sealed; see abi wdbx verify")
        partial.replace(target)
    except FileNotFoundError:
        raise DamagedError(f"{source} is missing; see abi wdbx verify") from None
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(target.parent)
    return size, True


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tidy(there: LocalStorage, manifest: Manifest | None, logs: _Logs) -> None:
    """Takes away what an older backup held and this one does not."""
    for name in there.partial():
        there.delete(name)
    kept = {f"{HISTORY}/{name}" for name in (manifest.history if manifest else ())}
    kept |= {step_name(number) for number in (manifest.segments if manifest else ())}
    kept |= set(_manifests(there, manifest, logs)) if manifest else set()
    for folder in ("segments", "manifests", HISTORY, "indexes", "pins"):
        for name in there.names(folder):
            if f"{folder}/{name}" not in kept:
                there.delete(f"{folder}/{name}")
    for folder in (*FOLDERS, *sorted(kept)):
        for path in [there.root / folder, *(there.root / folder).rglob("*")]:
            if path.is_dir():
                sync_folder(path)


def restore(backup: str | Path, path: str | Path) -> Copied:
    """Makes a store at `path`, where there must be none, of a backup; every file is checked on the way."""
    source, target = LocalStorage(Path(backup)), Path(path)
    read_store(source)
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if os.listdir(target):
            raise InputError(f"{target} is not empty; expected a path where nothing is yet")
    newest = max(int(name.split("-")[0]) for name in source.names("log"))
    last = _last_version(source, newest)
    try:
        return copy_store(source, target, last)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _last_version(storage: LocalStorage, first: int) -> int:
    last = first - 1
    for name in storage.names("log"):
        data = storage.read(f"log/{name}") or b""
        head = parse_log_head(data)
        if head is not None:
            last = max(last, scan(head, data).next_version - 1)
    return last
