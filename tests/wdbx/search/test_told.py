"""An explanation tells what was done: by vectors and by words, for each part, and for how many of the queries."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.search.plan import Plan
from abi_jax.wdbx.search.told import Told

ROWS, DIM = 3000, 4


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A segment and a tail."""
    with wdbx.open(tmp_path_factory.mktemp("told") / "store") as db:
        made = db.create_collection("c", DIM, "l2", schema={"document": str, "year": int}, ids="int")
        rng = np.random.default_rng(0)
        texts = [f"row {i}" for i in range(ROWS)]
        made.upsert(np.arange(ROWS), rng.normal(size=(ROWS, DIM)), {"year": [2000] * ROWS}, documents=texts)
        db.seal()
        made.upsert([ROWS], rng.normal(size=(1, DIM)), [{"year": 2001}], documents=["the last row"])
        yield made


def briefly(how: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(each["part"].split()[0], each["way"], each["queries"], each["rows"], each["of"]) for each in how]


def test_vectors(c: wdbx.Collection) -> None:
    hits, how = c.query(np.ones((3, DIM)), 2, explain=True)
    assert len(hits) == 3
    assert briefly(how) == [("segment", "flat", 3, ROWS, ROWS), ("tail", "flat", 3, 1, 1)]
    _, how = c.query(np.ones(DIM), 2, {"year": 2001}, explain=True)
    assert briefly(how) == [("segment", "gather", 1, 0, ROWS), ("tail", "flat", 1, 1, 1)]


def test_words(c: wdbx.Collection) -> None:
    _, how = c.query(text="the ROW row 7", mode="keyword", explain=True)
    assert briefly(how) == [("segment", "keyword", 1, ROWS, ROWS), ("tail", "keyword", 1, 1, 1)]
    assert how[0]["why"] == "the, row, 7 in document"
    _, how = c.query(text=["17", "17", "last"], mode="keyword", explain=True)
    assert briefly(how)[:2] == [("segment", "keyword", 2, 1, ROWS), ("segment", "keyword", 1, 0, ROWS)]


def test_both(c: wdbx.Collection) -> None:
    hits, how = c.query(np.ones(DIM), 2, text="17", mode="hybrid", explain=True)
    assert [each["way"] for each in how] == ["flat", "flat", "keyword", "keyword"]
    assert hits == c.query(np.ones(DIM), 2, text="17", mode="hybrid")


def test_nothing_to_look_at(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2)
        assert c.query([1, 0], explain=True) == ([], [c.view().explain()[0]])


def test_queries_are_told_by_what_was_done() -> None:
    told = Told()
    for rows, queries in ((10, 3), (20, 1), (5, 0)):
        told.add([(0, Plan("ivf", rows, 100, 1, "near"))], queries)
    told.add([(0, Plan("flat", 100, 100, 0, "far"))], 2)
    assert [(each["way"], each["queries"], each["rows"]) for each in told.entries(["a"])] == [
        ("ivf", 4, 12),
        ("flat", 2, 100),
    ]
