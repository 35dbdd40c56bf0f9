"""Inverted lists: rows by the centroid they are nearest to, so that a query looks at the lists that are nearest to it.

How many these must be for an asked recall is measured when lists are made, on rows that ask for their neighbours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import NamedTuple

import numpy as np

from abi_jax.wdbx.search.codes import Codes, CodesMaker, QueryCodes, make_query_codes
from abi_jax.wdbx.search.kernels.arrays import ListArrays
from abi_jax.wdbx.search.kernels.lists import add_up, assign, nearest_lists
from abi_jax.wdbx.search.threads import shares

CAREFUL = 0.3
QUERIES_OF_A_SHARE = 32  # that are worth a thread
SAMPLE = 40  # rows a list that centroids are learned from
ITERATIONS = 6


class Expected(NamedTuple):
    """Of so many `neighbours`, float64 `[M]`, how many to expect in the list that is nearest, the second, and so on.

    expected: float64 `[M, R]`. middles: int64 `[M]`, the list up to which half of them are.
    """

    neighbours: np.ndarray
    expected: np.ndarray
    middles: np.ndarray


@dataclass(frozen=True)
class Lists:
    """Centroids float32 `[L, D]`; `order` int32 `[n]`, rows by list; `ends` int64 `[L + 1]`, where lists begin and end.

    ranks: by how many neighbours rows asked for; int64 `[L]`: how many of these were in the list that is nearest to the
    row, in the one that comes next, and so on. See `measure`.
    """

    metric: str
    centroids: np.ndarray
    order: np.ndarray
    ends: np.ndarray
    ranks: Mapping[int, np.ndarray]

    def enough(self, recall: float, top_k: int) -> int | None:
        """How many lists hold that share of `top_k` neighbours, and a few more; None where nobody asked for as many."""
        of = min((each for each in self.ranks if each >= top_k), default=None)
        if of is None:
            return None
        upto = np.cumsum(self.ranks[of])
        return int(np.searchsorted(upto, ceil(careful(recall) * (upto[-1] - 1)), "right")) + 1

    @cached_property
    def expected(self) -> Expected:
        """Where neighbours are to be expected, as it was measured."""
        measured = sorted(self.ranks)
        reach = max((int(np.flatnonzero(each)[-1]) + 1 for each in self.ranks.values()), default=0)
        expected = np.zeros((len(measured), reach))
        for made, count in zip(expected, measured, strict=True):
            made[:] = _smoothed(self.ranks[count][:reach].astype(np.float64))
            made *= count / made.sum()
        middles = [int(np.searchsorted(np.cumsum(each), each.sum() / 2)) for each in expected]
        return Expected(np.array(measured, np.float64), expected, np.array(middles, np.int64))

    def rows_in(self, nearest: int) -> int:
        """About how many rows are in so many lists."""
        return int(min(nearest * self._expected, len(self.order)))

    @cached_property
    def _expected(self) -> float:
        """Rows in a list that is looked at: rows ask more where lists are long."""
        sizes = np.diff(self.ends).astype(np.float64)
        return float(np.square(sizes).sum() / max(1.0, sizes.sum()))

    @cached_property
    def arrays(self) -> ListArrays:
        """Centroids as codes, and where lists end."""
        coded = CodesMaker("ip", self.centroids.shape[1], np.dtype(np.float32)).of(self.centroids).arrays
        return ListArrays(coded.codes, coded.scale, _penalty(self.metric, self.centroids), self.ends)

    def nearest(self, queries: QueryCodes, count: int) -> np.ndarray:
        """The lists that are nearest to each query, nearest first, int32 `[B, count]`."""
        chosen = np.empty((len(queries), min(count, len(self.centroids))), np.int32)
        about = queries.arrays

        def work(first: int, last: int) -> None:
            nearest_lists(*self.arrays[:3], about.codes, about.steps, first, last, chosen[first:last])

        shares(len(queries), work, QUERIES_OF_A_SHARE)
        return chosen


def _smoothed(counts: np.ndarray) -> np.ndarray:
    """The same sum over 1, 2, 4, 8 and so on of them, spread evenly: what was measured of few is ragged."""
    begins = np.array([(1 << i) - 1 for i in range(len(counts).bit_length())])
    sizes = np.diff([*begins, len(counts)])
    return np.repeat(np.add.reduceat(counts, begins) / sizes, sizes)


def careful(recall: float) -> float:
    """What recall to plan for, so that it is reached."""
    return recall + CAREFUL * (1 - recall)


def _penalty(metric: str, centroids: np.ndarray) -> np.ndarray:
    made = np.square(centroids).sum(axis=1) / 2
    return np.zeros_like(made) if metric == "cosine" else made


def num_lists(rows: int) -> int:
    """How many lists `rows` rows are parted into."""
    return max(1, min(int(2 * np.sqrt(rows)), rows // 32))


def make_lists(metric: str, vectors: np.ndarray, codes: Codes, count: int, seed: int = 0) -> Lists:
    """Learns `count` centroids (Lloyd, IEEE Trans. Inf. Theory 28, 1982) from a sample, and assigns every row."""
    dim = vectors.shape[1]
    sample, first = sampled(len(vectors), count, seed)
    places = codes.places(sample)
    some, scale = np.ascontiguousarray(codes.arrays.codes[places]), codes.arrays.scale[places]
    if metric == "l2":
        scale = scale / 2
    centroids = some[first, :dim] * scale[first, None]
    for _ in range(ITERATIONS):
        lists, scores = _assign(metric, some, scale, centroids)
        sums, counts = np.zeros((count, dim), np.float32), np.zeros(count, np.int64)
        add_up(some, scale, lists, sums, counts)
        empty = np.flatnonzero(counts == 0)
        worst = np.argsort(scores)[: len(empty)]
        sums[empty], counts[empty] = some[worst, :dim] * scale[worst, None], 1
        centroids = sums / counts[:, None].astype(np.float32)
        if metric == "cosine":
            centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-30)
    whole = codes.arrays.scale / 2 if metric == "l2" else codes.arrays.scale
    lists, _ = _assign(metric, codes.arrays.codes, whole, centroids)
    if len(codes.arrays.names):
        lists = lists[codes.inverse]
    return lists_of(metric, centroids, lists)


def sampled(rows: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows that centroids are learned from, ascending, and which of these are the first centroids; int64 of each."""
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.choice(rows, min(rows, SAMPLE * count), replace=False))
    return sample, rng.choice(len(sample), count, replace=False)


def lists_of(metric: str, centroids: np.ndarray, numbers: np.ndarray) -> Lists:
    """The lists of rows, of which each is in one of `numbers`, int32 `[n]`; nothing was measured of them yet."""
    order = np.argsort(numbers, kind="stable").astype(np.int32)
    ends = np.searchsorted(numbers[order], np.arange(len(centroids) + 1)).astype(np.int64)
    return Lists(metric, centroids, order, ends, {})


def _assign(metric: str, codes: np.ndarray, scale: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    coded = make_query_codes("ip", centroids).arrays
    penalty = _penalty(metric, centroids)
    lists, scores = np.empty(len(scale), np.int32), np.empty(len(scale), np.float32)
    shares(len(scale), lambda a, b: assign(codes, scale, a, b, coded.codes, coded.steps, penalty, lists, scores))
    return lists, scores
