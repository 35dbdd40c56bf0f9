"""Asked for less than all, search looks at less: lists where rows have clusters, all codes where they have none."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError

ROWS, DIM, TOP_K = 24_000, 32, 10


def clustered(rng: np.random.Generator, rows: int) -> np.ndarray:
    centers = np.random.default_rng(7).normal(size=(200, DIM))
    return (centers[rng.integers(0, 200, rows)] + 0.4 * rng.normal(size=(rows, DIM))).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[wdbx.Database]:
    rng = np.random.default_rng(0)
    with wdbx.open(tmp_path_factory.mktemp("lists") / "store") as db:
        for name, vectors in (("clustered", clustered(rng, ROWS)), ("even", rng.normal(size=(ROWS, DIM)))):
            c = db.create_collection(name, DIM, "l2", schema={"shelf": int}, ids="int")
            c.upsert(np.arange(ROWS), vectors, {"shelf": np.arange(ROWS) % 1000})
        db.seal()
        assert [db.collection(name).index() for name in ("clustered", "even")] == [1, 1]
        yield db


def indexed(db: wdbx.Database, metric: str, vectors: np.ndarray) -> wdbx.Collection:
    """A collection of its own, sealed, with lists."""
    c = db.create_collection("c", DIM, metric, ids="int")
    c.upsert(np.arange(len(vectors)), vectors)
    db.seal()
    assert c.index() == 1
    return c


def recall(c: wdbx.Collection, queries: np.ndarray, wanted: float) -> float:
    exact = c.query(queries, TOP_K)
    found = c.query(queries, TOP_K, recall=wanted)
    same = [len({a.id for a in x} & {b.id for b in y}) / TOP_K for x, y in zip(exact, found, strict=True)]
    return float(np.mean(same))


@pytest.mark.parametrize("wanted", [0.8, 0.95, 0.99])
def test_recall_is_what_was_asked_for(store: wdbx.Database, wanted: float) -> None:
    c = store.collection("clustered")
    queries = clustered(np.random.default_rng(1), 200)
    assert recall(c, queries, wanted) >= wanted
    _, plan = c.query(queries, TOP_K, recall=wanted, explain=True)
    of = {each["way"]: each for each in plan}
    assert of["ivf"]["queries"] > 180 and of["ivf"]["rows"] < ROWS / 8


def test_one_query_as_many(store: wdbx.Database) -> None:
    c = store.collection("clustered")
    queries = clustered(np.random.default_rng(2), 13)
    together = c.query(queries, TOP_K, recall=0.9)
    assert together == [c.query(query, TOP_K, recall=0.9) for query in queries]


@pytest.mark.parametrize("wanted", [0.9, 1.0])
def test_many_queries_as_a_few_at_a_time(store: wdbx.Database, wanted: float) -> None:
    """Where there are enough for every core, each searches for some of them."""
    view = store.collection("clustered").view().with_recall(wanted)
    queries = clustered(np.random.default_rng(6), 301)
    ids, scores = view.search_arrays(queries, TOP_K)
    for start in range(0, 301, 7):
        some = view.search_arrays(queries[start : start + 7], TOP_K)
        np.testing.assert_array_equal(ids[start : start + 7], some[0])
        np.testing.assert_array_equal(scores[start : start + 7], some[1])


def test_no_queries(store: wdbx.Database) -> None:
    assert store.collection("clustered").query(np.zeros((0, DIM)), 5, recall=0.9) == []


def test_recall_holds_where_a_topic_was_deleted(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "own") as db:
        vectors = clustered(np.random.default_rng(8), ROWS)
        c = indexed(db, "l2", vectors)
        about = vectors[:50]
        gone = {hit.id for hits in c.query(about, 40) for hit in hits}
        assert len(gone) < 0.1 * ROWS
        c.delete(gone)
        assert recall(c, about + 0.01, 0.95) >= 0.95


def test_without_clusters_all_codes_are_scanned(store: wdbx.Database) -> None:
    c = store.collection("even")
    queries = np.random.default_rng(3).normal(size=(100, DIM)).astype(np.float32)
    assert c.query(queries, TOP_K, recall=0.98, explain=True)[1][0]["way"] == "quantised"
    assert recall(c, queries, 0.98) >= 0.98


def test_rows_that_a_filter_leaves_are_looked_at_one_by_one(store: wdbx.Database) -> None:
    c = store.collection("clustered")
    query = clustered(np.random.default_rng(4), 1)[0]
    hits, plan = c.query(query, 30, {"shelf": 17}, recall=0.9, explain=True)
    assert plan[0]["way"] == "gather"
    assert len(hits) == ROWS // 1000
    assert hits == c.query(query, 30, {"shelf": 17})


def test_what_a_filter_leaves_far_away_is_found(store: wdbx.Database) -> None:
    """Half of the rows, none of which are near: the nearest lists have nothing to offer."""
    c = store.collection("clustered")
    query = clustered(np.random.default_rng(5), 1)[0]
    near = {hit.id for hit in c.query(query, 2000)}
    wanted = {"shelf": {"$lt": 500}}
    hits, plan = c.query(query, TOP_K, wanted, recall=0.9, explain=True)
    assert plan[0]["way"] == "ivf"
    assert {hit.id for hit in hits} <= near
    same = {hit.id for hit in hits} & {hit.id for hit in c.query(query, TOP_K, wanted)}
    assert len(same) >= TOP_K - 1


@pytest.mark.parametrize("top_k", [50, 1200])
def test_recall_holds_for_more_than_were_measured(store: wdbx.Database, top_k: int) -> None:
    c = store.collection("clustered")
    queries = clustered(np.random.default_rng(8), 50)
    exact, found = c.query(queries, top_k), c.query(queries, top_k, recall=0.9)
    same = [len({a.id for a in x} & {b.id for b in y}) / top_k for x, y in zip(exact, found, strict=True)]
    assert np.mean(same) >= 0.9


def test_an_explanation_makes_nothing(tmp_path: Path) -> None:
    """Nor does it begin to: codes and lists are made by queries, or by who asks for lists."""
    with wdbx.open(tmp_path / "own", indexes=False) as db:
        c = db.create_collection("c", DIM, "l2", ids="int")
        c.upsert(np.arange(ROWS), clustered(np.random.default_rng(0), ROWS))
        db.seal()
        view = c.view().with_recall(0.9)
        told = view.explain(top_k=np.int64(3))  # type: ignore[arg-type]
        assert (told[0]["way"], told[0]["why"]) == ("quantised", "there are no lists yet")
        assert view.segments[0]._index is None and view.segments[0]._codes is None
        with pytest.raises(InputError, match="top_k 0"):
            view.explain(top_k=0)


def test_deletes_and_new_rows_count_at_once(store: wdbx.Database, tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "own") as db:
        vectors = clustered(np.random.default_rng(6), ROWS)
        c = indexed(db, "cosine", vectors)
        nearest = [hit.id for hit in c.query(vectors[5], 3, recall=0.9)]
        assert nearest[0] == 5
        before = db.version
        c.delete(nearest[:2])
        c.upsert([ROWS + 1], vectors[5:6])
        after = [hit.id for hit in c.query(vectors[5], 2, recall=0.9)]
        assert after == [ROWS + 1, nearest[2]]
        assert [hit.id for hit in c.query(vectors[5], 3, recall=0.9, at=before)] == nearest


def test_a_recall_that_is_none(store: wdbx.Database) -> None:
    with pytest.raises(InputError, match=r"recall 1\.5: expected a number above 0, up to 1"):
        store.collection("even").query(np.ones(DIM), recall=1.5)
