"""Product codes of a store: chosen when it is opened, stored beside lists, used without int8 codes in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.search import index, plan
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.view import View
from tests.wdbx.crashes import Quick

ROWS, DIM, TOP_K = 6000, 32, 10
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are worth it early, so that these tests are quick."""
    monkeypatch.setattr(plan, "WORTH_LISTS", 1000)


def vectors(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(100, DIM))
    return (centers[rng.integers(0, 100, rows)] + 0.4 * rng.normal(size=(rows, DIM))).astype(np.float32)


def opened(root: Path, **settings: Any) -> Database:
    return Database(LocalStorage(root, Quick()), background=False, **settings)


def fill(db: Database) -> wdbx.Collection:
    c = db.create_collection("c", DIM, "l2", ids="int")
    c.upsert(range(ROWS), vectors(ROWS, 0))
    db.seal()
    return c


def ways(db: Database, wanted: float = 0.9) -> set[str]:
    """How the segment was searched for some queries, which must reach the recall."""
    c, queries = db.collection("c"), vectors(100, 1)
    found, how = c.query(queries, TOP_K, recall=wanted, explain=True)
    apart = np.square(vectors(ROWS, 0)[None] - queries[:, None]).sum(axis=2)
    exact = np.argsort(apart, axis=1)[:, :TOP_K]
    same = [len({hit.id for hit in hits} & {*ids}) / TOP_K for hits, ids in zip(found, exact.tolist(), strict=True)]
    assert np.mean(same) >= wanted
    return {each["way"] for each in how if each["part"] != "tail"}


def int8_codes(view: View) -> list[object]:
    """What there is of int8 codes in memory."""
    return [each for segment in view.segments for each in (segment._codes, segment._index) if each is not None]


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, bytes | None]]:
    root = tmp_path / "store"
    with opened(root, key=request.param, codes="pq") as db:
        assert fill(db).index() == 1
    yield root, request.param


def test_a_reader_has_no_int8_codes(stored: tuple[Path, bytes | None], monkeypatch: pytest.MonkeyPatch) -> None:
    root, key = stored
    names = {each.parent.name for each in (root / "indexes").rglob("*") if each.parent.name.startswith("pq1_")}
    assert names == {"pq1_books", "pq1_codes", "pq1_measured", "pq1_candidates"}

    def refused(*args: Any) -> None:
        raise AssertionError("product codes were made")

    monkeypatch.setattr(index, "make_product_index", refused)
    with wdbx.open(root, "r", key=key, codes="pq") as db:
        view = db.collection("c").view().with_recall(0.9)
        assert view.explain()[0]["way"] == "ivf+pq"
        assert ways(db) == {"ivf+pq"}
        _, how = db.collection("c").query(vectors(1, 2), TOP_K, recall=0.9, explain=True)
        assert how[0]["candidates"] * plan.FEW <= ROWS and f"{how[0]['candidates']} rows are scored" in how[0]["why"]
        assert int8_codes(view) == []
        products = view.segments[0].products()
        assert products is not None and products.codes.codes.nbytes == -(-ROWS // 32) * 32 * DIM // 8
        assert db.verify() == []
        assert db.collection("c").query(vectors(ROWS, 0)[5], 1)[0].id == 5  # all rows: by int8
        assert len(int8_codes(view)) == 1
    with wdbx.open(root, "r", key=key) as db:
        assert ways(db) == {"ivf"}


def test_deletes_and_new_rows_count_at_once(stored: tuple[Path, bytes | None]) -> None:
    root, key = stored
    with opened(root, key=key, codes="pq") as db:
        c, query = db.collection("c"), vectors(ROWS, 0)[5]
        nearest = [hit.id for hit in c.query(query, 3, recall=0.99)]
        assert nearest[0] == 5
        before = db.version
        c.delete(nearest[:2])
        c.upsert([ROWS + 1], query[None])
        assert [hit.id for hit in c.query(query, 2, recall=0.99)] == [ROWS + 1, nearest[2]]
        assert [hit.id for hit in c.query(query, 3, recall=0.99, at=before)] == nearest
        assert db.index() == 0  # what is stored is as good as it was


def test_who_writes_adds_them_to_lists(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with opened(root) as db:
        assert fill(db).index() == 1
        assert db.index() == 0
    with opened(root, codes="pq") as db:
        assert db.index() == 1 and db.index() == 0
        assert ways(db) == {"ivf+pq"} and int8_codes(db.collection("c").view()) == []
        assert db.stats().collections[0].indexed == 1 and len(list((root / "indexes").iterdir())) == 1
        assert db.verify() == []
    with opened(root) as db:
        assert db.index() == 0 and ways(db) == {"ivf"}


def test_a_reader_makes_its_own(tmp_path: Path) -> None:
    """In the background: until then all int8 codes are scanned, which are let go afterwards."""
    root = tmp_path / "store"
    with opened(root, indexes=False) as db:
        fill(db)
    with wdbx.open(root, "r", codes="pq") as db:
        c = db.collection("c")
        assert c.view().with_recall(0.9).explain()[0]["why"] == "there are no lists yet"
        assert c.query(vectors(1, 1), 1, recall=0.9, explain=True)[1][0]["way"] in ("quantised", "ivf+pq")
        assert c.index() == 1
        assert ways(db) == {"ivf+pq"} and int8_codes(c.view()) == []
        assert list((root / "indexes").rglob("*")) == []


def test_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "store"
    with opened(root, codes="pq") as db:
        assert fill(db).index() == 1
    hurt = next((root / "indexes").glob("*/pq1_codes/0.0.0"))
    data = hurt.read_bytes()
    hurt.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert [each.file for each in wdbx.verify(root)] == [hurt.relative_to(root).as_posix()]
    with opened(root, codes="pq") as db:
        assert ways(db) <= {"quantised", "ivf+pq"}
        assert "is left aside, and rows are found without it" in caplog.text
        assert db.index() == 1 and ways(db) == {"ivf+pq"}
    assert wdbx.verify(root) == []


def test_codes_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match='codes \'int4\': expected "int8" or "pq"'):
        wdbx.open(tmp_path / "store", codes="int4")
    assert not (tmp_path / "store").exists()
