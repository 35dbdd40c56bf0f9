"""Search is exact: ids and scores of NumPy, for all metrics and dtypes, with and without codes, ties broken by id."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.search import engine, host, steps
from abi_jax.wdbx.search.codes import CodesMaker
from abi_jax.wdbx.search.exact import best_first, exact_scores
from abi_jax.wdbx.search.flat import row_norms

ROWS, DIM, TOP_K = 9000, 24, 7
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "int8": np.int8}


def naive(metric: str, query: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    q, x = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        return ((q - x) ** 2).sum(1)
    scores = (q * x).sum(1)
    return scores / np.linalg.norm(x, axis=1) / np.linalg.norm(q) if metric == "cosine" else scores


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Clusters, with many rows that are there more than once."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, DIM))
    vectors = centers[rng.integers(0, 40, ROWS)] + 0.3 * rng.normal(size=(ROWS, DIM))
    vectors[rng.integers(0, ROWS, 900)] = vectors[:900]
    return vectors, centers[:12] + 0.2 * rng.normal(size=(12, DIM))


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("batch", [1, 2, 11])
@pytest.mark.parametrize("compiled", [True, False])
def test_as_numpy(
    metric: str,
    dtype: str,
    batch: int,
    compiled: bool,
    data: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "compiled", lambda: compiled)
    vectors, queries = data
    if dtype == "int8":
        vectors, queries = np.clip(np.rint(vectors * 30), -128, 127), queries * 30
    vectors, queries = vectors.astype(DTYPES[dtype]), queries[:batch].astype(np.float32)
    lang = ["en" if i % 3 else "de" for i in range(ROWS)]
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM, metric, dtype, {"lang": str}, ids="int")
        third = ROWS // 3
        alive = np.ones(ROWS, bool)
        for start in range(0, ROWS, third):
            ids = np.arange(start, start + third)
            c.upsert(ids, vectors[ids], {"lang": lang[start : start + third]})
            if start < 2 * third:
                db.seal()
        gone = np.arange(0, ROWS, 5)
        c.delete(gone)
        alive[gone] = False
        view = c.view()
        passed: dict[Any, np.ndarray] = {None: alive, "de": alive & (np.arange(ROWS) % 3 == 0)}
        for wanted, kept in passed.items():
            hits = view.search(queries, TOP_K, where={"lang": wanted} if wanted else None)
            for query, found in zip(queries, hits, strict=True):
                scores = naive(metric, query, vectors)
                keys = np.where(kept, (scores if metric == "l2" else -scores).astype(np.float32), np.inf)
                best = np.lexsort((np.arange(ROWS), keys))[:TOP_K]
                assert [hit.id for hit in found] == best.tolist()
                np.testing.assert_allclose([hit.score for hit in found], scores[best], rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("deleted", [[], [3, 4000]], ids=["whole", "deleted"])
@pytest.mark.parametrize("way", ["in one call", "step by step"])
def test_first_floors_hide_no_rows(
    metric: str,
    deleted: list[int],
    way: str,
    data: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Floors come from lanes up to 32 rows asked for; some rows are long, so that their tiles are coded coarsely."""
    pytest.importorskip("numba", reason="numba is not installed")
    if way == "step by step":
        monkeypatch.setattr(host, "one_call", lambda *_: None)
        monkeypatch.setattr(steps, "SHARE", 1)
        monkeypatch.setattr(host, "workers", lambda: 3)
    vectors, queries = (each.astype(np.float32) for each in data)
    vectors[::450] *= 30
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM, metric, ids="int")
        for first, last in ((0, 5000), (5000, ROWS - 40), (ROWS - 40, ROWS)):
            c.upsert(np.arange(first, last), vectors[first:last])
            if last < ROWS:
                db.seal()
        c.delete(deleted)
        view = c.view()
        for top_k in (1, 7, 32, 33):
            for query, found in zip(queries, view.search(queries, top_k), strict=True):
                scores = naive(metric, query, vectors)
                keys = (scores if metric == "l2" else -scores).astype(np.float32)
                keys[deleted] = np.inf
                best = np.lexsort((np.arange(ROWS), keys))[:top_k]
                assert [hit.id for hit in found] == best.tolist(), top_k


@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_what_codes_take_for_less_than_it_is_is_found(metric: str, tmp_path: Path) -> None:
    """All small numbers of the best rows are rounded down, to 0, most of the others' up: by codes these are best."""
    rng = np.random.default_rng(3)
    rows, dim, top_k = 3000, 21, 5
    small = rng.permuted(np.tile([0.0041] * 15 + [-0.0038] * 5, (rows, 1)), axis=1) + rng.uniform(0, 1e-5, (rows, 20))
    best = np.sort(rng.permutation(rows)[:top_k])
    small[best] = 0.0038
    vectors = np.concatenate([np.ones((rows, 1)), small], axis=1).astype(np.float32)
    query = np.array([0] + [1] * 20, np.float32)
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", dim, metric, ids="int")
        c.import_({"id": np.arange(rows), "vector": vectors})
        assert [hit.id for hit in c.query(query, top_k)] == best.tolist()
        assert [[hit.id for hit in each] for each in c.view().search(np.tile(query, (20, 1)), top_k)] == [
            best.tolist()
        ] * 20


