"""Commits that are interrupted, or meet each other: a version is whole and alone, or nothing is written any more."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.storage.operations import FileOperations, LogFile
from abi_jax.wdbx.tail import Tail


class Interrupted(FileOperations):
    """Raises `error` once, at the operation of that name, when `armed`."""

    def __init__(self, name: str, error: BaseException) -> None:
        self.name = name
        self.error = error
        self.armed = False

    def _step(self, name: str) -> None:
        if self.armed and name == self.name:
            self.armed = False
            raise self.error

    def sync_folder(self, folder: Path) -> None:
        self._step(f"sync folder {folder.name}")
        super().sync_folder(folder)

    def open_log(self, path: Path) -> LogFile:
        log = super().open_log(path)
        sync = log.sync

        def stopped() -> None:
            self._step("sync log")
            sync()

        log.sync = stopped  # type: ignore[method-assign]
        return log


def opened(path: Path, operations: FileOperations) -> tuple[Database, wdbx.Collection]:
    db = Database(LocalStorage(path, operations), background=False)
    c = db.create_collection("c", 2, "l2", ids="int")
    c.upsert([0], [[0, 0]])
    return db, c


def crash(db: Database) -> None:
    """What a kill leaves: the lock is free, and nothing is written."""
    db._unlock()


def test_nothing_is_written_after_an_interrupted_commit(tmp_path: Path) -> None:
    operations = Interrupted("sync log", KeyboardInterrupt())
    db, c = opened(tmp_path / "store", operations)
    operations.armed = True
    with pytest.raises(KeyboardInterrupt):
        c.upsert([1], [[1, 1]])
    with pytest.raises(wdbx.WdbxError, match="a write was interrupted, and whether it is a version is known when"):
        c.upsert([2], [[2, 2]])
    crash(db)
    with wdbx.open(tmp_path / "store") as again:
        assert again.collection("c").ids() in ([0], [0, 1])
        assert again.verify() == []


@pytest.mark.parametrize("operation", ["sync folder log"])
def test_a_log_that_was_begun_and_not_gone_on_in(tmp_path: Path, operation: str) -> None:
    operations = Interrupted(operation, OSError(errno.EMFILE, "Too many open files"))
    db, c = opened(tmp_path / "store", operations)
    operations.armed = True
    with pytest.raises(OSError, match="Too many"):
        db.seal()
    with pytest.raises(wdbx.WdbxError, match="was begun and could not be gone on in"):
        c.upsert([1], [[1, 1]])
    crash(db)
    with wdbx.open(tmp_path / "store") as again:
        assert again.collection("c").ids() == [0]
        assert again.verify() == []


def test_a_sealing_that_fails_after_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    db, c = opened(tmp_path / "store", FileOperations())

    def fail(self: Tail, count: int) -> Tail:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(Tail, "rest", fail)
        with pytest.raises(MemoryError):
            db.seal()
    with pytest.raises(wdbx.WdbxError, match="sealing was interrupted"):
        c.upsert([1], [[1, 1]])
    crash(db)
    with wdbx.open(tmp_path / "store") as again:
        assert again.collection("c").ids() == [0]
        again.collection("c").upsert([1], [[1, 1]])
        again.seal()
        assert again.collection("c").ids() == [0, 1]
    with wdbx.open(tmp_path / "store", mode="r") as again:
        assert again.collection("c").ids() == [0, 1]


def in_threads(work: Callable[[int], Any], count: int) -> list[threading.Thread]:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(count)]
    for each in threads:
        each.start()
    return threads


def test_rows_that_are_imported_while_others_write(tmp_path: Path) -> None:
    """The import's version is the one that its rows are born at, whoever waits to commit."""
    db, c = opened(tmp_path / "store", FileOperations())
    done = threading.Event()

    def write(thread: int) -> None:
        number = 0
        while not done.is_set():
            number += 1
            c.upsert([1000 * (thread + 1) + number], [[1, 1]])

    threads = in_threads(write, 2)
    try:
        for part in range(3):
            ids = np.arange(10 * part, 10 * part + 10)
            c.import_({"id": ids, "vector": np.ones((10, 2), np.float32)})
            assert all(row is not None for row in c.get(ids.tolist()))
    finally:
        done.set()
        for each in threads:
            each.join()
    c.upsert([5], [[7, 7]])
    held = sorted(c.ids())
    db.close()
    with wdbx.open(tmp_path / "store") as again:
        assert again.verify() == []
        assert sorted(again.collection("c").ids()) == held
        assert held.count(5) == 1
