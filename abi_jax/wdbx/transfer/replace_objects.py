"""Files come into a store of objects and take effect together: what is there stays whole until they are there."""

import hashlib
from collections.abc import Mapping, Sequence

from abi_jax.wdbx.errors import DamagedError, FencedError
from abi_jax.wdbx.load import STORE_FILE
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.storage.kvstore import MISSING
from abi_jax.wdbx.storage.objects import ObjectStorage
from abi_jax.wdbx.transfer.replace import Progress


class ObjectReplacement:
    """What is to be in the store of objects `there`, which this process has locked; see `replace.Replacement`.

    Objects have no other names to wait under. What takes no name that is taken is written at once; all else while
    there is no store.
    """

    def __init__(self, source: Storage, there: ObjectStorage, progress: Progress) -> None:
        self._source = source
        self._there = there
        self._progress = progress
        self._made: list[str] = []
        self._late: dict[str, str] = {}  # files that take the place of others, and their hashes
        self._strays: list[str] = []  # what steps of the same names have too much
        self._last: dict[str, bytes] = {}
        self._generations: dict[str, bytes] = {}  # of what was there
        self.began = False

    def put(self, name: str, data: bytes) -> None:
        """A file that is written when everything changes places."""
        self._last[name] = data

    def copy(self, name: str, digest: str) -> tuple[int, bool]:
        """A file that no other content can have the name of; its size, and whether it was copied."""
        if (size := self._same(name, digest)) is not None:
            return size, False
        return self._write(name, digest), True

    def copy_step(self, name: str, files: Mapping[str, str]) -> tuple[int, int]:
        """A folder of files, by path and SHA-256; bytes that were copied, and that were there already."""
        paths = set(self._there.paths(name))
        copied = kept = 0
        for path, digest in files.items():
            key = f"{name}/{path}"
            size = self._same(key, digest) if path in paths else None
            if size is not None:
                kept += size
            elif key in self._generations:
                copied += len(self._read(key, digest))
                self._late[key] = digest
            else:
                copied += self._write(key, digest)
        self._strays += [f"{name}/{path}" for path in sorted(paths - set(files))]
        return copied, kept

    def settle(self, folders: Sequence[str]) -> None:
        """Objects are there when they were written."""

    def switch(self, old: Sequence[str]) -> None:
        """Lets everything that waits take its place, `wdbx.json` last; `old` files go. Meanwhile there is no store."""
        there = self._there
        self.began = True
        there.delete(STORE_FILE)
        logs = {name: data for name, data in self._last.items() if name.startswith("log/")}
        changed = {name: data for name, data in logs.items() if there.read(name) != data}
        for name in (*old, *changed):
            there.delete(name)
        there.objects.delete(self._strays)
        for name, digest in self._late.items():
            self._put(name, self._read(name, digest))
        for name, data in self._last.items():
            if name != STORE_FILE and (name not in logs or name in changed):
                there.put(name, data)
        there.put(STORE_FILE, self._last[STORE_FILE])

    def drop(self) -> None:
        """Takes away what was written, where it took no effect."""
        self._there.objects.delete([] if self.began else self._made)

    def _same(self, name: str, digest: str) -> int | None:
        """Bytes of a file that is there already; None where it is not, or is another."""
        data, self._generations[name] = self._there.objects.get(name)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            return None
        self._progress(len(data))
        return len(data)

    def _write(self, name: str, digest: str) -> int:
        data = self._read(name, digest)
        self._put(name, data)
        self._made.append(name)
        self._progress(len(data))
        return len(data)

    def _put(self, name: str, data: bytes) -> None:
        """Writes a file in the place of what was seen there, or of nothing."""
        if self._there.objects.replace(name, data, self._generations.get(name, MISSING)) is None:
            raise FencedError(f"{self._there}/{name} has been written by another process; expected nobody else there")

    def _read(self, name: str, digest: str) -> bytes:
        data = self._source.read(name)
        if data is None:
            raise DamagedError(f"{self._source}/{name} is missing; see abi wdbx verify")
        if hashlib.sha256(data).hexdigest() != digest:
            raise DamagedError(f"{self._source}/{name} is not what was sealed; see abi wdbx verify")
        return data
