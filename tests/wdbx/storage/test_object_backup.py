"""Backups to object stores and from them: the same stores, and whatever goes wrong, the older one or the newer."""

import contextlib
import shutil
from pathlib import Path
from uuid import uuid4

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.storage.objects import ObjectStorage
from abi_jax.wdbx.transfer.backup import copy_store
from tests.wdbx.crashes import Killed, Quick
from tests.wdbx.storage.conftest import Place, end_lease, fill, rows
from tests.wdbx.storage.test_object_crashes import Stopping

KEY = bytes(range(32))
HOW = ("kill", "fail", "kill after", "lost", "refuse")
NEW = {"c": [1, 3], "d": [1, 4]}


def local(path: Path, mode: str = "a", key: bytes | None = None) -> Database:
    return Database(LocalStorage(path, Quick()), mode, background=False, key=key, retention=0)


def held(where: str | Path, key: bytes | None = None) -> dict[str, list[float]]:
    """What a store holds, which is whole."""
    with wdbx.open(where, "r", key=key) as db:
        assert db.verify() == []
        return rows(db)


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_there_and_back(place: Place, tmp_path: Path, key: bytes | None) -> None:
    """From a folder, again when it has gone on, to another folder; then from objects to others, and on from there."""
    with local(tmp_path / "store", key=key) as db:
        holds = fill(db)
        first = db.backup(place.url)
        assert (first.version, first.kept) == (db.version, 0) and held(place.url, key) == holds
        db.collection("c").upsert(["late"], [[7, 7]])
        again = db.backup(place.url)
        assert again.version == first.version + 1 and again.copied == 0 and again.kept == first.copied
        db.compact()
        db.collection("c").delete(["late"])
        db.backup(place.url)
        assert held(place.url, key) == holds == rows(db)
    restored = wdbx.restore(place.url, tmp_path / "restored")
    assert restored.kept == 0 and held(tmp_path / "restored", key) == holds
    other = f"{place.url}-other"
    wdbx.restore(place.url, other)
    with Place(other).open(key=key) as db:
        db.collection("c").upsert(["more"], [[8, 8]])
        db.compact()
        holds = rows(db)
        assert db.backup(f"{other}-again").version == db.version
        db.backup(tmp_path / "folder")
    for where in (f"{other}-again", tmp_path / "folder"):
        assert held(where, key) == holds
    with local(tmp_path / "folder", key=key) as db:
        db.collection("c").upsert(["own"], [[1, 1]])
    with Place(other).open(key=key) as db:
        db.collection("c").delete(["a"])
        with pytest.raises(InputError, match="has gone on by itself"):
            db.backup(tmp_path / "folder")


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> bytes | None:
    return request.param


@pytest.fixture
def grown(tmp_path: Path, key: bytes | None) -> tuple[Path, Path, dict[str, list[float]]]:
    """A store, as it is and as it was before it was compacted, and what it held then."""
    with local(tmp_path / "store", key=key) as db:
        holds = fill(db)
        db.seal()
        db.backup(tmp_path / "before")
        c = db.collection("c")
        c.upsert(["c"], [NEW["c"]])
        db.compact()
        c.upsert(["d"], [NEW["d"]])
    return tmp_path / "store", tmp_path / "before", holds


def backup(store: Path, key: bytes | None, there: ObjectStorage) -> None:
    with local(store, "r", key) as db:
        copy_store(db.storage, there, db.version)


def stopped(store: Path, place: Place, key: bytes | None, number: int, how: str) -> int:
    """Backs up, and stops at a request that writes; how many there were."""
    objects = Stopping(place.storage().objects, number, how)
    there = ObjectStorage(objects)
    with contextlib.suppress(InputError, Killed):
        backup(store, key, there)
    for each in list(there._keeper._kept):
        there._keeper.let_go(each)
    end_lease(place.storage())
    return objects.done


