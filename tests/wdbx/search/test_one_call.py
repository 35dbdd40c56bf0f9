"""What one call of a kernel finds is what a search finds step by step; what is made ready for it does not go stale."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("numba", reason="numba is not installed")

from abi_jax import wdbx
from abi_jax.wdbx.search import host
from abi_jax.wdbx.search.coded_part import CodedPart
from abi_jax.wdbx.search.codes import CodesMaker
from abi_jax.wdbx.search.engine import Part, Searcher
from abi_jax.wdbx.search.flat import row_norms
from abi_jax.wdbx.search.found import Best, Found
from abi_jax.wdbx.search.host import Search
from abi_jax.wdbx.search.index import make_index, make_product_index
from abi_jax.wdbx.search.product_part import ProductPart

DIM, TOP_K, RECALL = 32, 10, 0.9
METRICS = ("l2", "cosine", "ip")


def clustered(seed: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(40, DIM))
    return (centers[rng.integers(0, 40, rows)] + 0.4 * rng.normal(size=(rows, DIM))).astype(np.float32)


def listed(metric: str, vectors: np.ndarray, first: int) -> CodedPart:
    index = make_index(metric, vectors, CodesMaker(metric, DIM, vectors.dtype).of(vectors))
    return CodedPart(vectors, index.codes, None, index.lists, np.arange(first, first + len(vectors)))


@pytest.fixture(scope="module")
def parts() -> dict[str, list[CodedPart]]:
    """By metric: two parts with lists, an empty one, and one that is scanned."""
    made = {}
    for metric in METRICS:
        few, none = clustered(3, 300), np.zeros((0, DIM), np.float32)
        rest = [
            CodedPart(each, CodesMaker(metric, DIM, few.dtype).of(each), ids=np.arange(len(each)))
            for each in (none, few)
        ]
        made[metric] = [listed(metric, clustered(1, 5000), 1000), *rest, listed(metric, clustered(2, 3000), 9000)]
    return made


def same(search: Search, queries: np.ndarray) -> Found:
    """Compares both ways; what was found."""
    one = search._in_one_call
    assert one is not None
    answer = one(queries)
    assert answer is not None
    found, lacking = answer
    expected = search._step_by_step(queries, 1)
    for i, (a, b) in enumerate(zip(found.each(), expected.each(), strict=True)):
        if lacking is None or i not in lacking:
            alike(a, b)
    for a, b in zip(search(queries).each(), expected.each(), strict=True):
        alike(a, b)
    return found


def alike(a: Best, b: Best) -> None:
    """The same rows; those that score the same may come in any order."""
    np.testing.assert_array_equal(a.scores, b.scores)
    pairs = [sorted(zip(x.scores.tolist(), x.parts.tolist(), x.rows.tolist(), strict=True)) for x in (a, b)]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 3, 9, 70])
def test_one_call_as_step_by_step(parts: dict[str, list[CodedPart]], metric: str, count: int) -> None:
    found = same(Search(parts[metric], metric, TOP_K, RECALL), clustered(4, count))
    assert found.ids is not None
    for ids, best in zip(found.ids, found.each(), strict=True):
        firsts = np.array([1000, 0, 0, 9000])
        assert ids[: len(best.rows)].tolist() == (firsts[best.parts] + best.rows).tolist()


@pytest.mark.parametrize("metric", METRICS)
def test_beside_a_filter(parts: dict[str, list[CodedPart]], metric: str) -> None:
    rng = np.random.default_rng(5)
    some = [replace(each, allowed=rng.random(len(each.vectors)) < 0.6) for each in parts[metric]]
    found = same(Search(some, metric, TOP_K, RECALL), clustered(4, 9))
    assert all(some[part].mask[row] for best in found.each() for part, row in zip(best.parts, best.rows, strict=True))


@pytest.fixture(scope="module")
def by_products(parts: dict[str, list[CodedPart]]) -> dict[str, list[CodedPart | ProductPart]]:
    """By metric: product codes with lists, rows with lists, none, and product codes of which all are added up."""
    made: dict[str, list[CodedPart | ProductPart]] = {}
    for metric in METRICS:
        products = []
        for seed, rows in ((1, 9000), (5, 8000)):
            vectors = clustered(seed, rows)
            index = make_product_index(metric, vectors, CodesMaker(metric, DIM, vectors.dtype).of(vectors), None)
            ids = np.arange(rows) * seed
            products.append(ProductPart(vectors, index, None, lambda: pytest.fail("int8"), seed == 1, ids))
        made[metric] = [products[0], parts[metric][3], parts[metric][1], products[1]]
    return made


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("count", [1, 9, 70])
@pytest.mark.parametrize("share", [1.0, 0.95])
def test_product_codes(
    by_products: dict[str, list[CodedPart | ProductPart]], metric: str, count: int, share: float
) -> None:
    """Alone and beside others, also where some rows are left out."""
    every, rng = by_products[metric], np.random.default_rng(6)
    if share < 1:
        every = [replace(each, allowed=rng.random(len(each.vectors)) < share) for each in every]
    for some, ways in ((every, {"ivf+pq", "pq", "ivf"}), (every[:1], {"ivf+pq"}), (every[3:], {"pq"})):
        search = Search(some, metric, TOP_K, RECALL)
        assert {plan.way for plan, _ in search._plans} == ways
        found = same(search, clustered(4, count))
        assert found.ids is not None
        for ids, best in zip(found.ids, found.each(), strict=True):
            named = [some[part].ids[row] for part, row in zip(best.parts, best.rows, strict=True)]
            assert ids[: len(named)].tolist() == named


def test_all_for_certain_of_few_rows(parts: dict[str, list[CodedPart]]) -> None:
    few = parts["l2"][2:3]
    queries = clustered(4, 3)
    found = same(Search(few, "l2", TOP_K), queries)
    exact = np.argsort(np.square(queries[:, None] - few[0].vectors).sum(axis=2), axis=1)[:, :TOP_K]
    assert found.rows[:, :TOP_K].tolist() == exact.tolist()


def test_rows_that_score_the_same_and_need_more_room() -> None:
    """More copies than there is room for at first; they tie, and are more than one call tells of."""
    vectors = np.concatenate([np.ones((700, DIM), np.float32), clustered(1, 300)])
    part = CodedPart(vectors, CodesMaker("l2", DIM, vectors.dtype).of(vectors))
    search, query = Search([part], "l2", TOP_K), np.ones((1, DIM), np.float32)
    one = search._in_one_call
    assert one is not None and one(query) is None
    assert sorted(search(query).rows[0].tolist()) == list(range(700))
    most = same(Search([part], "l2", 699), query)
    assert sorted(most.rows[0].tolist()) == list(range(700)) and most.tied.all()


@pytest.mark.parametrize("alone", [0, 1 << 40])
def test_many_queries_of_few_rows(alone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call answers all of them, or where that would take long, every thread has a call for some."""
    monkeypatch.setattr(host, "ALONE", alone)
    vectors, queries = clustered(1, 3000), clustered(4, 30)
    part = CodedPart(vectors, CodesMaker("l2", DIM, vectors.dtype).of(vectors))
    search = Search([part], "l2", TOP_K)
    expected = search._step_by_step(queries, 1)
    assert search._in_one_call is not None and search._enough(queries, 2) == (alone == 0)
    monkeypatch.setattr(Search, "_step_by_step", lambda *_: pytest.fail("queries were searched step by step"))
    found = search(queries)
    np.testing.assert_array_equal(found.rows[:, :TOP_K], expected.rows[:, :TOP_K])
    np.testing.assert_array_equal(found.scores[:, :TOP_K], expected.scores[:, :TOP_K])


