"""A search in one call, from queries as they are given to the rows that answer them: what a single query has time for.

It codes queries, chooses lists, scans, and decides, as `search.host` does step by step, one thread for all parts.
"""

import numpy as np

from abi_jax.wdbx.search.flat import SMALL
from abi_jax.wdbx.search.kernels.arrays import AT_ONCE, GROUP, ROOM, Kept, QueryArrays
from abi_jax.wdbx.search.kernels.choose import NO_LIST, choose
from abi_jax.wdbx.search.kernels.coding import code_queries
from abi_jax.wdbx.search.kernels.compile import kernel, part
from abi_jax.wdbx.search.kernels.decide import decide
from abi_jax.wdbx.search.kernels.lists import arrange, nearest_lists
from abi_jax.wdbx.search.kernels.packed import (
    ALLOWED,
    BASE,
    LISTS,
    NEAREST,
    ROWS,
    SPACES,
    WANTED,
    WIDTH,
    allowed_at,
    codes_at,
    ids_at,
    lists_at,
    measured_at,
    products_at,
    vectors_at,
)
from abi_jax.wdbx.search.kernels.products import (
    PLACES,
    SUM,
    leave,
    make_tables,
    scan_product_lists,
    scan_products,
)
from abi_jax.wdbx.search.kernels.scan import look_in_lists, look_in_tiles, slack_of
from abi_jax.wdbx.search.kernels.shuffle import BLOCK

COSINE = 1
CROWDED = 1 << 21  # rows that are kept, of all queries
LACKING, OTHERWISE = -1, -2


@kernel(error_model="numpy")
def answer(  # type: ignore[no-untyped-def]
    table,
    reals,
    metric,
    most,
    share,
    top_k,
    least,
    given,
    first,
    last,
    rows,
    scores,
    counts,
    tied,
    ids,
):
    """The best rows of queries `first` to `last` of `given`, float32 `[B, D]`.

    table: parts, and reals: float64 `[P, REALS]`, see `packed`. metric: see `decide`. most, share: see `code_queries`.
    least: how many rows there are, up to `top_k`. rows: int64 `[B, W]`, scores: float32, counts: int64 `[B]`, tied:
    bool; see `Found`. ids: int64 `[B, W]`, or nothing, where not all parts have any.

    Returns how many rows a query has at most; `LACKING`, where a query has fewer than `least`, which is then its count;
    `OTHERWISE`, where queries had better be searched step by step.
    """
    count, dim = last - first, given.shape[1]
    exact = np.empty((count, dim))
    asked = QueryArrays(
        np.zeros((count, table[0, WIDTH]), np.int16),
        np.empty(count, np.float32),
        np.empty(count, np.float32),
        np.empty(count),
        np.empty(count),
    )
    codes, steps, lengths, left, squares = asked
    code_queries(given[first:last], metric == COSINE, most, share, codes, steps, lengths, left, squares, exact)
    for query in range(count):
        if metric != COSINE and 0 < squares[query] < SMALL**2:
            return OTHERWISE
    room = max(ROOM, 4 * top_k + table[:, WANTED].sum()) // 2
    floors, slack = np.full(count, -np.inf, np.float32), np.empty(count, np.float32)
    order, products = np.arange(count), np.empty((GROUP, AT_ONCE), np.int32)
    scratch = (floors, slack, order, products, np.empty(2 * AT_ONCE, np.float32))
    full = True
    while full:
        room *= 2
        if count > 1 and count * room > CROWDED:
            return OTHERWISE
        kept = Kept(
            np.full((count, top_k), -np.inf, np.float32),
            np.zeros(count, np.int64),
            np.empty((count, room), np.int64),
            np.empty((count, room), np.float32),
            np.zeros(count, np.int64),
        )
        full = False
        for number in range(len(table)):
            if full:
                break
            if table[number, SPACES] != 0:
                full = _scan_products(table[number], reals[number], top_k, asked, exact, kept)
            else:
                full = _scan(table[number], reals[number], top_k, asked, kept, scratch)
    enough = kept.numbers >= least
    heaps, sizes, scored = np.empty((count, top_k)), np.empty(count, np.int64), np.empty((count, room))
    made, equal = np.empty((count, room), np.float32), tied[first:last]
    for number in range(len(table)):
        vectors, base = vectors_at(table[number], dim), table[number, BASE]
        begins, ends = number == 0, number == len(table) - 1
        kept_of = (kept.found, kept.upper, kept.numbers, heaps, sizes, scored, made, equal)
        decide(metric, vectors, order[:0], base, begins, ends, 0, count, exact, squares, floors, *kept_of)
    widest = 0
    for query in range(count):
        best = kept.numbers[query]
        if best > rows.shape[1]:
            return OTHERWISE
        for i in range(best):
            rows[first + query, i], scores[first + query, i] = kept.found[query, i], made[query, i]
        counts[first + query] = best if enough[query] else LACKING
        widest = max(widest, best)
    if ids.size != 0:
        _name(table, rows[first:last], counts[first:last], ids[first:last])
    return widest if enough.all() else LACKING


