"""A handle that was closed says so, whatever is asked of it; and one that could not be opened leaves nothing."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx import store
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage

READS: dict[str, Callable[[wdbx.Database], object]] = {
    "version": lambda db: db.version,
    "collections": lambda db: db.collections(),
    "collection": lambda db: db.collection("c"),
    "snapshot": lambda db: db.snapshot(),
    "views": lambda db: db.views(),
    "resolve": lambda db: db.resolve(1),
    "log": lambda db: next(db.log()),
    "link": lambda db: db.link(),
    "receipt": lambda db: db.receipt(),
    "verify": lambda db: db.verify(),
    "stats": lambda db: db.stats(),
    "refresh": lambda db: db.refresh(),
    "sealed": lambda db: db.sealed,
    "store": lambda db: db.store,
}
READS_OF_ROWS: dict[str, Callable[[wdbx.Collection], object]] = {
    "len": len,
    "get": lambda c: c.get("a"),
    "ids": lambda c: c.ids(),
    "query": lambda c: c.query([1, 1]),
    "view": lambda c: c.view(),
    "prove": lambda c: c.prove("a"),
    "index": lambda c: c.index(),
}
WRITES: dict[str, Callable[[wdbx.Collection], object]] = {
    "upsert": lambda c: c.upsert(["b"], [[1, 1]]),
    "upsert nothing": lambda c: c.upsert([], []),
    "delete": lambda c: c.delete(["a"]),
    "import": lambda c: c.import_([{"id": "b", "vector": [1, 1]}]),
    "set": lambda c: c.set(retention=1),
}


@pytest.mark.parametrize("mode", ["a", "r"])
def test_a_closed_handle(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "store"
    with wdbx.open(path) as db:
        db.create_collection("c", 2).upsert(["a"], [[1, 1]])
        kept = db.snapshot()
    db = wdbx.open(path, mode)
    c, out = db.collection("c"), tmp_path / "out"
    view = c.view()
    db.close()
    asked: dict[str, Callable[[], object]] = {name: lambda f=f: f(db) for name, f in READS.items()}  # type: ignore[misc]
    asked |= {name: lambda f=f: f(c) for name, f in (READS_OF_ROWS | WRITES).items()}  # type: ignore[misc]
    asked |= {"backup": lambda: db.backup(out), "export": lambda: c.export(out), "seal": db.seal, "compact": db.compact}
    for name, ask in asked.items():
        with pytest.raises(wdbx.WdbxError, match=r"store is closed; expected a store that is open"):
            print(name, ask())
    assert not out.exists()
    assert view.ids() == ["a"]  # what was taken from it before is there still
    assert kept["c"].ids() == ["a"]
    kept.close()
    db.close()
    with wdbx.open(path) as db:
        assert db.stats().pins == ()
        assert wdbx.verify(path) == []


def test_lists_that_are_done_while_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not stored: where the chain ends may have been written by then."""
    begun, done, stored = threading.Event(), threading.Event(), list[str]()

    class Segment:
        def make_lists(self) -> str:
            begun.set()
            done.wait(100)
            return "lists"

    monkeypatch.setattr(store, "lacking", lambda *_: [Segment()])
    monkeypatch.setattr(store, "store_lists", lambda *_: stored.append("lists"))
    db = Database(LocalStorage(tmp_path / "store"), background=False)
    making = threading.Thread(target=db._index)
    making.start()
    assert begun.wait(100)
    close_witness = db._close_witness

    def close_then() -> bool:
        done.set()
        making.join(100)
        return close_witness()

    monkeypatch.setattr(db, "_close_witness", close_then)
    db.close()
    assert not making.is_alive() and stored == []


def test_a_mesh_that_is_none_leaves_nothing_locked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mesh 'nonsense' is of type str; expected a jax\.sharding\.Mesh"):
        wdbx.open(tmp_path / "store", mesh="nonsense")  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()
    with wdbx.open(tmp_path / "store") as db, pytest.raises(InputError, match="mesh 7 is of type int"):
        db.create_collection("c", 2).on(7)  # type: ignore[arg-type]
