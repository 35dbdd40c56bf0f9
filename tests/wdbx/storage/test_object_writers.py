"""Leases of stores of objects: one writer, who finds out when another has its place; pins of readers that end."""

import threading
from collections.abc import Callable
from time import monotonic, sleep, time

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.background import SEAL_BYTES
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.errors import StorageError
from abi_jax.wdbx.pins import EVERYTHING, Pin, held
from abi_jax.wdbx.storage.lease import ObjectLock, read_lease
from abi_jax.wdbx.storage.objects import ObjectStorage
from tests.wdbx.storage.conftest import Place, end_lease, fill, rows


def test_one_writer(place: Place) -> None:
    """The other is told who has the store, changes nothing, and may write when the first has closed it."""
    with place.open() as db:
        c = db.create_collection("c", 2)
        with pytest.raises(wdbx.LockedError, match=r"in another process \(process \d+ on .*its lease ends in \d+ sec"):
            place.open()
        c.upsert(["a"], [[1, 1]])
        assert db.storage.written()
    with place.open() as db:
        assert rows(db) == {"a": [1, 1]} and db.verify() == []


def abandon(db: Database) -> None:
    """As if the process had stopped, perhaps to go on later: nothing is renewed any more, nor being renewed."""
    kept, keeper = db._lock or db._pin, db.storage._keeper  # type: ignore[attr-defined]
    thread = keeper._thread
    keeper.let_go(kept)
    thread.join(100)
    assert not thread.is_alive()


TERM = 0.15


