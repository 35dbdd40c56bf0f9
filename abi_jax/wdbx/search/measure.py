"""How many lists, or product codes, hold the neighbours of a query, measured on rows that ask for theirs.

A row whose nearest neighbours are copies of it says nothing of a query that is no row: copies stand in one list. What
is nearer than `COPY` of the distance between neighbouring lists counts as one, and is passed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from abi_jax.wdbx.search.coded_part import CodedPart
from abi_jax.wdbx.search.codes import Codes, make_query_codes
from abi_jax.wdbx.search.found import Best
from abi_jax.wdbx.search.host import search
from abi_jax.wdbx.search.ivf import Lists
from abi_jax.wdbx.search.kernels.products import ranks_of
from abi_jax.wdbx.search.products import SHARES, ProductCodes
from abi_jax.wdbx.search.threads import shares

NEIGHBOURS = (10, 30, 100, 300, 1000)
SHALLOW = 100  # neighbours that every row asks for: one of `DEEP` rows asks for all of them
DEEP = 4
ASKING_AT_ONCE = 16  # many rows that are alike would take much memory
ASKING = 256  # rows that ask for their neighbours
FEWEST = 16  # rows that must have found so many
COPY = 0.25
WIDE = 90  # percent of lists have a neighbour as near: many copies of a row may be several lists by themselves


Search = Callable[[np.ndarray, int], Sequence[Best]]  # the best rows, so many, of queries `[Q, D]`


@dataclass(frozen=True)
class Asked:
    """Rows that asked for their neighbours, float32 `[Q, D]`, and the rows that each of them found, nearest first."""

    queries: np.ndarray
    found: Sequence[np.ndarray]


def by_codes(metric: str, vectors: np.ndarray, codes: Codes) -> Search:
    """Searches `vectors` `[n, D]` on this host."""
    parts = [CodedPart(vectors, codes)]
    return lambda queries, count: search(parts, metric, queries, count).each()


def ask(lists: Lists, vectors: np.ndarray, find: Search) -> Asked:
    """Lets some of `vectors` `[n, D]` ask for their neighbours that are no copies of them. find: in all of these."""
    asking = np.unique(np.linspace(0, len(vectors) - 1, ASKING).astype(np.int64))
    queries = np.asarray(vectors[asking]).astype(np.float32)
    others = _Others(lists, vectors, find)
    found: list[np.ndarray] = [np.zeros(0, np.int64)] * len(asking)
    every, deep = np.arange(len(asking)), np.arange(0, len(asking), DEEP)
    others.find(np.setdiff1d(every, deep), queries, SHALLOW, found)
    again = [i for i in every.tolist() if len(found[i]) < SHALLOW]  # and those that were not asked yet
    others.find(np.array(again), queries, NEIGHBOURS[-1], found)
    return Asked(queries, found)


def measure(lists: Lists, asked: Asked) -> dict[int, np.ndarray]:
    """Of neighbours of some rows, in which of the lists nearest to the row these were; see `Lists.ranks`."""
    count = len(lists.centroids)
    list_of = np.empty(len(lists.order), np.int32)
    list_of[lists.order] = np.repeat(np.arange(count, dtype=np.int32), np.diff(lists.ends))
    nearest = lists.nearest(make_query_codes(lists.metric, asked.queries), count)
    rank = np.empty(nearest.shape, np.int64)
    np.put_along_axis(rank, nearest, np.arange(count)[None], axis=1)
    made = {}
    for wanted in NEIGHBOURS:
        ranks = [rank[i, list_of[rows[:wanted]]] for i, rows in enumerate(asked.found) if len(rows) >= wanted]
        if len(ranks) >= min(FEWEST, len(asked.queries)):
            made[wanted] = np.bincount(np.concatenate(ranks), minlength=count)
    return made


def measure_products(codes: ProductCodes, asked: Asked) -> dict[int, np.ndarray]:
    """How many rows with the highest sums hold shares of the neighbours; see `ProductCodes.candidates`."""
    tables = codes.tables(asked.queries)
    place = np.empty(len(codes), np.int64)
    place[codes.order] = np.arange(len(codes))
    ranks: Sequence[np.ndarray] = [np.empty(len(rows), np.int64) for rows in asked.found]

    def work(first: int, last: int) -> None:
        for i in range(first, last):
            ranks_of(codes.codes, tables, i, len(codes), place[asked.found[i]], ranks[i])

    shares(len(ranks), work, 1)
    made = {}
    for wanted in NEIGHBOURS:
        every = [each[:wanted] for each in ranks if len(each) >= wanted]
        if len(every) >= min(FEWEST, len(ranks)):
            ordered = np.sort(np.concatenate(every))
            made[wanted] = ordered[[max(0, ceil(share * len(ordered)) - 1) for share in SHARES]]
    return made


class _Others:
    """Neighbours of rows that are no copies of them."""

    def __init__(self, lists: Lists, vectors: np.ndarray, find: Search) -> None:
        self._metric = lists.metric
        self._vectors = vectors
        self._find = find
        self._least = COPY**2 * _spacing(lists.centroids)

    def find(self, which: np.ndarray, queries: np.ndarray, count: int, found: list[np.ndarray]) -> None:
        """Puts in `found` the nearest others of queries `[Q, D]` of numbers `which`, at most `count` of them each."""
        for start in range(0, len(which), ASKING_AT_ONCE):
            some = which[start : start + ASKING_AT_ONCE]
            for i, each in zip(some.tolist(), self._find(queries[some], count + 1), strict=True):
                apart = self._distances(queries[i], each) > self._least
                found[i] = each.rows[apart][:count]

    def _distances(self, query: np.ndarray, found: Best) -> np.ndarray:
        """Squared distances of what was found, of directions under cosine, float32."""
        if self._metric == "l2":
            return found.scores
        if self._metric == "cosine":
            return 2 - 2 * found.scores
        vectors = np.asarray(self._vectors[found.rows]).astype(np.float32)
        return np.asarray(np.square(vectors - query).sum(axis=1))


def _spacing(centroids: np.ndarray) -> float:
    """The squared distance within which most of some centroids have another one."""
    some = np.unique(np.linspace(0, len(centroids) - 1, ASKING).astype(np.int64))
    centroids = centroids.astype(np.float64)  # whose squares float32 may not hold
    squares = np.square(centroids).sum(axis=1)
    apart = squares[some, None] + squares - 2 * (centroids[some] @ centroids.T)
    apart[np.arange(len(some)), some] = np.inf
    nearest = apart.min(axis=1)
    return float(np.percentile(np.maximum(nearest[np.isfinite(nearest)], 0), WIDE)) if len(centroids) > 1 else 0.0
