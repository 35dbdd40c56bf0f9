"""Logs of a store of objects: the parts of each, in a folder by its name. docs/wdbx-format.md, "Objects".

Part 0 is the head, every other one what a group of commits adds, or nothing, where a later writer closed the log. Parts
are created, never replaced, so of two that write the next one, one finds that it is not the writer any more.
"""

from abi_jax.wdbx.errors import StorageError
from abi_jax.wdbx.log.file import epoch_of
from abi_jax.wdbx.storage.kvstore import Objects
from abi_jax.wdbx.storage.lease import ObjectLock

FOLDER = "log/"


class Parts:
    """The parts of all logs by their numbers."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._listed: dict[str, list[int]] = {}  # at the last listing of all logs
        self._kept: dict[str, dict[str, bytes]] = {}  # of logs that readers read again and again: parts by their keys

    def names(self, begun: bool = True) -> list[str]:
        """Names of logs, sorted. begun: without those that have no head any more, or never had one.

        A log goes with its head first, and a writer that was fenced may add to one that has gone: those are older than
        the newest that has a head. Any other was damaged.
        """
        found = self._list(FOLDER)
        newest = max((_age(name) for name, numbers in found.items() if numbers[0] == 0), default=(0, ""))
        self._listed = {name: each for name, each in found.items() if each[0] == 0 or _age(name) > newest}
        self._kept = {name: parts for name, parts in self._kept.items() if name in self._listed}
        return sorted(name.removeprefix(FOLDER) for name in (self._listed if begun else found))

    def following(self, name: str) -> int:
        """The number of the part that would come next."""
        return max(self._list(f"{name}/").get(name, []), default=-1) + 1

    def read(self, name: str) -> bytes | None:
        """What all parts say that a log has; None where there is none."""
        parts = self._objects.get_all(part_key(name, number) for number in self._list(f"{name}/").get(name, []))
        return b"".join(parts[key] for key in sorted(parts)) if parts else None

    def read_listed(self, name: str, keep: bool) -> bytes | None:
        """What a log says, as of the last listing of all; None where it is gone. keep: it will be read again.

        Where a part is missing, what is behind it does not go on from what is before it, and so is found to be damaged.
        """
        numbers = self._listed.get(name) or self._list(f"{name}/").get(name, [])
        if not numbers:
            return None
        keys = [part_key(name, number) for number in numbers]
        kept = self._kept.get(name, {})
        kept = kept | self._objects.get_all(key for key in keys if key not in kept)
        if keep:
            self._kept[name] = kept
        return None if any(key not in kept for key in keys) else b"".join(kept[key] for key in keys)

    def begin(self, name: str, head: bytes) -> bool:
        """Writes the head of a log that is not there. False where it is."""
        return self._objects.create(part_key(name, 0), head) is not None

    def close_newest(self) -> None:
        """Lets nobody add to the newest log any more: the part that would come next is there, and says nothing."""
        names = self.names()
        if names:
            newest = FOLDER + max(names, key=_age)
            number = self.following(newest)
            while self._objects.create(part_key(newest, number), b"") is None:
                number += 1

    def delete(self, name: str) -> None:
        """Takes a log away; its head first, without which the rest means nothing."""
        self._objects.delete([part_key(name, 0)])
        self._objects.delete(self._objects.names(f"{name}/"))

    def _list(self, prefix: str) -> dict[str, list[int]]:
        """Numbers of parts by the log's name. What is not named as a part is left out."""
        found: dict[str, list[int]] = {}
        for key in self._objects.names(prefix):
            name, number = split_key(key)
            if number is not None:
                found.setdefault(name, []).append(number)
        return {name: sorted(numbers) for name, numbers in found.items()}


class ObjectLog:
    """A log that this process adds to: a part a group of commits."""

    def __init__(self, objects: Objects, lock: ObjectLock, name: str, number: int) -> None:
        """number: of the next part."""
        self._objects = objects
        self._lock = lock
        self._name = name
        self._number = number
        self._failed: StorageError | None = None

    def append(self, *parts: bytes) -> None:
        """Writes `parts` as one object. Raises `FencedError` where it is there, so that another writer must be, too.

        Raises `StorageError` where it is refused; where it is not known whether it is there, `sync` does.
        """
        try:
            made = self._objects.create(part_key(self._name, self._number), b"".join(parts))
        except StorageError as error:
            if not error.uncertain:
                raise
            self._failed = error
            return
        if made is None:
            raise self._lock.lose(part_key(self._name, self._number))
        self._number += 1

    def sync(self) -> None:
        """Makes sure that what was written counts: that no other writer had the store by then."""
        if self._failed is not None:
            raise self._failed
        self._lock.confirm()

    def truncate(self, size: int) -> None:
        """What was refused left nothing."""

    def close(self) -> None:
        """Objects are not open."""


def part_key(name: str, number: int) -> str:
    """The key of a part of a log."""
    return f"{name}/{number:08d}"


def split_key(key: str) -> tuple[str, int | None]:
    """The log that a key is of, and the part's number; None where it is none of a log's."""
    name, _, number = key.rpartition("/")
    known = name.startswith(FOLDER) and name.count("/") == 1 and len(number) == 8 and number.isdecimal()
    return name, int(number) if known else None


def _age(name: str) -> tuple[int, str]:
    """What logs are sorted by: the order in which they were begun."""
    return epoch_of(name), name
