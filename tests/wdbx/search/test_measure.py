"""What lists promise holds for queries that are no rows, however many copies of each row there are."""

import numpy as np
import pytest

from abi_jax.wdbx.search.coded_part import CodedPart
from abi_jax.wdbx.search.codes import CodesMaker
from abi_jax.wdbx.search.host import search
from abi_jax.wdbx.search.index import Index, make_index

ROWS, DIM, TOP_K = 24_000, 32, 10


def clustered(seed: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(100, DIM))
    return (centers[rng.integers(0, 100, rows)] + 0.4 * rng.normal(size=(rows, DIM))).astype(np.float32)


def copied(copies: int, noise: float) -> np.ndarray:
    """Every row as many times, almost the same each time."""
    rows = np.repeat(clustered(0, ROWS // copies), copies, axis=0)
    return (rows + noise * np.random.default_rng(1).normal(size=rows.shape)).astype(np.float32)


def index_of(metric: str, vectors: np.ndarray) -> Index:
    return make_index(metric, vectors, CodesMaker(metric, DIM, vectors.dtype).of(vectors))


def recall(metric: str, vectors: np.ndarray, index: Index, wanted: float) -> float:
    queries = clustered(2, 200)
    exact = search([CodedPart(vectors, index.codes)], metric, queries, TOP_K)
    found = search([CodedPart(vectors, index.codes, None, index.lists)], metric, queries, TOP_K, wanted)
    worst, scores = exact.scores[:, TOP_K - 1 : TOP_K], found.scores[:, :TOP_K]
    good = scores <= worst if metric == "l2" else scores >= worst
    return float(np.mean(good))


@pytest.mark.parametrize(
    ("metric", "copies", "noise"),
    [("l2", 20, 0.01), ("cosine", 20, 0.0), ("ip", 20, 0.001), ("l2", 200, 0.01), ("l2", 5, 0.1)],
)
def test_copies_are_no_neighbours(metric: str, copies: int, noise: float) -> None:
    vectors = copied(copies, noise)
    index = index_of(metric, vectors)
    assert recall(metric, vectors, index, 0.95) >= 0.95


def test_rows_that_have_nothing_but_copies() -> None:
    """Nothing was measured, so nothing is promised: all codes are scanned."""
    vectors = copied(ROWS // 10, 0.0)
    index = index_of("l2", vectors)
    assert index.lists.enough(0.5, TOP_K) is None
    assert recall("l2", vectors, index, 0.5) == 1


def test_more_neighbours_take_more_lists() -> None:
    lists = index_of("l2", clustered(0, ROWS)).lists
    counts = [lists.enough(0.95, top_k) or 0 for top_k in (1, 10, 11, 30, 100, 300, 1000)]
    assert 0 < counts[0] == counts[1] < counts[-1] and counts == sorted(counts)
    assert lists.enough(0.95, 1001) is None
    assert (lists.enough(0.5, 10) or 0) < (lists.enough(0.99, 10) or 0)
