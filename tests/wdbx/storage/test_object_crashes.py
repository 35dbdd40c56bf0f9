"""A writer of objects is stopped at each of its requests in turn: what it acknowledged is there, nothing is half."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.errors import StorageError
from abi_jax.wdbx.storage.kvstore import Objects
from abi_jax.wdbx.storage.objects import ObjectStorage
from tests.wdbx.crashes import Killed
from tests.wdbx.storage.conftest import Place, end_lease, save_quickly

HOW = ("kill", "kill after", "late", "fail", "lost", "refuse")
KEY = bytes(range(32))


class Stopping(Objects):
    """Counts requests that write; at number `stop` (from 0) does what `how` says.

    kill: the process is dead before it; kill after: behind it; late: before it, and the request arrives when another
    has the store. fail: there is no answer, and it was not done; lost: it was; refuse: the server says no.
    """

    def __init__(self, objects: Objects, stop: int, how: str) -> None:
        super().__init__(objects.url, objects._store)
        self.stop, self.how, self.done, self.dead = stop, how, 0, False
        self.late: Callable[[], Any] = lambda: None

    def _step(self, work: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        self.done += 1
        if self.done - 1 != self.stop:
            return work()
        if self.how in ("fail", "refuse"):
            raise StorageError("no", uncertain=self.how == "fail")
        if self.how in ("kill after", "lost"):
            work()
        if self.how == "lost":
            raise StorageError("no answer")
        self.dead = True
        self.late = work if self.how == "late" else self.late
        raise Killed

    def put(self, key: str, data: bytes) -> bytes:
        made: bytes = self._step(lambda: Objects.put(self, key, data))
        return made

    def replace(self, key: str, data: bytes, generation: bytes) -> bytes | None:
        made: bytes | None = self._step(lambda: Objects.replace(self, key, data, generation))
        return made

    def create_all(self, objects: Mapping[str, bytes]) -> list[str]:
        made = [self._step(partial(Objects.create_all, self, {key: data})) for key, data in objects.items()]
        return [key for taken in made for key in taken]

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._step(partial(Objects.delete, self, [key]))


STEPS: list[tuple[Callable[[Database], Any], dict[str, float]]] = [
    (lambda db: db.create_collection("c", 2, "l2"), {}),
    (lambda db: upsert(db, "ab", 1), {"a": 1, "b": 1}),
    (lambda db: upsert(db, "bc", 2), {"a": 1, "b": 2, "c": 2}),
    (lambda db: db.seal(), {"a": 1, "b": 2, "c": 2}),
    (lambda db: db.collection("c").delete(["a"]), {"b": 2, "c": 2}),
    (lambda db: db.collection("c").import_({"id": ["i"], "vector": np.full((1, 2), 3.0)}), {"b": 2, "c": 2, "i": 3}),
    (lambda db: upsert(db, "id", 4), {"b": 2, "c": 2, "i": 4, "d": 4}),
    (lambda db: db.compact(), {"b": 2, "c": 2, "i": 4, "d": 4}),
    (lambda db: upsert(db, "e", 5), {"b": 2, "c": 2, "i": 4, "d": 4, "e": 5}),
]
STATES: list[dict[str, float]] = [{}, *(state for _, state in STEPS)]


def upsert(db: Database, ids: str, value: float) -> None:
    db.collection("c").upsert(list(ids), np.full((len(ids), 2), value))


def rows(db: Database) -> dict[str, float]:
    c = db.views().get("c")
    return {} if c is None else {str(row.id): float(row.vector[0]) for row in c.get(c.ids()) if row is not None}


def live(place: Place, stop: int, how: str, key: bytes | None) -> tuple[int, Stopping]:
    """Does all steps until one fails; how many were acknowledged."""
    objects = Stopping(place.storage().objects, stop, how)
    storage = ObjectStorage(objects, save=save_quickly)
    acknowledged, db = 0, None
    try:
        db = Database(storage, retention=0.0, background=False, key=key)
        for work, _ in STEPS:
            work(db)
            acknowledged += 1
        db.close()
    except (wdbx.WdbxError, Killed):
        try:
            if db is not None:
                db.close()
        except (wdbx.WdbxError, Killed):
            pass
    for each in list(storage._keeper._kept):
        storage._keeper.let_go(each)
    return acknowledged, objects


def check(number: int, how: str, key: bytes | None) -> int:
    """Stops at a request, opens the store again, and compares; how many requests there were."""
    place = Place(f"memory://{uuid4().hex}")
    acknowledged, objects = live(place, number, how, key)
    what = f"request {number}, {how}"
    end_lease(place.storage())
    with place.open(key=key, retention=0.0) as db:
        found = rows(db)
        assert found in STATES[acknowledged : acknowledged + 2], what
        objects.dead, objects.stop = False, -1
        objects.late()
        if "c" not in db.collections():
            db.create_collection("c", 2, "l2")
        upsert(db, "z", 9)
        db.seal()
        assert rows(db) == found | {"z": 9}, what
    with place.open(key=key) as db:
        assert rows(db) == found | {"z": 9}, what
        assert db.verify() == [], what
    return objects.done


@pytest.mark.parametrize("key, every", [(None, 2), (KEY, 7)], ids=["plain", "encrypted"])
def test_stopped_at_its_requests(key: bytes | None, every: int) -> None:
    """At one in two, encrypted one in seven, in all ways in turn."""
    count = check(10**6, "kill", key)
    assert count > 60
    for turn, number in enumerate(range(0, count, every)):
        check(number, HOW[turn % len(HOW)], key)