def test_more_asked_for_than_there_are(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2, "ip")
        assert c.query([1, 0]) == []
        c.upsert(["b", "a"], [[1, 0], [1, 0]])
        assert [(hit.id, hit.score) for hit in c.view().search([[1, 0]])[0]] == [("a", 1.0), ("b", 1.0)]


@pytest.mark.parametrize("rows", [4, 3000])
@pytest.mark.parametrize("metric", ["cosine", "l2", "ip"])
def test_rows_that_are_tiny_hide_no_others(metric: str, rows: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(rows, 4)).astype(np.float32)
    vectors[1] *= np.float32(1e-23)
    vectors[2] *= np.float32(1e-42)
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 4, metric, ids="int")
        c.upsert(np.arange(rows), vectors)
        for query in rng.normal(size=(10, 4)).astype(np.float32):
            scores = naive(metric, query, vectors)
            keys = (scores if metric == "l2" else -scores).astype(np.float32)
            best = np.lexsort((np.arange(rows), keys))[:3]
            assert [hit.id for hit in c.query(query, 3)] == best.tolist()


@pytest.mark.parametrize("rows", [2000, 2100])
def test_distances_far_from_the_origin_keep_their_digits(rows: int, tmp_path: Path) -> None:
    """Seconds since 1970 in one place, small numbers in the others: what |q|^2 - 2 q.x + |x|^2 would lose."""
    rng = np.random.default_rng(2)
    vectors = np.concatenate([np.full((rows, 1), 1.7e9), rng.normal(size=(rows, 2))], axis=1).astype(np.float32)
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 3, "l2", ids="int")
        c.upsert(np.arange(rows), vectors)
        query = vectors[5] + np.array([0, 0.01, 0], np.float32)
        scores = naive("l2", query, vectors)
        best = np.argsort(scores, kind="stable")[:5]
        hits = c.query(query, 5)
        assert [hit.id for hit in hits] == best.tolist()
        np.testing.assert_allclose([hit.score for hit in hits], scores[best], rtol=1e-6)


def test_more_than_there_is_memory_for(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2, "ip", ids="int")
        c.upsert(np.arange(2100), np.ones((2100, 2)))
        assert len(c.query([1, 0], 10**9)) == 2100
        assert c.view().search_arrays(np.zeros((0, 2)), 3)[0].shape == (0, 3)


@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
@pytest.mark.parametrize("rows", [1500, 3000])
@pytest.mark.parametrize(("row", "query"), [(1.0, 1e-43), (1.0, 3e-37), (1e-19, 1e-19), (1e-43, 1.0)])
def test_what_float32_hardly_holds(metric: str, rows: int, row: float, query: float) -> None:
    """By products of all rows, where these are few, and by codes."""
    rng = np.random.default_rng(3)
    vectors = (rng.standard_normal((rows, 8)) * row).astype(np.float32)
    vectors = vectors[vectors.any(axis=1)]
    queries = (rng.standard_normal((4, 8)) * 4 * query).astype(np.float32)
    part = engine.Part(
        vectors, None, lambda: row_norms(vectors), lambda: CodesMaker(metric, 8, vectors.dtype).of(vectors)
    )
    for given, found in zip(queries, engine.search([part], metric, queries, 5).each(), strict=True):
        scores = exact_scores(metric, given, vectors)
        assert best_first(metric, found.scores[:5]).tolist() == np.sort(best_first(metric, scores))[:5].tolist()
        np.testing.assert_array_equal(found.scores, scores[found.rows])


@pytest.mark.parametrize("rows", [1000, 2500])
def test_what_is_orthogonal_scores_nothing(rows: int) -> None:
    """Whole numbers are not rounded: of rows whose products cancel, the first ones win, however many there are."""
    rng = np.random.default_rng(0)
    query = rng.integers(1, 5, 64).astype(np.float32)
    vectors = -rng.integers(1, 9, (rows, 64)).astype(np.float32)
    for row in range(0, 200, 2):
        a, b = rng.choice(64, 2, replace=False)
        vectors[row] = 0
        vectors[row, a], vectors[row, b] = query[b], -query[a]
    with wdbx.open("memory://") as db:
        c = db.create_collection("c", 64, "cosine", ids="int")
        c.upsert(np.arange(rows), vectors)
        assert [(hit.id, hit.score) for hit in c.query(query, top_k=20)] == [(2 * i, 0.0) for i in range(20)]
