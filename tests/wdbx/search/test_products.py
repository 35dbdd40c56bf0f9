"""Product codes: an eighth of the memory, for what recall was asked for, or not at all."""

from collections.abc import Callable

import numpy as np
import pytest

from abi_jax.wdbx.search.codes import CodesMaker, make_query_codes
from abi_jax.wdbx.search.engine import Part, explain, search
from abi_jax.wdbx.search.index import Index, index_of, make_product_index
from abi_jax.wdbx.search.kernels.products import PLACES
from abi_jax.wdbx.search.product_part import ProductPart
from abi_jax.wdbx.search.products import ProductIndex
from abi_jax.wdbx.search.told import Told

ROWS, DIM, TOP_K, CLUSTERS = 24_000, 48, 10, 100
Data = tuple[np.ndarray, ProductIndex, Index]


def clustered(seed: int, rows: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(CLUSTERS, DIM))
    return (centers[rng.integers(0, CLUSTERS, rows)] + 0.4 * rng.normal(size=(rows, DIM))).astype(np.float32)


def even(seed: int, rows: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)


def made(metric: str, vectors: np.ndarray) -> Data:
    index = make_product_index(metric, vectors, CodesMaker(metric, DIM, vectors.dtype).of(vectors), None)
    return vectors, index, index_of(index.lists, vectors)


@pytest.fixture(scope="module")
def data() -> dict[str, Data]:
    return {
        "clustered l2": made("l2", clustered(0, ROWS)),
        "clustered ip": made("ip", clustered(0, ROWS)),
        "even l2": made("l2", even(0, ROWS)),
        "even cosine": made("cosine", even(0, ROWS)),
    }


def part(data: Data, allowed: np.ndarray | None = None) -> Part:
    vectors, products, index = data
    lists = products.lists

    def norms() -> np.ndarray:
        raise AssertionError("all rows were looked at")

    return Part(vectors, allowed, norms, lambda: index.codes, lambda: index, lambda: lists, lambda make: products)


def recall(of: Part, metric: str, queries: np.ndarray, wanted: float) -> tuple[float, set[str]]:
    told = Told()
    exact = search([of], metric, queries, TOP_K)
    found = search([of], metric, queries, TOP_K, wanted, told)
    pairs = zip(exact.each(), found.each(), strict=True)
    same = [len({*a.rows[:TOP_K].tolist()} & {*b.rows[:TOP_K].tolist()}) / TOP_K for a, b in pairs]
    return float(np.mean(same)), {each["way"] for each in told.entries(["part"])}


@pytest.mark.parametrize("wanted", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("name", ["clustered l2", "clustered ip", "even l2", "even cosine"])
def test_recall_is_what_was_asked_for(data: dict[str, Data], name: str, wanted: float) -> None:
    """Where product codes cannot reach it with few exact scores, int8 codes are scanned."""
    kind, metric = name.split()
    reached, ways = recall(part(data[name]), metric, (clustered if kind == "clustered" else even)(1, 300), wanted)
    assert reached >= wanted
    expected = {"ivf+pq"} if kind == "clustered" else {"quantised"} if (name, wanted) == ("even l2", 0.99) else {"pq"}
    if (name, wanted) == ("even cosine", 0.8):
        expected = {"ivf+pq"}
    assert ways == expected
    assert {explain([part(data[name])], wanted, TOP_K)[0].way} == expected


MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "anywhere": lambda vectors: np.random.default_rng(3).random(len(vectors)) < 0.4,
    "one side of space": lambda vectors: vectors[:, 0] > 0.3,
    "few": lambda vectors: np.random.default_rng(3).random(len(vectors)) < 0.01,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["clustered l2", "even cosine"])
def test_filters(data: dict[str, Data], name: str, mask: str) -> None:
    """What lies elsewhere than most rows is found by int8 codes: nothing was measured of it."""
    kind, metric = name.split()
    allowed = MASKS[mask](data[name][0])
    of = part(data[name], allowed)
    queries = (clustered if kind == "clustered" else even)(2, 200)
    for wanted in (0.8, 0.95):
        reached, ways = recall(of, metric, queries, wanted)
        assert reached >= (1 if mask == "few" else wanted)
        expected = {"anywhere": {"pq", "ivf+pq"}, "one side of space": {"ivf", "quantised"}, "few": {"gather"}}
        assert ways <= expected[mask]
        assert ways == {explain([of], wanted, TOP_K)[0].way}
        found = search([of], metric, queries, TOP_K, wanted)
        assert allowed[found.rows[:, :TOP_K]].all()