class Clock:
    """The clock that leases end by, which goes on when it is told to."""

    def __init__(self) -> None:
        self.now = time()

    def __call__(self) -> float:
        return self.now

    @property
    def term_from_now(self) -> int:
        """When ends what is renewed now, in microseconds."""
        return int((self.now + TERM) * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("abi_jax.wdbx.storage.lease.time", made)
    return made


def wait_for(true: Callable[[], bool]) -> None:
    until = monotonic() + 100
    while not true():
        assert monotonic() < until
        sleep(0.01)


def test_a_lease_is_renewed_and_ends(memory: Place, clock: Clock) -> None:
    """A writer keeps it however long it waits; of one that died it ends by itself, and nothing is lost."""
    first = memory.open(term=TERM)
    first.create_collection("c", 2).upsert(["a"], [[1, 1]])

    def renewed() -> bool:
        lease = read_lease(first.storage.read("lock"))
        return lease is not None and lease.expires == clock.term_from_now

    for _ in range(3):
        clock.now += 0.9 * TERM
        wait_for(renewed)
    with pytest.raises(wdbx.LockedError):
        memory.open()
    abandon(first)
    assert first.storage.written()
    clock.now += 1.1 * TERM
    assert not first.storage.written()
    with memory.open() as db:
        assert rows(db) == {"a": [1, 1]}


@pytest.mark.parametrize("sealed", [False, True], ids=["", "its log is gone"])
def test_a_writer_that_was_fenced(place: Place, sealed: bool) -> None:
    """It was stopped for longer than its lease: it acknowledges nothing more, deletes nothing and spoils nothing."""
    first = place.open()
    c = first.create_collection("c", 2)
    c.upsert(["a"], [[1, 1]])
    first.seal()
    c.upsert(["b"], [[1, 2]])
    abandon(first)
    end_lease(place.storage())
    with place.open() as db:
        db.collection("c").upsert(["second"], [[2, 2]])
        if sealed:
            db.seal()
            db.collection("c").upsert(["second"], [[2, 2]])
        before = first.version
        for write in (lambda: c.upsert(["late"], [[9, 9]]), lambda: c.delete(["a"]), first.seal, first.compact):
            with pytest.raises(wdbx.FencedError, match="has another writer"):
                write()
        assert first.version == before
        with place.open("r") as reader:
            assert rows(reader) == {"a": [1, 1], "b": [1, 2], "second": [2, 2]}
        db.seal()
        first.close()
        assert rows(db) == {"a": [1, 1], "b": [1, 2], "second": [2, 2]} and db.verify() == []
    with place.open() as db:
        assert rows(db) == {"a": [1, 1], "b": [1, 2], "second": [2, 2]} and db.verify() == []


def test_a_write_on_its_way_when_the_store_was_taken_over(place: Place) -> None:
    """What arrives after the next writer has read the log is refused by the store itself, and not acknowledged."""
    first = place.open()
    c = first.create_collection("c", 2)
    c.upsert(["a"], [[1, 1]])
    abandon(first)
    objects = first.storage.objects  # type: ignore[attr-defined]
    create, second = objects.create, []
    arrived: list[bytes | None] = []

    def late(key: str, data: bytes) -> bytes | None:
        objects.create = create
        end_lease(place.storage())
        second.append(place.open())
        arrived.append(create(key, data))
        return arrived[-1]

    objects.create = late
    with pytest.raises(wdbx.FencedError):
        c.upsert(["late"], [[9, 9]])
    assert arrived == [None]
    first.close()
    with second[0] as db:
        db.collection("c").upsert(["b"], [[2, 2]])
        assert rows(db) == {"a": [1, 1], "b": [2, 2]} and db.verify() == []


def test_nothing_of_a_later_writer_is_deleted_or_replaced(place: Place) -> None:
    """By one that looked for garbage, or for what it would replace, while the store was still its own."""
    first = place.open()
    first.storage.names("segments")
    abandon(first)
    end_lease(place.storage())
    with place.open() as db:
        fill(db)
        db.seal()
        for name in (f"segments/{db.storage.names('segments')[0]}", f"log/{db.storage.names('log')[0]}"):
            with pytest.raises(wdbx.FencedError):
                first.storage.delete(name)
        with pytest.raises(wdbx.FencedError, match="head has been replaced by another writer"):
            first.storage.put("head", b"older")
        assert db.verify() == []


def test_no_step_is_numbered_twice(place: Place) -> None:
    """A writer that has lost the store takes away what it has numbered itself, whatever the next one has written."""
    first, second = place.storage(), place.storage()
    number = first.next_step()
    first.save(f"segments/{number:08d}", {"vectors": np.ones((1, 2), np.float32)}, "")
    first.delete(f"segments/{number:08d}")  # as garbage, by the writer that comes after
    other = second.next_step()
    second.save(f"segments/{other:08d}", {"vectors": np.ones((1, 2), np.float32)}, "")
    assert other != number
    first.delete(f"segments/{number:08d}")
    assert second.names("segments") == [f"{other:08d}"]


def test_a_renewal_without_an_answer(memory: Place) -> None:
    """Whether it was done or not, the writer knows its own lease again."""
    with memory.open() as db:
        c = db.create_collection("c", 2)
        storage = db.storage
        assert isinstance(storage, ObjectStorage) and isinstance(db._lock, ObjectLock)
        replace = storage.objects.replace
        for done in (True, False):

            def lost(key: str, data: bytes, generation: bytes, done: bool = done) -> bytes | None:
                if done:
                    replace(key, data, generation)
                raise StorageError("no answer")

            storage.objects.replace = lost  # type: ignore[method-assign]
            with pytest.raises(StorageError):
                db._lock.renew()
            storage.objects.replace = replace  # type: ignore[method-assign]
            c.upsert([str(done)], [[1, 1]])
            db._lock.renew()
        assert len(c) == 2


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("name", ["head", "keys.json"])
def test_a_file_that_was_replaced_without_an_answer(memory: Place, name: str, done: bool) -> None:
    """It is known again, whether it was written or not; what another writer wrote there is not."""
    storage, other = memory.storage(), memory.storage()
    storage.put(name, b"first")
    replace = storage.objects.replace

    def lost(key: str, data: bytes, generation: bytes) -> bytes | None:
        if done:
            replace(key, data, generation)
        raise StorageError("no answer")

    storage.objects.replace = lost  # type: ignore[method-assign]
    for data in (b"second", b"third"):
        with pytest.raises(StorageError):
            storage.put(name, data)
    storage.objects.replace = replace  # type: ignore[method-assign]
    storage.put(name, b"fourth")
    assert other.read(name) == b"fourth"
    storage.objects.replace = lost  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        storage.put(name, b"fifth")
    storage.objects.replace = replace  # type: ignore[method-assign]
    other.read(name)
    other.put(name, b"of another writer")
    with pytest.raises(wdbx.FencedError, match=f"{name} has been replaced by another writer"):
        storage.put(name, b"sixth")
    assert other.read(name) == b"of another writer"


def test_many_small_versions_are_sealed(memory: Place) -> None:
    """Each is an object that every reader asks for, so they count for more than their bytes."""
    with memory.open() as db:
        c = db.create_collection("c", 2)
        before = db._due()
        c.upsert(["a"], [[1, 1]])
        assert db._due() > before + db.storage.overhead and db._due() * 1000 > SEAL_BYTES
        db.seal()
        assert db._due() == 0


def test_two_that_open_at_once(place: Place) -> None:
    """Of writers that find the store free at the same time one alone gets it."""
    place.open().close()
    opened: list[Database] = []
    refused: list[wdbx.WdbxError] = []

    def attempt() -> None:
        try:
            opened.append(place.open())
        except wdbx.LockedError as error:
            refused.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(opened) == 1 and len(refused) == 3
    opened[0].close()


def test_a_pin_is_renewed_and_ends(memory: Place, clock: Clock) -> None:
    with memory.open() as db:
        db.create_collection("c", 2).upsert(["a"], [[1, 1]])
        reader = memory.open("r", term=TERM)

        def renewed() -> bool:
            there = held(db.storage)
            assert there and all(pin in (EVERYTHING, Pin(reader.version, "")) for pin in there)
            return any(name.endswith(f"-{clock.term_from_now:020d}") for name in db.storage.names("pins"))

        for _ in range(3):
            clock.now += 0.9 * TERM
            wait_for(renewed)
        abandon(reader)
        assert held(db.storage) == [Pin(reader.version, "")] and len(db.storage.names("pins")) == 1
        clock.now += 1.1 * TERM
        assert held(db.storage) == []
        assert db.storage.names("pins") == []
