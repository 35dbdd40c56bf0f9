"""A store in a folder of this machine: whole files by rename, a log that grows, steps of arrays."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.keyring import Keyring
from abi_jax.wdbx.crypto.steps import open_step, seal_step
from abi_jax.wdbx.log.file import epoch_of
from abi_jax.wdbx.storage.arrays import open_arrays
from abi_jax.wdbx.storage.base import FOLDERS
from abi_jax.wdbx.storage.lock import WriterLock, take, taken
from abi_jax.wdbx.storage.operations import FileOperations, LogFile
from abi_jax.wdbx.storage.pin_file import PinFile, read_pin, write_pin
from abi_jax.wdbx.storage.step_files import file_hashes

PARTIAL = ".tmp-"  # what such a name stands for is not finished, and means nothing
PIN_ATTEMPTS = 5
READ_AT_ONCE = 4 << 20  # bytes: whoever hashes less at once asks for the interpreter, and waits for it, more often


class LocalStorage:
    """Files of a store by their names, such as `manifests/00000000000000000007.json`.

    ring: the data keys of an encrypted store, whose steps are sealed here; None for a plain one.
    """

    tears = True
    overhead = 0

    def __init__(self, root: Path, operations: FileOperations | None = None) -> None:
        self.root = root.absolute()  # wherever this process goes
        self.operations = operations or FileOperations()
        self.ring: Keyring | None = None
        self.reserved: set[int] = set()  # steps of imports that go on
        self._numbering = threading.Lock()
        self._last_step = 0
        self._saving: set[str] = set()  # what names of what is being written begin with meanwhile

    def __str__(self) -> str:
        return str(self.root)

    def refuse_file(self) -> None:
        """Raises `InputError` where no store can be made, since there is a file instead of a folder."""
        for path in (self.root, *self.root.parents):
            if path.exists() and not path.is_dir():
                raise InputError(f"{path} is a file; expected a WDBX store, or a path where none is yet")

    def make(self) -> None:
        """Makes the folders of a store, if they are not there."""
        missing = [folder for folder in (self.root, *self.root.parents) if not folder.is_dir()]
        for folder in reversed(missing):
            self.operations.make_folder(folder)
            self.operations.sync_folder(folder.parent)
        for name in FOLDERS:
            self.operations.make_folder(self.root / name)
        self.operations.sync_folder(self.root)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_log(self, name: str) -> bytes | None:
        """The content of a log, all of it on disk when this returns; None where there is none.

        So nothing is built on, or shown, that a power cut could still take: whoever wrote it may have died before it
        was brought to disk, or may be waiting for that.
        """
        while (data := self.read(name)) is not None:
            with contextlib.suppress(FileNotFoundError):
                self.operations.sync(self.root / name)
            if self.size(name) >= len(data):
                return data  # else its writer took back what did not fit on the disk
        return None

    def size(self, name: str) -> int:
        """Bytes of a file, or of all files of a folder; 0 where there is none."""
        path = self.root / name
        files = [path / each for each in self.paths(name)] if path.is_dir() else [path]
        size = 0
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                size += file.stat().st_size
        return size

    def names(self, folder: str) -> list[str]:
        """Names of what is finished in a folder, sorted, without the folder's own."""
        return [name for name in self.all_names(folder) if not name.startswith(PARTIAL)]

    def partial(self) -> list[str]:
        """Names of everything that was begun and not finished, but what is being written."""
        return [
            f"{folder}/{name}".lstrip("/")
            for folder in ("", *FOLDERS)
            for name in self.all_names(folder)
            if name.startswith(PARTIAL) and not name.startswith(tuple(self._saving))
        ]

    def all_names(self, folder: str) -> list[str]:
        """Names of everything in a folder, sorted, finished or not."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(os.listdir(self.root / folder))
        return []

    def put(self, name: str, data: bytes) -> None:
        """Writes a file, or replaces it: whole and durable, or not at all."""
        path, partial = self._paths(name)
        with self._writing(partial):
            try:
                self.operations.create(partial, data)
                self.operations.sync(partial)
                self.operations.rename(partial, path)
            except OSError:
                self._forget(partial)
                raise
        self.operations.sync_folder(path.parent)

    def put_new(self, name: str, data: bytes) -> bool:
        """Writes a file that is not there, whole and durable. False where there is one, which stays."""
        path, partial = self._paths(name)
        with self._writing(partial):
            try:
                self.operations.create(partial, data)
                self.operations.sync(partial)
                self.operations.link(partial, path)
            except FileExistsError:
                return False
            finally:
                self._forget(partial)
        self.operations.sync_folder(path.parent)
        return True

    def append_to(self, name: str) -> LogFile:
        """Opens a file that is there, to add to it."""
        return self.operations.open_log(self.root / name)

    def delete(self, name: str) -> None:
        """Takes a file or a folder away, if it is there. A folder is gone at once, whatever happens then."""
        path, partial = self._paths(name)
        if path.is_dir():
            with self._writing(partial):
                self.operations.rename(path, partial)
                self.operations.remove_tree(partial)
        else:
            self.operations.remove(path)

    def settle(self) -> None:
        """Waits until what was deleted will not come back."""
        for name in FOLDERS:
            with contextlib.suppress(FileNotFoundError):  # a copy may lack folders that are empty
                self.operations.sync_folder(self.root / name)

    def save(self, name: str, arrays: Mapping[str, np.ndarray], tenant: str) -> dict[str, str]:
        """Writes a step of arrays: whole and durable, or not at all. tenant: whose they are, "" for the store's.

        SHA-256 of its files by their path in it; they are hashed while the disk is waited for.
        """
        path, partial = self._paths(name)
        if self.ring is not None:
            arrays = seal_step(self.ring, name, arrays, tenant)
        with self._writing(partial):
            try:
                self.operations.save_arrays(partial, arrays)
                with ThreadPoolExecutor(1, thread_name_prefix="wdbx-hashes") as pool:
                    hashing = pool.submit(file_hashes, self, partial.relative_to(self.root).as_posix())
                    self.operations.sync_tree(partial)
                hashes = hashing.result()
                self.operations.rename(partial, path)
            except OSError:
                with contextlib.suppress(OSError):
                    self.operations.remove_tree(partial)
                raise
        self.operations.sync_folder(path.parent)
        return hashes

    def next_step(self, reserve: bool = False) -> int:
        """A number that no step has or had since the store was opened. reserve: until it is no longer in `reserved`."""
        with self._numbering:
            self._last_step = max([self._last_step, *(int(name) for name in self.names("segments"))]) + 1
            if reserve:
                self.reserved.add(self._last_step)
            return self._last_step

    def load(self, name: str, files: Iterable[str]) -> Mapping[str, np.ndarray]:
        """The arrays of a step: mapped, or, encrypted, opened when they are first asked for. files: its own."""
        arrays = open_arrays(self.root / name, files)
        return arrays if self.ring is None else open_step(self.ring, name, arrays)

    def paths(self, name: str) -> list[str]:
        """Every file of a folder, such as a step, by its path in it, sorted; those that go meanwhile may be missing."""
        folder = self.root / name
        found = [Path(at) / file for at, _, files in os.walk(folder) for file in files]
        return [file.relative_to(folder).as_posix() for file in sorted(found)]

    def digest(self, name: str) -> str | None:
        """SHA-256 of a file, hexadecimal; None where there is none."""
        try:
            hashed, held = hashlib.sha256(), bytearray(min(READ_AT_ONCE, (self.root / name).stat().st_size + 1))
            with (self.root / name).open("rb", buffering=0) as file:
                while size := file.readinto(held):
                    hashed.update(memoryview(held)[:size])
            return hashed.hexdigest()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def lock(self) -> WriterLock:
        """Makes this process the one that writes, until what is returned is released or the process ends.

        Raises `LockedError` where another one does.
        """
        return take(self.root, self.operations)

    def holds(self, lock: WriterLock) -> bool:
        """Whether what `lock` returned still keeps others from writing; never in a fork."""
        return lock.holds(self.root)

    def newest_epoch(self) -> int:
        """The highest epoch of a log, 0 for none: a file system may have lost its locks."""
        return max((epoch_of(name) for name in self.names("log")), default=0)

    def written(self) -> bool:
        """Whether some process has the store open for writing. One that just begins waits for the answer."""
        return taken(self.root)

    def pin(self, data: bytes) -> PinFile | None:
        """Writes a pin that says `data`; it is held until it is released. None where nothing can be written."""
        for _ in range(PIN_ATTEMPTS):
            path, partial = self._paths(f"pins/{uuid4().hex}")
            with contextlib.suppress(OSError):  # a copy may lack folders that are empty
                self.operations.make_folder(path.parent)
            with contextlib.suppress(FileNotFoundError):  # it was taken for what a crash left
                return write_pin(path, partial, data)
        return None

    def pins(self) -> dict[str, bytes]:
        """Pins that are held, by name, and what they say; takes away those of readers that are gone."""
        held = ((name, read_pin(self.root / "pins" / name)) for name in self.names("pins"))
        return {f"pins/{name}": said for name, said in held if said is not None}

    def _paths(self, name: str) -> tuple[Path, Path]:
        path = self.root / name
        return path, path.with_name(f"{PARTIAL}{uuid4().hex}")

    @contextlib.contextmanager
    def _writing(self, partial: Path) -> Iterator[None]:
        """Nothing in this process takes `partial` for what was left while the block runs."""
        self._saving.add(partial.name)
        try:
            yield
        finally:
            self._saving.discard(partial.name)

    def _forget(self, partial: Path) -> None:
        with contextlib.suppress(OSError):
            self.operations.remove(partial)