def test_recall_holds_where_what_is_nearest_is_gone(data: dict[str, Data]) -> None:
    vectors, queries = data["clustered l2"][0], clustered(3, 50)
    reached = []
    for query in queries:
        nearest = np.argsort(np.square(vectors - query).sum(axis=1))
        allowed = np.ones(ROWS, bool)
        allowed[nearest[: ROWS // 20]] = False
        found = search([part(data["clustered l2"], allowed)], "l2", query[None], TOP_K, 0.8)
        reached.append(len({*found.rows[0, :TOP_K].tolist()} & {*nearest[ROWS // 20 :][:TOP_K].tolist()}) / TOP_K)
    assert np.mean(reached) >= 0.8


def test_several_parts(data: dict[str, Data]) -> None:
    """By lists, by all int8 codes, and by all product codes: the best of all are found."""
    first, second = part(data["clustered l2"]), part(data["even l2"])
    third = Part(clustered(8, 3000), None, first.norms, lambda: CodesMaker("l2", DIM, np.dtype("f4")).of(third.vectors))
    parts, queries, told = [first, third, second], np.concatenate([clustered(9, 100), even(9, 100)]), Told()
    exact, found = search(parts, "l2", queries, TOP_K), search(parts, "l2", queries, TOP_K, 0.95, told)
    assert [each["way"] for each in told.entries(["first", "third", "second"])] == ["ivf+pq", "quantised", "pq"]
    assert len(np.unique(np.searchsorted(exact.bases, exact.rows[:, :TOP_K], "right"))) == 3
    pairs = zip(exact.rows[:, :TOP_K].tolist(), found.rows[:, :TOP_K].tolist(), strict=True)
    assert np.mean([len({*a} & {*b}) / TOP_K for a, b in pairs]) >= 0.95


def test_queries_apart_as_together(data: dict[str, Data]) -> None:
    for name, queries in (("clustered l2", clustered(4, 70)), ("even cosine", even(4, 70))):
        of, metric = part(data[name]), name.split()[1]
        together = search([of], metric, queries, TOP_K, 0.9)
        for i in range(0, 70, 7):
            some = search([of], metric, queries[i : i + 2], TOP_K, 0.9)
            np.testing.assert_array_equal(together.rows[i : i + 2, :TOP_K], some.rows[:, :TOP_K])


@pytest.mark.parametrize("name", ["clustered l2", "clustered ip", "even cosine"])
def test_candidates_are_the_highest_sums(data: dict[str, Data], name: str) -> None:
    """Of the rows that may be found, by what is looked up; the first ones of those that sum up to the same."""
    vectors, products, _ = data[name]
    codes, queries = products.codes, make_query_codes(name.split()[1], even(5, 3))
    half = codes.codes.transpose(0, 2, 1)
    numbers = np.concatenate([half & 15, half >> 4], axis=1).reshape(-1, len(codes.books))[:ROWS]
    allowed = np.random.default_rng(6).random(ROWS) < 0.7
    tables = codes.tables(queries.exact)
    of = ProductPart(vectors, products, allowed, lambda: pytest.fail("int8 codes were asked for"))
    everything, some = of._scan_all(tables, 50, 1), of._scan_all(tables, 50, 3)
    for query, table in enumerate(tables):
        sums = table[np.arange(len(table)), numbers].astype(np.int64).sum(axis=1)
        best = np.lexsort((np.arange(ROWS), -np.where(allowed[codes.order], sums, -1)))[:50]
        for keys in (everything, some):
            assert sorted((PLACES - keys[query] % (1 << 32)).tolist()) == sorted(best.tolist())
            assert sorted((keys[query] >> 32).tolist()) == sorted(sums[best].tolist())
        scores = queries.exact[query] @ decoded(products, numbers).T
        if name == "clustered l2":
            scores = 2 * scores - np.square(decoded(products, numbers)).sum(axis=1)
        assert np.corrcoef(scores, sums)[0, 1] > 0.999


def decoded(products: ProductIndex, numbers: np.ndarray) -> np.ndarray:
    books = products.codes.books
    return books[np.arange(len(books)), numbers].reshape(len(numbers), -1)[:, :DIM].astype(np.float64)


def test_memory(data: dict[str, Data]) -> None:
    for _, products, index in data.values():
        books = products.codes.books.nbytes
        assert products.codes.nbytes - books == -(-ROWS // 32) * 32 * DIM // 8
        assert 8 * (products.codes.nbytes - books) <= index.codes.nbytes and books == 16 * DIM * 4


def test_rows_that_all_are_the_same() -> None:
    """Nothing was measured, so nothing is promised."""
    vectors, products, index = made("cosine", np.ones((9000, DIM), np.float32))
    assert products.codes.candidates == {}
    assert recall(part((vectors, products, index)), "cosine", even(1, 2), 0.5)[1] == {"quantised"}


@pytest.mark.filterwarnings("error")
def test_rows_whose_squares_are_no_float32() -> None:
    vectors, products, index = made("cosine", 1e25 * clustered(0, 9000))
    assert recall(part((vectors, products, index)), "cosine", clustered(1, 100), 0.9)[0] >= 0.9


def test_odd_dimensions_and_small_types() -> None:
    rows = (20 * clustered(0, 9000)[:, :37]).astype(np.int8)
    codes = CodesMaker("l2", 37, rows.dtype).of(rows)
    products = make_product_index("l2", rows, codes, None)
    of = part((rows, products, index_of(products.lists, rows)))
    reached, ways = recall(of, "l2", rows[::100].astype(np.float32), 0.9)
    assert reached >= 0.9 and ways <= {"pq", "ivf+pq"}
