"""Search by one call of a kernel, which leaves Python the less to do: a few queries take no longer than that would."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from abi_jax.wdbx.search.coded_part import CodedPart
from abi_jax.wdbx.search.codes import PADDED, largest_code
from abi_jax.wdbx.search.flat import SMALL
from abi_jax.wdbx.search.found import Found, bases_of
from abi_jax.wdbx.search.ivf import QUERIES_OF_A_SHARE, careful
from abi_jax.wdbx.search.kernels import packed
from abi_jax.wdbx.search.kernels.answer import LACKING, OTHERWISE, answer
from abi_jax.wdbx.search.kernels.arrays import METRIC_NUMBERS
from abi_jax.wdbx.search.plan import BY_LISTS, Plan, counted_errors
from abi_jax.wdbx.search.product_part import ProductPart
from abi_jax.wdbx.search.threads import shares

SMALL_ENOUGH = 1 << 21  # codes that one core looks at by itself, a query
TIES = 16  # rows behind the last one that may score the same
NAMELESS = np.zeros((0, 0), np.int64)


@dataclass(frozen=True)
class OneCall:
    """A search of parts, ready to be called. See `kernels.answer`.

    scanned: codes of parts that are looked at whole, for each query. named: whether all parts have ids. kept: what
    addresses are of.
    """

    table: np.ndarray
    reals: np.ndarray
    about: tuple[Any, ...]
    top_k: int
    scanned: int
    named: bool
    bases: np.ndarray
    kept: tuple[Any, ...]

    def __call__(self, queries: np.ndarray) -> tuple[Found, np.ndarray | None] | None:
        """What queries `[B, D]`, float32, find, and those that found too little, if any. None: search step by step."""
        count, width = len(queries), self.top_k + TIES
        if not queries.flags.carray:  # another kernel would be compiled for what cannot be written to
            queries = queries.copy()
        rows, scores = np.empty((count, width), np.int64), np.empty((count, width), np.float32)
        counts, tied = np.empty(count, np.int64), np.empty(count, bool)
        ids = np.empty((count, width), np.int64) if self.named else NAMELESS
        widest = 0

        def work(first: int, last: int) -> None:
            nonlocal widest
            done = answer(self.table, self.reals, *self.about, queries, first, last, rows, scores, counts, tied, ids)
            widest = min(widest, done) if min(widest, done) < 0 else max(widest, done)

        shares(count, work, QUERIES_OF_A_SHARE)
        if widest == OTHERWISE:
            return None
        lacking = None
        if widest == LACKING:
            lacking, widest = np.flatnonzero(counts == LACKING), int(counts.max(initial=0))
        names = ids[:, :widest] if self.named else None
        return Found(rows[:, :widest], scores[:, :widest], counts, tied, self.bases, names), lacking


def one_call(
    parts: Sequence[CodedPart | ProductPart], plans: Sequence[tuple[Plan, int]], metric: str, top_k: int, recall: float
) -> OneCall | None:
    """A call that searches parts by plans, in their order; None where none does."""
    scanned = sum(_scanned(plan, parts[number]) for plan, number in plans)
    if not len(plans) or scanned > SMALL_ENOUGH or not all(_fits(plan, parts[number]) for plan, number in plans):
        return None
    chosen = [parts[number] for _, number in plans]
    longest = max((each.codes.longest for each in chosen if isinstance(each, CodedPart)), default=0.0)
    if metric != "cosine" and 0 < longest < SMALL:
        return None
    table, reals = np.zeros((len(plans), packed.COLUMNS), np.int64), np.zeros((len(plans), packed.REALS))
    kept: list[Any] = []
    bases = bases_of(*(len(each.codes) for each in parts))
    for row, real, (plan, number), part in zip(table, reals, plans, chosen, strict=True):
        kept += _fill(row, real, part, plan, recall, top_k)
        row[packed.BASE] = bases[number]
    least = min(top_k, sum(each.num_allowed for each in parts))
    dim, width = chosen[0].vectors.shape[1], int(table[0, packed.WIDTH])
    about = (METRIC_NUMBERS[metric], largest_code(width), counted_errors(recall, dim), top_k, least)
    named = all(part.ids is not None for part in chosen)
    return OneCall(table, reals, about, top_k, scanned, named, bases, tuple(kept))


def _scanned(plan: Plan, part: CodedPart | ProductPart) -> int:
    """Codes that a query looks at where no lists are chosen."""
    if plan.way in BY_LISTS:
        return 0
    return int(part.codes.codes.size if isinstance(part, ProductPart) else part.codes.arrays.codes.size)


def _fits(plan: Plan, part: CodedPart | ProductPart) -> bool:
    """Whether a part can be searched so."""
    vectors = part.vectors
    if not isinstance(vectors, np.ndarray) or plan.way == "gather":
        return False
    return vectors.dtype == np.float32 and vectors.flags.c_contiguous and vectors.flags.aligned


def _fill(
    row: np.ndarray, real: np.ndarray, part: CodedPart | ProductPart, plan: Plan, recall: float, top_k: int
) -> list[Any]:
    """Writes the row of a part. Returns the arrays that it has addresses of."""
    kept = []

    def at(column: int, array: np.ndarray, dtype: type) -> None:
        whole: np.ndarray = np.require(array, dtype, ["C", "A"])
        if whole.size:
            row[column] = whole.ctypes.data
            kept.append(whole)

    row[packed.ROWS] = len(part.codes)
    if isinstance(part, ProductPart):
        codes = part.codes
        row[packed.WIDTH] = -(-part.vectors.shape[1] // PADDED) * PADDED
        row[packed.SPACES], row[packed.WANTED] = len(codes.books), part.plan(recall, top_k).candidates
        at(packed.PRODUCTS, codes.codes, np.uint8)
        at(packed.ORDER, codes.order, np.int32)
        at(packed.BOOKS, codes.centroids[0], np.float64)
        at(packed.SQUARES, codes.centroids[1], np.float64)
        real[2] = careful(part.recall_of_lists(recall, top_k))
    else:
        arrays = part.codes.arrays
        row[packed.WIDTH] = arrays.codes.shape[1]
        at(packed.CODES, arrays.codes, np.int8)
        at(packed.SCALE, arrays.scale, np.float32)
        at(packed.OFFSET, arrays.offset, np.float32)
        at(packed.ERROR, arrays.error, np.float32)
        at(packed.NAMES, arrays.names, np.int32)
        real[0], real[2] = part.codes.longest, careful(recall)
    at(packed.VECTORS, part.vectors, np.float32)
    if part.ids is not None:
        at(packed.IDS, part.ids, np.int64)
    if part.allowed is not None:
        at(packed.ALLOWED, part.allowed, np.bool_)
    if plan.way not in BY_LISTS or part.lists is None:
        return kept
    lists = part.lists.arrays
    row[packed.LISTS], row[packed.NEAREST] = len(lists.codes), min(plan.nearest, len(lists.codes))
    at(packed.CENTROIDS, lists.codes, np.int8)
    at(packed.CENTROID_SCALE, lists.scale, np.float32)
    at(packed.PENALTY, lists.penalty, np.float32)
    at(packed.ENDS, lists.ends, np.int64)
    if part.allowed_in_lists is not None:
        expected = part.lists.expected
        row[packed.MEASURED], row[packed.REACH] = expected.expected.shape
        real[1] = part.num_allowed / len(part.codes)
        at(packed.IN_LISTS, part.allowed_in_lists, np.int64)
        at(packed.NEIGHBOURS, expected.neighbours, np.float64)
        at(packed.EXPECTED, expected.expected, np.float64)
        at(packed.MIDDLES, expected.middles, np.int64)
    return kept
