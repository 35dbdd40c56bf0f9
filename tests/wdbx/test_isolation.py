"""One writer, who knows when another has taken its place; readers of whole versions only, in other processes."""

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore
from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.log.file import LogHead, parse_log_head
from abi_jax.wdbx.pins import held
from abi_jax.wdbx.storage.local import LocalStorage

START = multiprocessing.get_context("forkserver")
ROWS = 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Database]:
    with Database(LocalStorage(tmp_path / "store"), background=False) as db:
        db.create_collection("c", 2, metric="l2")
        yield db


def try_to_write(root: Path, said: Connection) -> None:
    try:
        with wdbx.open(root) as db:
            said.send(db.collection("c").upsert(["mine"], [[1, 2]]))
    except wdbx.LockedError as error:
        said.send(str(error))


def in_another_process(root: Path) -> object:
    """The version that another process writes, or why it cannot."""
    here, there = START.Pipe()
    other = START.Process(target=try_to_write, args=(root, there))
    other.start()
    said = here.recv() if here.poll(300) else None
    other.join()
    return said


def test_one_writer(store: Database) -> None:
    """The other is told who has the store, changes nothing, and may write when the first has closed it."""
    before = store.version
    said = in_another_process(store.storage.root)
    assert isinstance(said, str) and f"in another process (process {os.getpid()})" in said
    assert store.collection("c").upsert(["a"], [[1, 1]]) == before + 1
    store.close()
    assert in_another_process(store.storage.root) == before + 2
    with wdbx.open(store.storage.root) as db:
        assert db.verify() == []
        assert [row is not None for row in db.collection("c").get(["a", "mine"])] == [True, True]


def test_a_writer_whose_lock_was_taken(store: Database) -> None:
    """Somebody deletes the lock, and another process writes: the first acknowledges nothing more and spoils nothing."""
    c = store.collection("c")
    c.upsert(["a"], [[1, 1]])
    (store.storage.root / "lock").unlink()
    assert isinstance(in_another_process(store.storage.root), int)
    before = store.version
    for write in (lambda: c.upsert(["late"], [[9, 9]]), lambda: c.delete(["a"]), store.seal, store.compact):
        with pytest.raises(wdbx.FencedError, match="has another writer"):
            write()
    assert store.version == before
    store.close()
    with wdbx.open(store.storage.root) as db:
        assert db.verify() == []
        assert [row is not None for row in db.collection("c").get(["a", "mine", "late"])] == [True, True, False]


def test_a_log_of_a_later_epoch(store: Database) -> None:
    """As where a file system lost its locks: a later writer's log is noticed by its name."""
    log = store.storage.root / "log"
    head = parse_log_head(max(log.iterdir()).read_bytes())
    assert head is not None
    later = LogHead(head.store, head.epoch + 1, store.version + 1, store._contents.link)
    (log / later.name).write_bytes(later.encode())
    with pytest.raises(wdbx.FencedError, match=f"of epoch {later.epoch} after this one's {head.epoch}"):
        store.collection("c").upsert(["late"], [[9, 9]])


def write_whole_versions(root: Path, versions: int, said: Connection, looks: Semaphore) -> None:
    """Every version has `ROWS` rows of one generation, in one upsert; some also new ids for old ones.

    looks: released after every look of the reader, which is waited for now and then.
    """
    with Database(LocalStorage(root), retention=0.0, background=False) as db:
        c = db.collection("c")
        for n in range(1, versions + 1):
            c.upsert([f"row-{i}" for i in range(ROWS)], np.full((ROWS, 2), n))
            if n % 5 == 0:
                db.seal(everything=n % 2 == 0)
            if n % 12 == 0:
                while looks.acquire(block=False):
                    pass
                for _ in range(2):  # the second look from here on began behind this version
                    looks.acquire(timeout=100)
    said.send("done")


