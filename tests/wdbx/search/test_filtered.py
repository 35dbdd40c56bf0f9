"""Beside a filter, queries look at as many lists as it takes among the rows that it leaves, wherever these are."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from abi_jax.wdbx.search.coded_part import CodedPart
from abi_jax.wdbx.search.codes import CodesMaker, make_query_codes
from abi_jax.wdbx.search.filtered import choose_lists
from abi_jax.wdbx.search.host import search
from abi_jax.wdbx.search.index import Index, make_index
from abi_jax.wdbx.search.told import Told

ROWS, DIM, TOP_K, CLUSTERS = 24_000, 32, 10, 100
Data = tuple[np.ndarray, np.ndarray, np.ndarray, Index]  # vectors, their clusters, queries, index


def clustered(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(CLUSTERS, DIM))
    cluster = rng.integers(0, CLUSTERS, rows)
    return (centers[cluster] + 0.4 * rng.normal(size=(rows, DIM))).astype(np.float32), cluster


@pytest.fixture(scope="module")
def data() -> Data:
    vectors, cluster = clustered(0, ROWS)
    index = make_index("l2", vectors, CodesMaker("l2", DIM, vectors.dtype).of(vectors))
    return vectors, cluster, clustered(1, 200)[0], index


def uneven(share: float, cluster: np.ndarray) -> np.ndarray:
    """Some of every cluster, of some of them most, of others few."""
    rng = np.random.default_rng(2)
    of_cluster = rng.random(CLUSTERS) ** 3
    return rng.random(len(cluster)) < (of_cluster * share / of_cluster.mean())[cluster]


MASKS: dict[str, Callable[[float, np.ndarray, np.ndarray], np.ndarray]] = {
    "anywhere": lambda share, vectors, cluster: np.random.default_rng(3).random(len(vectors)) < share,
    "some clusters": lambda share, vectors, cluster: cluster < CLUSTERS * share,
    "one side": lambda share, vectors, cluster: vectors[:, 0] > np.quantile(vectors[:, 0], 1 - share),
    "more here than there": lambda share, vectors, cluster: uneven(share, cluster),
}


@pytest.mark.parametrize("where", MASKS)
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_recall_among_the_rows_that_are_left(data: Data, share: float, where: str) -> None:
    vectors, cluster, queries, index = data
    allowed = MASKS[where](share, vectors, cluster)
    exact = search([CodedPart(vectors, index.codes, allowed)], "l2", queries, TOP_K).each()
    for wanted in (0.8, 0.95, 0.99):
        told = Told()
        part = CodedPart(vectors, index.codes, allowed, index.lists)
        found = search([part], "l2", queries, TOP_K, wanted, told).each()
        assert all(allowed[each.rows].all() for each in found)
        same = [len({*a.rows[:TOP_K]} & {*b.rows[:TOP_K]}) / TOP_K for a, b in zip(exact, found, strict=True)]
        assert np.mean(same) >= wanted
        assert sum(each["queries"] * each["rows"] for each in told.entries(["it"])) < 0.5 * ROWS * len(queries)
        if where == "anywhere" and share > 0.01:
            assert [(each["way"], each["rows"] < ROWS / 8) for each in told.entries(["it"])] == [("ivf", True)]


def test_a_query_that_is_far_from_all_that_is_left(data: Data) -> None:
    """It looks at every list that has some of it, the nearest first."""
    vectors, _, queries, index = data
    lists = index.lists
    last = lists.nearest(make_query_codes("l2", queries[:1]), len(lists.centroids))[0, -20:]
    allowed = np.zeros(ROWS, bool)
    for number in last:
        allowed[lists.order[lists.ends[number] : lists.ends[number + 1]]] = True
    part = CodedPart(vectors, index.codes, allowed, index.lists)
    counts = part.allowed_in_lists
    assert counts is not None and counts.sum() == allowed.sum()
    asked = np.stack([vectors[allowed][0], queries[0]])
    near, far = choose_lists(lists, counts, make_query_codes("l2", asked), TOP_K, 0.9)
    assert set(far[far >= 0].tolist()) == set(np.flatnonzero(counts).tolist()) <= set(last.tolist())
    assert 0 < np.count_nonzero(near >= 0) < 5 < np.count_nonzero(far >= 0)
    assert counts[near[near >= 0]].sum() >= TOP_K
    for query, chosen in zip(asked, (near, far), strict=True):
        alone = choose_lists(lists, counts, make_query_codes("l2", query[None]), TOP_K, 0.9)[0]
        assert alone.tolist() == chosen[chosen >= 0].tolist()


def test_lists_that_hold_too_few_are_followed_by_all_rows(data: Data) -> None:
    """And that is told; of many queries, those alone are asked again."""
    vectors, _, queries, index = data
    promising = np.eye(1, len(index.lists.centroids), dtype=np.int64)[0] * 1000  # as if all were in the nearest list
    part = CodedPart(vectors, index.codes, None, replace(index.lists, ranks={1000: promising}))
    wanted = int(np.median(np.diff(index.lists.ends)))
    together = Told()
    several = search([part], "l2", queries[:100], wanted, 0.5, together).each()
    entries = {each["way"]: each for each in together.entries(["it"])}
    assert entries["ivf"]["queries"] + entries["flat"]["queries"] == 100
    assert entries["flat"]["rows"] > ROWS
    assert entries["flat"]["why"].startswith(
        f"lists held fewer than {wanted} rows, so that all were searched after them"
    )
    again = 0
    for query, each in zip(queries[:100], several, strict=True):
        assert each.rows.tolist() == search([part], "l2", query[None], wanted, 0.5).each()[0].rows.tolist()
        exact = np.argsort(np.square(vectors - query).sum(axis=1))[:wanted]
        again += each.rows[:wanted].tolist() == exact.tolist()
    assert again >= entries["flat"]["queries"] > 0