def test_lists_that_hold_too_little(parts: dict[str, list[CodedPart]]) -> None:
    part = parts["l2"][0]
    assert part.lists is not None
    promising = np.eye(1, len(part.lists.centroids), dtype=np.int64)[0] * 1000  # as if all were in the nearest list
    short = replace(part, lists=replace(part.lists, ranks={1000: promising}))
    wanted = int(np.median(np.diff(part.lists.ends)))
    search, queries = Search([short], "l2", wanted, 0.5), clustered(4, 60)
    one = search._in_one_call
    assert one is not None
    answer = one(queries)
    assert answer is not None and answer[1] is not None and 0 < len(answer[1]) < 60
    assert search(queries).counts.tolist() == [wanted] * 60


def test_what_codes_cannot_tell_apart(parts: dict[str, list[CodedPart]]) -> None:
    search = Search(parts["l2"], "l2", TOP_K, RECALL)
    one = search._in_one_call
    assert one is not None and one(np.full((1, DIM), 1e-14, np.float32)) is None
    assert search(np.full((1, DIM), 1e-14, np.float32)).counts.tolist() == [TOP_K]


def test_queries_of_any_making(parts: dict[str, list[CodedPart]]) -> None:
    search, queries = Search(parts["l2"], "l2", TOP_K, RECALL), clustered(4, 6)
    expected = search(queries)
    fixed = queries.copy()
    fixed.flags.writeable = False
    for given in (fixed, np.asfortranarray(queries), np.repeat(queries, 2, axis=0)[::2]):
        np.testing.assert_array_equal(search(given).rows, expected.rows)


def test_what_is_ready_is_replaced_once_there_are_lists() -> None:
    vectors = clustered(1, 9000)
    codes = CodesMaker("l2", DIM, vectors.dtype).of(vectors)
    index: list[Any] = []
    part = Part(
        vectors,
        None,
        lambda: row_norms(vectors),
        lambda: index[0].codes if index else codes,
        lambda: index[0] if index else None,
    )
    searcher, query = Searcher([part], "l2"), clustered(4, 1)
    exact = searcher(query, TOP_K)
    assert searcher(query, TOP_K, RECALL).rows.tolist() == exact.rows.tolist() and not searcher._ready
    index.append(make_index("l2", vectors, codes))
    searcher(query, TOP_K, RECALL)
    search: Any = searcher._ready[RECALL, TOP_K]
    assert search.parts[0].lists is index[0].lists and search._in_one_call is not None


def test_ids_of_segments_and_of_the_tail(tmp_path: Path) -> None:
    """Also of a tail that grows, and is sealed up to a row."""
    vectors = clustered(1, 8500)
    with wdbx.open(tmp_path / "store", indexes=False) as db:
        c = db.create_collection("c", DIM, "l2", ids="int")
        c.import_({"id": np.arange(8500) * 3, "vector": vectors})
        c.import_({"id": np.arange(300) * 3 + 1, "vector": vectors[:300] + 1})
        c.index()
        for i in range(3):
            c.upsert([i * 3 + 2], vectors[i : i + 1])
        c.delete([3])
        view = c.view().with_recall(RECALL)
        ids, scores = view.search_arrays(vectors[:2], 3)
        hits = c.query(vectors[:2], 3, recall=RECALL)
        assert ids.tolist() == [[hit.id for hit in each] for each in hits]
        assert scores.tolist() == [[hit.score for hit in each] for each in hits]
        assert ids[0, :2].tolist() == [0, 2] and ids[1, 0] == 5 and 3 not in ids
        assert c.query(vectors[0], 1, recall=RECALL) == hits[0][:1]