@part(_nrt=True, inline="always")
def _name(table, rows, counts, ids):  # type: ignore[no-untyped-def]
    """Ids of the first `counts` rows of each query."""
    for number in range(len(table)):
        base, names = table[number, BASE], ids_at(table[number])
        for query in range(len(rows)):
            for i in range(counts[query]):
                row = rows[query, i] - base
                if row >= 0 and row < names.size:
                    ids[query, i] = names[row]


@part(_nrt=True, inline="always")
def _scan(row, reals, top_k, asked, kept, scratch):  # type: ignore[no-untyped-def]
    """Looks at a part; whether there is no room for what it has."""
    of, allowed, base = codes_at(row), allowed_at(row), row[BASE]
    floors, slack, order, products, scores = scratch
    slack_of(reals[0], of.offset.size != 0, asked, slack)
    if row[LISTS] == 0:
        rows, end = np.empty(0, np.int32), row[ROWS]
        kept_of = (slack, floors, kept, order, products, scores)
        return look_in_tiles(of, base, allowed, rows, 0, end, asked, *kept_of) != 0
    chosen, ends = _chosen(row, reals, top_k, asked), lists_at(row).ends
    which, begins, counts, ordered = arrange(chosen, 0, row[LISTS])
    kept_of = (slack, floors, kept, ordered, products, scores)
    return look_in_lists(of, base, allowed, ends, which, begins, counts, asked, *kept_of) != 0


@part(_nrt=True, inline="always")
def _chosen(row, reals, top_k, asked):  # type: ignore[no-untyped-def]
    """The lists of a part that each query looks at, int32 `[B, W]`; what is negative is none."""
    centroids, scale, penalty, ends = lists_at(row)
    count = asked.steps.size
    if row[ALLOWED] == 0:
        chosen = np.empty((count, row[NEAREST]), np.int32)
        nearest_lists(centroids, scale, penalty, asked.codes, asked.steps, 0, count, chosen)
    else:
        chosen, counts = np.full((count, row[LISTS]), NO_LIST, np.int32), np.empty(count, np.int64)
        in_lists, neighbours, expected, middles = measured_at(row)
        wanted = (neighbours, expected, middles, reals[2], top_k, chosen, counts)
        asked_of = (asked.codes, asked.steps, 0, count, ends, in_lists, reals[1])
        choose(centroids, scale, penalty, *(asked_of + wanted))
    return chosen


@part(_nrt=True, inline="always")
def _scan_products(row, reals, top_k, asked, exact, kept):  # type: ignore[no-untyped-def]
    """Keeps the candidates of a part by its product codes, which have no bounds; whether there is no room."""
    of, allowed, wanted, count = products_at(row), allowed_at(row), row[WANTED], len(exact)
    if kept.numbers.max() + wanted > kept.found.shape[1]:
        return True
    tables = np.empty((count, row[SPACES], of.books.shape[1]), np.uint8)
    make_tables(exact, of.books, of.squares, np.empty((row[SPACES], of.books.shape[1])), tables)
    keys, numbers = np.empty((count, 2 * wanted + BLOCK), np.int64), np.zeros(count, np.int64)
    least = np.full(count, -1, np.int64)
    if row[LISTS] == 0:
        scan_products(of.codes, of.order, allowed, 0, row[ROWS], tables, wanted, keys, numbers, least)
    else:
        chosen, ends = _chosen(row, reals, top_k, asked), lists_at(row).ends
        about = (of.codes, of.order, allowed, ends, chosen, 0, count, tables, wanted)
        scan_product_lists(*about, keys, numbers, least)
    for query in range(count):
        if numbers[query] > wanted:
            leave(keys, numbers, least, query, wanted)
        at = kept.numbers[query]
        for i in range(numbers[query]):
            place = PLACES - keys[query, i] % SUM
            kept.found[query, at + i], kept.upper[query, at + i] = row[BASE] + of.order[place], np.inf
        kept.numbers[query] = at + numbers[query]
    return False
