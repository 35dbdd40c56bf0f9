"""A file system that fails, dies, tears a write, or forgets what was not synced, at an operation of one's choice."""

import errno
import json
import os
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from abi_jax.wdbx.storage.operations import FileOperations, LogFile


class Killed(BaseException):
    """The process is dead: nothing of it runs any more, not even what handles errors."""


class Quick(FileOperations):
    """A file system without waiting for a disk, and without Orbax: arrays are files of the same names."""

    def sync(self, path: Path) -> None:
        pass

    def sync_folder(self, folder: Path) -> None:
        pass

    def sync_tree(self, folder: Path) -> None:
        pass

    def save_arrays(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        for name, array in arrays.items():
            (folder / name).mkdir(parents=True)
            (folder / name / ".zarray").write_text(json.dumps({"shape": array.shape, "dtype": array.dtype.str}))
            (folder / name / ".".join("0" * array.ndim)).write_bytes(np.ascontiguousarray(array).tobytes())

    def open_log(self, path: Path) -> LogFile:
        return _Unsynced(super().open_log(path))


class _Unsynced:
    def __init__(self, log: LogFile) -> None:
        self.append, self.truncate, self.close = log.append, log.truncate, log.close

    def sync(self) -> None:
        pass


class Operations(Quick):
    """Counts operations; at number `stop` (from 0) does what `how` says, and everything after it dies, too.

    how: "fail": the operation does nothing and raises, once. "kill": it does nothing. "tear": it is done by half. The
    process is dead after the last two.
    """

    def __init__(self, root: Path, stop: int = -1, how: str = "fail", seed: int = 0, orbax: bool = False) -> None:
        """orbax: arrays are written as they are in earnest."""
        self.root = root
        self.orbax = orbax
        self.stop = stop
        self.how = how
        self.done: list[str] = []
        self.dead = False
        self.random = random.Random(seed)
        self._numbers: dict[int, int] = {}  # inode -> a number of its own: inodes are used again
        self._synced: dict[int, bytes] = {}  # file -> what is on disk for sure
        self._names: dict[int, dict[str, int]] = {}  # folder -> what is in it for sure: name -> file or folder

    def step(self, name: str, path: Path) -> str:
        """What is to happen to this operation: "", "kill", "tear"; raises where it is to fail."""
        if self.dead:
            raise Killed
        number = len(self.done)
        self.done.append(f"{name} {path.relative_to(self.root.parent)}")
        if number != self.stop:
            return ""
        if self.how == "fail":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        self.dead = True
        if self.how == "kill":
            raise Killed
        return "tear"

    def _number(self, path: Path, new: bool = False) -> int:
        inode = path.stat().st_ino
        if new or inode not in self._numbers:
            self._numbers[inode] = max(self._numbers.values(), default=0) + 1
        return self._numbers[inode]

    def create(self, path: Path, data: bytes) -> None:
        half = self.step("create", path)
        super().create(path, data[: self.random.randrange(len(data) + 1)] if half else data)
        self._number(path, new=True)
        self._die(half)

    def _die(self, half: str) -> None:
        if half:
            raise Killed

    def copy(self, source: Path, target: Path, progress: Callable[[int], None] = lambda size: None) -> str:
        half = self.step("copy", target)
        digest = super().copy(source, target, progress)
        self._number(target, new=True)
        if half:
            os.truncate(target, self.random.randrange(target.stat().st_size + 1))
        self._die(half)
        return digest

    def sync(self, path: Path) -> None:
        half = self.step("sync", path)
        self._reach(path)
        self._die(half)

    def rename(self, source: Path, target: Path) -> None:
        half = self.step("rename", target)
        super().rename(source, target)
        self._die(half)

    def link(self, source: Path, target: Path) -> None:
        half = self.step("link", target)
        super().link(source, target)
        self._die(half)

    def sync_folder(self, folder: Path) -> None:
        half = self.step("sync_folder", folder)
        self._reach(folder)
        self._die(half)

    def sync_tree(self, folder: Path) -> None:
        half = self.step("sync_tree", folder)
        every = [folder, *sorted(folder.rglob("*"))]
        for path in self.random.sample(every, len(every) // 2) if half else every:
            self._reach(path)
        self._die(half)

    def _reach(self, path: Path) -> None:
        """What a file or a folder holds is on disk."""
        if path.is_dir():
            self._names[self._number(path)] = {each.name: self._number(each) for each in path.iterdir()}
        else:
            self._synced[self._number(path)] = path.read_bytes()

    def make_folder(self, folder: Path) -> None:
        half = self.step("make_folder", folder)
        there = folder.is_dir()
        super().make_folder(folder)
        self._number(folder, new=not there)
        self._die(half)

    def remove(self, path: Path) -> None:
        half = self.step("remove", path)
        super().remove(path)
        self._die(half)

    def remove_tree(self, folder: Path) -> None:
        half = self.step("remove_tree", folder)
        files = [each for each in folder.rglob("*") if each.is_file()]
        for file in files[: len(files) // 2] if half else []:
            file.unlink()
        self._die(half)
        super().remove_tree(folder)

    def save_arrays(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        half = self.step("save_arrays", folder)
        save = FileOperations.save_arrays if self.orbax else Quick.save_arrays
        save(self, folder, arrays)
        for each in (folder, *folder.rglob("*")):
            self._number(each, new=True)
        files = sorted(each for each in folder.rglob("*") if each.is_file())
        if half:
            for file in self.random.sample(files, len(files) // 2):
                os.truncate(file, self.random.randrange(file.stat().st_size + 1))
        self._die(half)

    def open_log(self, path: Path) -> LogFile:
        self.step("open_log", path)
        return _Log(self, path, super().open_log(path))

    def power_off(self, target: Path, lucky: bool) -> None:
        """Makes in `target` what a disk may hold then: what was synced, and, `lucky`, some of the rest."""
        if self.root.is_dir():
            self._rebuild(self.root, target, lucky)

    def _rebuild(self, folder: Path, target: Path, lucky: bool) -> None:
        target.mkdir()
        there = {each.name: each for each in folder.iterdir()}
        numbers = {self._number(each): each for each in self.root.rglob("*")}
        names = dict(self._names.get(self._number(folder), {}))
        if lucky:
            names |= {name: self._number(each) for name, each in there.items() if self.random.random() < 0.5}
        for name, number in names.items():
            live = numbers.get(number)
            if live is not None and live.is_dir():
                self._rebuild(live, target / name, lucky)
            else:
                (target / name).write_bytes(self._content(number, live, lucky))

    def _content(self, number: int, live: Path | None, lucky: bool) -> bytes:
        synced = self._synced.get(number, b"")
        if live is None or not lucky:
            return synced
        now = live.read_bytes()
        rest = bytearray(now[len(synced) :]) if now.startswith(synced) else bytearray()
        for start in range(0, len(rest), 512):  # sectors reach a disk in any order
            if self.random.random() < 0.5:
                rest[start : start + 512] = bytes(len(rest[start : start + 512]))
        return synced + bytes(rest)


class _Log:
    def __init__(self, operations: Operations, path: Path, log: LogFile) -> None:
        self._operations, self._path, self._log = operations, path, log

    def append(self, *parts: bytes) -> None:
        data = b"".join(parts)
        half = self._operations.step("append", self._path)
        self._log.append(data[: self._operations.random.randrange(len(data) + 1)] if half else data)
        self._operations._die(half)

    def sync(self) -> None:
        half = self._operations.step("sync log", self._path)
        self._operations._synced[self._operations._number(self._path)] = self._path.read_bytes()
        self._operations._die(half)

    def truncate(self, size: int) -> None:
        half = self._operations.step("truncate", self._path)
        self._log.truncate(size)
        self._operations._die(half)

    def close(self) -> None:
        self._log.close()


def copy_store(source: Path, target: Path) -> None:
    """What another process would find: the files as they are, and no lock."""
    if source.exists():
        shutil.copytree(source, target)
