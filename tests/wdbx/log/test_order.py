"""Which records of several log files count, and what cannot be as it was written."""

import errno
from pathlib import Path

import pytest

from abi_jax import wdbx
from abi_jax.wdbx.collect import drop_logs
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.log.file import LOG_HEAD, LogHead, Scan, scan
from abi_jax.wdbx.log.order import in_order
from abi_jax.wdbx.log.record import GENESIS, Head, Kind, Record, payload_digest
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.storage.operations import FileOperations, LogFile

STORE = bytes(16)


def a_log(epoch: int, first: int, count: int, link: bytes = GENESIS, cut: int = 0) -> Scan:
    """A file of `count` versions, its last `cut` bytes missing."""
    head = LogHead(STORE, epoch, first, link)
    data = head.encode()
    for version in range(first, first + count):
        payload = f"{epoch} {version}".encode()
        said = Head(Kind.TAG, version, 0, epoch, 0, 0, len(payload), payload_digest(payload)).linked(link)
        data, link = data + Record(said, payload).encode(), said.link
    return scan(head, data[: len(data) - cut])


def test_of_two_writers_the_later_one_counts() -> None:
    first = a_log(1, 1, 3)
    fenced = a_log(2, 4, 5, first.link)
    later = a_log(3, 6, 2, fenced.records[1].head.link)
    empty = a_log(4, 8, 0, later.link)
    logs = in_order([empty, later, fenced, first])
    logs.check()
    assert [(each.head.version, each.head.epoch) for each in logs.records] == [
        *((v, 1) for v in (1, 2, 3)),
        *((v, 2) for v in (4, 5)),
        *((v, 3) for v in (6, 7)),
    ]
    assert (logs.version, logs.link) == (7, later.link)
    cut = logs.up_to(5)
    cut.check()
    assert (cut.version, cut.link) == (5, fenced.records[1].head.link)


def test_what_is_torn_behind_a_later_file_is_nothing() -> None:
    first = a_log(1, 1, 3, cut=5)
    later = a_log(2, 3, 1, first.link)
    in_order([first, later]).check()
    with pytest.raises(DamagedError, match="does not go on from version 2, the last before it"):
        in_order([first, a_log(2, 4, 1)]).check()


def test_one_writer_has_every_version_in_one_file() -> None:
    """Both files have version 4, each as if it were the next one behind version 3."""
    first = a_log(1, 1, 4)
    second = a_log(1, 4, 2, first.records[2].head.link)
    assert second.records[0] == first.records[3]
    for scans in ([first, second], [second, first]):
        (finding,) = in_order(scans).wrong()
        assert finding.file == f"log/{first.head.name}" and finding.holds == "version 4"
        assert f"log/{second.head.name}, too" in finding.wrong
        with pytest.raises(DamagedError, match=f"{first.head.name}.*{second.head.name}"):
            in_order(scans).check()


def test_a_store_with_a_version_in_two_files_of_one_writer(tmp_path: Path) -> None:
    """Whoever opens it and whoever verifies it is told, and by the names of both."""
    db = Database(LocalStorage(tmp_path / "s"), background=False)
    db.create_collection("c", 2).upsert(["a"], [[1, 1]])
    before = {path.name: path.read_bytes() for path in (tmp_path / "s" / "log").iterdir()}
    db.seal()
    db.close()
    (rolled,) = (tmp_path / "s" / "log").iterdir()
    for name, data in before.items():
        if data[LOG_HEAD.size :]:
            (tmp_path / "s" / "log" / name).write_bytes(data + rolled.read_bytes()[LOG_HEAD.size :])
            earlier = name
        else:
            (tmp_path / "s" / "log" / name).write_bytes(data)
    assert [each.file for each in wdbx.verify(tmp_path / "s") if rolled.name in each.wrong] == [f"log/{earlier}"]
    for mode in ("r", "a"):
        with pytest.raises(DamagedError, match=rf"{earlier}.*{rolled.name}, too.*see abi wdbx verify"):
            wdbx.open(tmp_path / "s", mode)


def test_files_go_when_what_counts_of_them_is_sealed(tmp_path: Path) -> None:
    """A file of a later writer that begins earlier is kept as long as it is needed."""
    storage = LocalStorage(tmp_path)
    storage.make()
    names = [LogHead(STORE, epoch, first, GENESIS).name for epoch, first in ((1, 1), (2, 6), (3, 5), (3, 9))]
    for name in names:
        storage.put(f"log/{name}", b"")
    drop_logs(storage, 6)
    assert storage.names("log") == sorted(names[2:])
    drop_logs(storage, 8)
    assert storage.names("log") == names[3:]


class FailsOnce(FileOperations):
    """A disk that is full when a log is written to, once; `done` is what was asked of the log."""

    def __init__(self) -> None:
        self.armed = False
        self.done: list[str] = []

    def open_log(self, path: Path) -> LogFile:
        log = super().open_log(path)
        append, truncate, sync = log.append, log.truncate, log.sync

        def full(*parts: bytes) -> None:
            append(*parts)
            if self.armed:
                self.armed = False
                raise OSError(errno.ENOSPC, "No space left on device")

        log.append = full  # type: ignore[method-assign]
        log.truncate = lambda size: (self.done.append("truncate"), truncate(size))[1]  # type: ignore[method-assign, func-returns-value]
        log.sync = lambda: (self.done.append("sync"), sync())[1]  # type: ignore[method-assign, func-returns-value]
        return log


def test_what_was_taken_back_does_not_come_back(tmp_path: Path) -> None:
    """Else a power cut could leave a version in its file, and the next one by that number in the file after it."""
    operations = FailsOnce()
    with Database(LocalStorage(tmp_path / "s", operations), background=False) as db:
        operations.done.clear()
        operations.armed = True
        with pytest.raises(wdbx.WdbxError, match="nothing was written: No space left"):
            db.create_collection("c", 2)
        assert operations.done == ["truncate", "sync"]
