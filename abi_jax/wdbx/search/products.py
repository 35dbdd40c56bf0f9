"""Rows as product codes (Jegou, Douze, Schmid, IEEE TPAMI 33, 2011): four bits for four dimensions, an eighth of int8.

Four dimensions each are coded by the nearest of sixteen centroids. A query has a table of what each centroid adds to
its score, as bytes, so that the score of a row is a sum of looked up bytes. Nothing bounds its error: how many of the
best rows by such sums hold the neighbours is measured when the codes are made, with queries that are rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from abi_jax.wdbx.search.ivf import QUERIES_OF_A_SHARE, Lists, careful
from abi_jax.wdbx.search.kernels.products import encode_products, learn_books, make_tables
from abi_jax.wdbx.search.kernels.shuffle import BLOCK, HALF, TOGETHER
from abi_jax.wdbx.search.threads import shares

DIMS = 4  # of a sub-space
CENTROIDS = 16
SAMPLE = 8192  # rows that centroids are learned from
TURNS = 8
BLOCKS_AT_ONCE = 256  # whose rows are turned into float32 together
NOTHING = np.zeros((0, 0))
SHARES = 1 - 2.0 ** (-np.arange(41) / 4)  # of neighbours, for which it is measured what holds them: up to 0.999


@dataclass(frozen=True)
class ProductCodes:
    """Codes uint8 `[blocks, M, 16]` of rows in the order of lists, `order` int32 `[n]`; centroids float32 `[M, 16, 4]`.

    candidates: by how many neighbours rows asked for; int64 `[41]`: how many rows with the highest sums hold each of
    `SHARES` of them.
    """

    metric: str
    books: np.ndarray
    codes: np.ndarray
    order: np.ndarray
    candidates: Mapping[int, np.ndarray]

    def __len__(self) -> int:
        return len(self.order)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, without the order of rows, which is that of lists."""
        return self.books.nbytes + self.codes.nbytes

    def enough(self, recall: float, top_k: int) -> int | None:
        """How many rows must be scored exactly for a share of `top_k` neighbours; None where that is not known."""
        of = min((each for each in self.candidates if each >= top_k), default=None)
        which = int(np.searchsorted(SHARES, careful(recall)))
        if of is None or which == len(SHARES):
            return None
        return max(top_k, int(self.candidates[of][which]))

    def tables(self, queries: np.ndarray) -> np.ndarray:
        """What each centroid adds to the sums of queries `[B, D]`, uint8 `[B, M, 16]`.

        Each number is made by itself: what a query finds does not depend on the others.
        """
        spaces = len(self.books)
        made = np.empty((len(queries), spaces, CENTROIDS), np.uint8)
        given = np.ascontiguousarray(queries, np.float64)

        def work(first: int, last: int) -> None:
            scores = np.empty((spaces, CENTROIDS))
            make_tables(given[first:last], *self.centroids, scores, made[first:last])

        shares(len(queries), work, QUERIES_OF_A_SHARE)
        return made

    @cached_property
    def centroids(self) -> tuple[np.ndarray, np.ndarray]:
        """Centroids float64 `[M, 16, 4]`, and the squares of their lengths under l2, `[M, 16]`, else `[0, 0]`."""
        books = self.books.astype(np.float64)
        return books, np.asarray(np.square(books).sum(axis=2)) if self.metric == "l2" else NOTHING


@dataclass(frozen=True)
class ProductIndex:
    """Lists, and product codes in their order."""

    lists: Lists
    codes: ProductCodes


def make_products(lists: Lists, vectors: np.ndarray, seed: int = 0) -> ProductCodes:
    """Product codes of `vectors` `[n, D]` in the order of lists, of whose recall nothing is known yet."""
    rng = np.random.default_rng(seed)
    sample = _padded(lists.metric, vectors[np.sort(rng.choice(len(vectors), min(len(vectors), SAMPLE), replace=False))])
    spaces = sample.shape[1] // DIMS
    first = rng.choice(len(sample), CENTROIDS, replace=len(sample) < CENTROIDS)
    books = np.ascontiguousarray(sample[first].reshape(CENTROIDS, spaces, DIMS).transpose(1, 0, 2))
    shares(spaces, lambda a, b: learn_books(sample, a, b, TURNS, books), 1)
    codes = np.zeros((-(-len(vectors) // BLOCK), spaces, HALF), np.uint8)

    def encode(begin: int, end: int) -> None:
        for block in range(begin, end, BLOCKS_AT_ONCE):
            rows = lists.order[block * BLOCK : min(block + BLOCKS_AT_ONCE, end) * BLOCK]
            encode_products(_padded(lists.metric, vectors[rows]), block * BLOCK, books, codes)

    shares(len(codes), encode, BLOCKS_AT_ONCE)
    return ProductCodes(lists.metric, books, codes, lists.order, {})


def _padded(metric: str, vectors: np.ndarray) -> np.ndarray:
    """Rows float32, of length 1 under cosine, with zeros up to whole sub-spaces that are looked up together."""
    rows = np.asarray(vectors).astype(np.float32)
    if metric == "cosine":
        lengths = np.sqrt(np.square(rows, dtype=np.float64).sum(axis=1, keepdims=True))
        rows = (rows / np.maximum(lengths, 1e-300)).astype(np.float32)
    width = DIMS * TOGETHER
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % width)))
