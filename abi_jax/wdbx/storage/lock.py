"""The file `lock` of a store in a folder: one process writes, and its lock ends with it.

docs/wdbx-format.md, "lock and pins".
"""

import contextlib
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import IO, Any

from abi_jax.wdbx.errors import LockedError
from abi_jax.wdbx.storage.operations import FileOperations

LOCK_FILE = "lock"
PATIENCE = 0.1  # seconds that a writer waits for another: who only asks whether there is one holds it up no longer


@dataclass(frozen=True)
class WriterLock:
    """The file `lock`, locked: a line for its owner, behind one for each that did not close the store.

    size: bytes of it before the owner's line. process: the owner; a fork has the file, too, and must not write.
    """

    file: IO[str]
    size: int
    process: int

    @property
    def own(self) -> bool:
        """Whether it is this process's, and not that of one that this one was forked from."""
        return self.process == os.getpid()

    def holds(self, root: Path) -> bool:
        """Whether it still keeps others from writing to the store in `root`: its file is still the one by that name.

        Never in a fork of the process that locked it.
        """
        if not self.own:
            return False
        try:
            there, own = os.stat(root / LOCK_FILE), os.fstat(self.file.fileno())
        except (OSError, ValueError):
            return False
        return (there.st_ino, there.st_dev) == (own.st_ino, own.st_dev)

    def release(self, closed: bool = False, began: bool = True) -> None:
        """Lets go of it. closed: the store is as its file `head` says; began: a log was begun."""
        if self.own:
            with contextlib.suppress(OSError):
                if closed or not began:
                    self.file.truncate(0 if closed else self.size)
            with contextlib.suppress(OSError, ValueError):
                fcntl.flock(self.file, fcntl.LOCK_UN)  # else it lasts until every fork is gone
        self.file.close()


def flocked(file: IO[Any], how: int) -> bool:
    """Locks a file, if nobody else has."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take(root: Path, operations: FileOperations) -> WriterLock:
    """Locks the store in `root` for this process. Raises `LockedError` where another one has."""
    path = root / LOCK_FILE
    file = path.open("a+", encoding="utf-8")
    until = monotonic() + PATIENCE
    while not flocked(file, fcntl.LOCK_EX):
        if monotonic() > until:
            file.seek(0)
            owner = file.read().strip().rpartition("\n")[2] or "unknown"
            file.close()
            raise LockedError(
                f"{root} is open for writing in another process ({owner}); expected one writer at a time: "
                'open it with mode="r", or close the other'
            )
        sleep(PATIENCE / 10)
    lock = WriterLock(file, os.fstat(file.fileno()).st_size, os.getpid())
    if not lock.holds(root):  # who had it took the whole folder away
        file.close()
        return take(root, operations)
    file.write(f"process {os.getpid()}\n")
    file.flush()
    operations.sync(path)
    return lock


def taken(root: Path) -> bool:
    """Whether some process has locked the store in `root`. One that just begins waits for the answer."""
    try:
        with (root / LOCK_FILE).open("rb") as file:
            return not flocked(file, fcntl.LOCK_SH)
    except OSError:
        return False