def test_readers_see_whole_versions(store: Database) -> None:
    """Each refresh is at least as new as the one before, of one generation, and stays as it was while others write."""
    root, versions = store.storage.root, 60
    store.close()
    here, there = START.Pipe()
    looked = START.Semaphore(0)
    writer = START.Process(target=write_whole_versions, args=(root, versions, there, looked), daemon=True)
    writer.start()
    seen: list[float] = []
    last, looks, done = 0, 0, False
    kept = None
    with wdbx.open(root, mode="r") as reader:
        while not done:
            done = here.poll()
            assert reader.refresh() >= last
            last = reader.version
            view = reader.collection("c").view()
            generations = {float(row.vector[0]) for row in view.get([f"row-{i}" for i in range(ROWS)]) if row}
            assert len(view) in (0, ROWS) and len(generations) == min(len(view), 1)
            if kept is None and generations:
                kept = (wdbx.open(root, mode="r"), view, generations)
            elif kept is not None:
                _, old, then = kept
                assert {hit.score for hit in old.search([[0, 0]], top_k=ROWS)[0]} == {2 * g * g for g in then}
            seen += generations - set(seen[-1:])
            looks += 1
            looked.release()
            assert looks % 5 or reader.verify() == []
        assert seen == sorted(seen) and len(seen) > 3 and seen[-1] == versions
        assert reader.verify() == []
    writer.join()
    assert kept is not None
    kept[0].close()


def test_a_pinned_version_outlives_compaction(store: Database) -> None:
    """A reader's rows, and the files they are in, stay as long as it reads; then they go."""
    c = store.collection("c")
    c.upsert(["a", "b"], [[1, 1], [2, 2]])
    store.compact()
    store._retention = 0.0
    reader = wdbx.open(store.storage.root, mode="r")
    pinned = reader.version
    for n in range(4):
        c.upsert(["a"], [[n, 5]])
        c.delete(["b"])
        store.compact()
    assert [pin.version for pin in held(store.storage)] == [pinned]
    assert store.verify() == []
    for view in (reader.collection("c").view(), c.view(pinned)):
        assert [row.vector.tolist() for row in view.get(["a", "b"]) if row] == [[1, 1], [2, 2]]
    steps = len(list((store.storage.root / "segments").iterdir()))
    reader.close()
    c.upsert(["a"], [[7, 7]])
    store.compact()
    assert len(list((store.storage.root / "segments").iterdir())) < steps
    with pytest.raises(wdbx.WdbxError.__mro__[1], match="no longer kept"):
        c.view(pinned)


def test_a_pin_that_cannot_be_read_keeps_everything(store: Database) -> None:
    c = store.collection("c")
    c.upsert(["a"], [[1, 1]])
    before = store.version
    store._retention = 0.0
    pin = store.storage.pin(b"who knows what")
    assert pin is not None and held(store.storage)[0].everything
    c.upsert(["a"], [[2, 2]])
    store.compact()
    assert [row and row.vector.tolist() for row in c.view(before).get(["a"])] == [[1, 1]]
    pin.release()
    c.upsert(["a"], [[3, 3]])
    store.compact()
    with pytest.raises(wdbx.WdbxError.__mro__[1], match="no longer kept"):
        c.view(before)


def test_a_row_that_is_replaced_is_found_meanwhile() -> None:
    """At every moment at which a writer lets old rows die, a reader of the version before finds them."""
    with wdbx.open("memory://") as db:
        c = db.create_collection("c", 1, "l2")
        ids = ["a", "b", "c"]
        c.upsert(ids, [[0], [1], [2]])
        view = c.view()
        seen = []

        class Watched(dict[str, int]):
            def __delitem__(self, key: str) -> None:
                super().__delitem__(key)
                seen.append([row is not None for row in view.get(ids)])

        view.tail._rows = Watched(view.tail._rows)
        c.upsert(ids, [[3], [4], [5]])
        assert seen == [[True] * 3] * 3
