"""Files come into a store's folder and take effect together: what is there stays whole until all are on disk."""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.load import STORE_FILE
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.storage.local import PARTIAL, LocalStorage

Progress = Callable[[int], None]


class Replacement:
    """What is to be in the folder `there`, which this process has locked.

    What takes no name that is taken is put in its place; all else waits in a folder of its own, which means nothing,
    until `switch`. began: whether that has begun.
    """

    def __init__(self, source: Storage, there: LocalStorage, progress: Progress) -> None:
        self._source = source
        self._there = there
        self._progress = progress
        self._waiting = there.root / f"{PARTIAL}{uuid4().hex}"
        self._names: list[str] = []  # of what waits: files, and folders of steps
        self.began = False

    def put(self, name: str, data: bytes) -> None:
        """A file that is written when everything changes places."""
        path = self._folder_of(self._waiting / name)
        self._there.operations.create(path, data)
        self._there.operations.sync(path)
        self._names.append(name)

    def copy(self, name: str, digest: str) -> tuple[int, bool]:
        """A file that no other content can have the name of; its size, and whether it was copied."""
        if self._there.digest(name) == digest:
            return self._kept(name), False
        return self._copy(name, self._there.root / name, digest), True

    def copy_step(self, name: str, files: Mapping[str, str]) -> tuple[int, int]:
        """A folder of files, by path and SHA-256; bytes that were copied, and that were there already.

        Where a folder of that name holds something else, it stays until everything changes places.
        """
        paths = self._there.paths(name)
        for path in [each for each in paths if Path(each).name.startswith(PARTIAL)]:
            self._there.operations.remove(self._there.root / name / path)
            paths.remove(path)
        same = {path for path in paths if files.get(path) == self._there.digest(f"{name}/{path}")}
        other = len(same) < len(paths)
        place = self._waiting if other else self._there.root
        copied = kept = 0
        for path, digest in files.items():
            if path in same and not other:
                kept += self._kept(f"{name}/{path}")
            else:
                copied += self._copy(f"{name}/{path}", place / name / path, digest)
        if copied:
            for folder in sorted({folder for path in files for folder in Path(name, path).parents}, reverse=True)[:-1]:
                self._there.operations.sync_folder(place / folder)
        if other:
            self._names.append(name)
        return copied, kept

    def settle(self, folders: Sequence[str]) -> None:
        """Waits until what was copied into folders is on disk."""
        for folder in folders:
            self._there.operations.sync_folder(self._there.root / folder)

    def _kept(self, name: str) -> int:
        size = self._there.size(name)
        self._progress(size)
        return size

    def _copy(self, name: str, target: Path, digest: str) -> int:
        operations = self._there.operations
        partial = self._folder_of(target).with_name(f"{PARTIAL}{uuid4().hex}")
        try:
            if self._bring(name, partial) != digest:
                raise DamagedError(f"{self._source}/{name} is not what was sealed; see abi wdbx verify")
            operations.sync(partial)
            operations.rename(partial, target)
        except BaseException:
            with contextlib.suppress(OSError):
                operations.remove(partial)
            raise
        operations.sync_folder(target.parent)
        return target.stat().st_size

    def _bring(self, name: str, partial: Path) -> str:
        """Writes a file of the source under another name; its SHA-256."""
        source, operations = self._source, self._there.operations
        if isinstance(source, LocalStorage):
            with contextlib.suppress(FileNotFoundError):
                return operations.copy(source.root / name, partial, self._progress)
            if (source.root / name).exists():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(partial))
        elif (data := source.read(name)) is not None:
            operations.create(partial, data)
            self._progress(len(data))
            return hashlib.sha256(data).hexdigest()
        raise DamagedError(f"{source}/{name} is missing; see abi wdbx verify")

    def _folder_of(self, path: Path) -> Path:
        missing = [each for each in path.parents if not each.is_dir()]
        for folder in reversed(missing):
            self._there.operations.make_folder(folder)
        return path

    def switch(self, old: Sequence[str]) -> None:
        """Lets everything that waits take its place, `wdbx.json` last; `old` files go. Meanwhile there is no store."""
        root, operations = self._there.root, self._there.operations
        self.began = True
        operations.remove(root / STORE_FILE)
        operations.sync_folder(root)
        for name in old:
            operations.remove(root / name)
        for name in sorted(self._names, key=lambda each: each == STORE_FILE):
            if name == STORE_FILE:
                for folder in sorted({(root / each).parent for each in (*self._names, *old)}):
                    operations.sync_folder(folder)
            if (root / name).is_dir():
                operations.rename(root / name, self._folder_of(self._waiting / "old" / name))
            operations.rename(self._waiting / name, root / name)
        operations.sync_folder(root)
        self.drop()

    def drop(self) -> None:
        """Takes away what waits, or changed places."""
        self._there.operations.remove_tree(self._waiting)