def test_requests_that_fail_or_are_the_last(
    grown: tuple[Path, Path, dict[str, list[float]]], key: bytes | None, memory: Place
) -> None:
    store, before, holds = grown
    backup(before, key, memory.storage())
    count, none = stopped(store, memory, key, -1, ""), 0
    assert count > 20
    for number in range(0, count, 1 if key is None else 5):
        place, how = Place(f"{memory.url}-{number}"), HOW[number % len(HOW)]
        backup(before, key, place.storage())
        stopped(store, place, key, number, how)
        if place.storage().read("wdbx.json") is None:
            none += 1
        else:
            with place.open(key=key, retention=0.0) as db:  # takes away what was left half-done
                assert rows(db) in (holds, holds | NEW), (number, how)
                assert db.verify() == [], (number, how)
        backup(store, key, place.storage())
        assert held(place.url, key) == holds | NEW, (number, how)
    assert 0 < none < count / 2


def test_what_cannot_be_backed_up(memory: Place, tmp_path: Path) -> None:
    other = Place(f"memory://{uuid4().hex}")
    other.open().close()
    with memory.open() as db:
        fill(db)
        for where, said in (
            (memory.url, "is in the store itself"),
            (f"{memory.url}/inside", "is in the store itself"),
            ("memory://", "another place whenever it is opened; expected memory://name"),
            ("ftp://host/x", "scheme 'ftp' is not known"),
        ):
            with pytest.raises(InputError, match=said):
                db.backup(where)
    with local(tmp_path / "store") as db:
        fill(db)
        with pytest.raises(InputError, match="holds another store"):
            db.backup(other.url)
        copy = Place(f"memory://{uuid4().hex}")
        db.backup(copy.url)
        with copy.open(), pytest.raises(wdbx.LockedError, match="is open for writing in another process"):
            db.backup(copy.url)
    taken = Place(f"memory://{uuid4().hex}")
    taken.storage().objects.put("photos/cat.jpg", b"cat")
    with local(tmp_path / "store", "r") as db, pytest.raises(InputError, match="is not empty: it has photos"):
        db.backup(taken.url)
    with pytest.raises(InputError, match="is not empty"):
        wdbx.restore(tmp_path / "store", taken.url)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damage_is_not_copied(memory: Place, tmp_path: Path, damage: str) -> None:
    with memory.open() as db:
        fill(db)
        db.seal()
    objects = memory.storage().objects
    name = next(each for each in objects.names("segments/") if each.endswith("vectors/0.0"))
    objects.put(name, b"rotten") if damage == "changed" else objects.delete([name])
    target = Place(f"memory://{uuid4().hex}")
    with Database(memory.storage(), "r", background=False, damaged="ignore") as db:
        for where in (target.url, tmp_path / "backup"):
            with pytest.raises(wdbx.DamagedError, match=f"{name} is (missing|not what was sealed)"):
                db.backup(where)
        for where in (target.url, tmp_path / "restored"):
            with pytest.raises(wdbx.DamagedError, match=name):
                wdbx.restore(memory.url, where)
    assert target.storage().objects.names() == ["lock"]
    assert not (tmp_path / "restored").exists() and not (tmp_path / "backup" / "wdbx.json").exists()


@pytest.mark.parametrize("key", [None], indirect=True)
def test_a_step_of_the_same_number_that_is_another(
    memory: Place, grown: tuple[Path, Path, dict[str, list[float]]], tmp_path: Path
) -> None:
    """It takes the place of what is there while there is no store, and what that has too much goes."""
    store, _, holds = grown
    backup(store, None, memory.storage())
    objects = memory.storage().objects
    step = f"segments/{memory.storage().names('segments')[0]}"
    objects.put(f"{step}/vectors/0.0", b"rotten")
    objects.put(f"{step}/more/0", b"more")
    assert wdbx.verify(memory.url)
    backup(store, None, memory.storage())
    assert held(memory.url) == holds | NEW
    shutil.rmtree(store)
    wdbx.restore(memory.url, store)
    assert held(store) == holds | NEW
