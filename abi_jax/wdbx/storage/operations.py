"""What a store asks of a file system: one small operation a method, so that a test can stop the world at each."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np

from abi_jax.files import sync_folder
from abi_jax.wdbx.storage.arrays import save_arrays

COPIED_AT_ONCE = 1 << 22  # bytes
SYNCED_AT_ONCE = 8  # files


class LogFile(Protocol):
    """A file that grows at its end."""

    def append(self, *parts: bytes) -> None:
        """Adds `parts`, one after the other. What an error leaves of them is to be truncated."""

    def sync(self) -> None:
        """Waits until everything appended is on disk."""

    def truncate(self, size: int) -> None:
        """Cuts the file off after `size` bytes."""

    def close(self) -> None:
        """Lets go of the file."""


class FileOperations:
    """The operations, done. Nothing is durable before `sync` of the file and `sync_folder` of where its name is."""

    def create(self, path: Path, data: bytes) -> None:
        """Writes a new file. Raises `FileExistsError` where there is one."""
        with path.open("xb") as file:
            file.write(data)

    def copy(self, source: Path, target: Path, progress: Callable[[int], None] = lambda size: None) -> str:
        """Writes a new file that holds what another does; its SHA-256, hexadecimal. progress: is told of every part."""
        hashed = hashlib.sha256()
        with source.open("rb") as read, target.open("xb") as file:
            while data := read.read(COPIED_AT_ONCE):
                hashed.update(data)
                file.write(data)
                progress(len(data))
        return hashed.hexdigest()

    def sync(self, path: Path) -> None:
        """Waits until what a file holds is on disk."""
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

    def sync_tree(self, folder: Path) -> None:
        """Waits until a folder is on disk with all that it holds: files and names, in no order.

        Several are asked for at once, since a file system writes its journal once for all that wait for it.
        """
        every = [folder, *folder.rglob("*")]
        with ThreadPoolExecutor(SYNCED_AT_ONCE, thread_name_prefix="wdbx-sync") as pool:
            list(pool.map(lambda path: (self.sync_folder if path.is_dir() else self.sync)(path), every))

    def rename(self, source: Path, target: Path) -> None:
        """Gives a file or a folder another name; a file there is replaced."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> None:
        """Gives a file a second name. Raises `FileExistsError` where the name is taken."""
        os.link(source, target)

    def sync_folder(self, folder: Path) -> None:
        """Waits until the names in a folder are on disk."""
        sync_folder(folder)

    def make_folder(self, folder: Path) -> None:
        """Makes a folder, if it is not there."""
        folder.mkdir(exist_ok=True)

    def remove(self, path: Path) -> None:
        """Takes a file away, if it is there."""
        path.unlink(missing_ok=True)

    def remove_tree(self, folder: Path) -> None:
        """Takes a folder away with all that it holds, in no particular order."""
        shutil.rmtree(folder, ignore_errors=True)

    def save_arrays(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Writes arrays as one step of an Orbax checkpoint. The folder must not be there."""
        save_arrays(folder, arrays)

    def open_log(self, path: Path) -> LogFile:
        """Opens a file that is there, to add to it."""
        return _LogFile(path)


class _LogFile:
    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    def append(self, *parts: bytes) -> None:
        for part in parts:
            view = memoryview(part)
            while view:
                view = view[os.write(self._file, view) :]

    def sync(self) -> None:
        os.fdatasync(self._file) if hasattr(os, "fdatasync") else os.fsync(self._file)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._file, size)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._file)
