"""Search on a CPU: codes say which rows are worth a look, exact scores decide. docs/architecture.md, "Search"."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from abi_jax.wdbx.search.codes import Codes, QueryCodes, make_query_codes
from abi_jax.wdbx.search.flat import Found
from abi_jax.wdbx.search.ivf import Lists, probe
from abi_jax.wdbx.search.kernels import (
    GROUP,
    OVERFLOW,
    TILE,
    Kept,
    QueryArrays,
    Ranges,
    best,
    gather,
    rank,
    rescore,
    scan,
)
from abi_jax.wdbx.search.plan import DEVIATIONS, choose
from abi_jax.wdbx.search.threads import run, shares, workers

METRIC_NUMBERS = {"ip": 0, "cosine": 1, "l2": 2}
ROOM = 512  # rows that are kept for a query to begin with, and four times `top_k`
SHARE = 1 << 21  # products that are worth a thread
AT_ONCE = 128  # queries: memory is as many times what rows are kept for one of them
QUERIES_OF_A_SHARE = 32  # that are worth a thread where exact scores are computed
NOTHING = np.zeros(0, np.int32)
NOWHERE = np.zeros(0, np.int64)
EVERYTHING = np.zeros(0, bool)


@dataclass(frozen=True)
class CodedPart:
    """Rows that are searched together: vectors `[n, D]`, their codes, and which may be found, bool `[n]`; None: all.

    lists: those in whose order the codes stand, if any.
    """

    vectors: np.ndarray
    codes: Codes
    allowed: np.ndarray | None = None
    lists: Lists | None = None


def search(
    parts: Sequence[CodedPart], metric: str, queries: np.ndarray, top_k: int, recall: float = 1.0
) -> list[Found]:
    """The best rows of each query `[B, D]`, float32; those that tie with the last one are all there.

    recall: of the best rows, how many are to be found on average; 1: all, for certain.
    """
    if len(queries) > AT_ONCE:
        some = [queries[start : start + AT_ONCE] for start in range(0, len(queries), AT_ONCE)]
        return [found for each in some for found in search(parts, metric, each, top_k, recall)]
    coded = make_query_codes(metric, queries)
    search_ = _Search(parts, coded if recall >= 1 else _likely(coded), top_k)
    plans = [choose(part, recall, top_k) for part in parts]
    for number in sorted(range(len(parts)), key=lambda i: -plans[i].rows):
        part, plan = parts[number], plans[number]
        if plan.way == "ivf" and part.lists is not None:
            search_.scan(number, *probe(part.lists, search_.queries, plan.nearest))
        else:
            search_.scan(number, whole(part, len(queries), plan.way == "gather"), search_.queries.arrays)
    if any(plan.way == "ivf" for plan in plans) and search_.found_too_few():
        return search(parts, metric, queries, top_k)
    return search_.decide()


def _likely(queries: QueryCodes) -> QueryCodes:
    """Queries for which an error of codes counts as it is likely to be, not as it could be at most."""
    share = np.float32(min(1.0, DEVIATIONS / np.sqrt(queries.exact.shape[1])))
    return replace(queries, arrays=queries.arrays._replace(lengths=queries.arrays.lengths * share))


def whole(part: CodedPart, queries: int, one_by_one: bool) -> Ranges:
    """All rows for all queries; only those that are allowed, if `one_by_one`."""
    rows, count = NOTHING, len(part.codes)
    if one_by_one and part.allowed is not None:
        rows = part.codes.places(np.flatnonzero(part.allowed))
        count = len(rows)
    starts = np.arange(0, count, TILE)
    groups = np.arange(0, queries, GROUP)
    return Ranges(
        np.repeat(starts, len(groups)),
        np.repeat(np.minimum(starts + TILE, count), len(groups)),
        np.tile(groups, len(starts)),
        np.tile(np.minimum(GROUP, queries - groups), len(starts)),
        rows,
    )


class _Search:
    """One search: floors that all threads share, and what each of them keeps."""

    def __init__(self, parts: Sequence[CodedPart], queries: QueryCodes, top_k: int) -> None:
        self.parts = parts
        self.queries = queries
        self.top_k = top_k
        self.bases = np.cumsum([0, *(len(each.codes) for each in parts)])
        self.floors = np.full(len(queries), -np.inf, np.float32)
        self.kept: list[Kept] = []

    def scan(self, number: int, ranges: Ranges, queries: QueryArrays) -> None:
        """Looks at ranges of part `number`, in as many threads as they are worth. queries: those that ranges name."""
        part = self.parts[number]
        work = np.cumsum((ranges.ends - ranges.starts) * ranges.counts) * part.codes.arrays.codes.shape[1]
        if not len(work):
            return
        threads = max(1, min(workers(), int(work[-1]) // SHARE))
        while len(self.kept) < threads:
            self.kept.append(_nothing_kept(len(self.queries), self.top_k))
        edges = [*np.searchsorted(work, [work[-1] * i // threads for i in range(threads)]).tolist(), len(work)]
        run([partial(self._scan, number, ranges, queries, edges[i], edges[i + 1], i) for i in range(threads)])

    def _scan(self, number: int, ranges: Ranges, queries: QueryArrays, first: int, last: int, thread: int) -> None:
        part, base = self.parts[number], int(self.bases[number])
        allowed = EVERYTHING if part.allowed is None else part.allowed
        slack = self.queries.slack(part.codes.longest)
        before = self.kept[thread]
        heaps, sizes = before.heaps.copy(), before.sizes.copy()
        about = (base, allowed, *ranges, first, last, *queries, slack, self.floors)
        while scan(*part.codes.arrays, *about, *self.kept[thread]) == OVERFLOW:
            self.kept[thread] = _wider(self.kept[thread], heaps, sizes, base, len(part.codes))

    def found_too_few(self) -> bool:
        """Whether some query has less than `top_k` rows, though there are more that may be found."""
        counts = np.sum([each.numbers for each in self.kept], axis=0) if self.kept else np.zeros(len(self.queries))
        if counts.min(initial=self.top_k) >= self.top_k:
            return False
        allowed = [len(each.codes) if each.allowed is None else np.count_nonzero(each.allowed) for each in self.parts]
        return bool(counts.min(initial=self.top_k) < min(self.top_k, sum(allowed)))

    def decide(self) -> list[Found]:
        """Exact scores of what was kept, and the best of these."""
        count, metric = len(self.queries), METRIC_NUMBERS[self.queries.metric]
        room = sum(each.found.shape[1] for each in self.kept)
        rows, bounds = np.empty((count, room), np.int64), np.empty((count, room), np.float32)
        counts = np.zeros(count, np.int64)
        for each in self.kept:
            gather(each.found, each.upper, each.numbers, self.floors, rows, bounds, counts)
        widest = int(counts.max(initial=0))
        exact, scores = np.full((count, widest), np.nan), np.empty((count, widest), np.float32)
        heaps, sizes = np.empty((count, self.top_k)), np.zeros(count, np.int64)
        bases = self.bases.tolist()[:-1]
        vectors = [_as_float32(part, base, rows, counts) for part, base in zip(self.parts, bases, strict=True)]
        exactly, squares = self.queries.exact, self.queries.squares

        def work(first: int, last: int) -> None:
            rank(first, last, rows, bounds, counts)
            for base, (block, wanted) in zip(bases, vectors, strict=True):
                rescore(
                    metric,
                    block,
                    wanted,
                    base,
                    first,
                    last,
                    exactly,
                    squares,
                    rows,
                    bounds,
                    counts,
                    heaps,
                    sizes,
                    exact,
                )
            best(metric, self.top_k, first, last, rows, exact, counts, scores)

        shares(count, work, QUERIES_OF_A_SHARE)
        return [self._found(rows[q, :found], scores[q, :found]) for q, found in enumerate(counts.tolist())]

    def _found(self, rows: np.ndarray, scores: np.ndarray) -> Found:
        if len(self.parts) == 1:
            return Found(np.zeros(len(rows), np.int64), rows, scores)
        parts = np.searchsorted(self.bases, rows, "right") - 1
        return Found(parts, rows - self.bases[parts], scores)


def _as_float32(part: CodedPart, base: int, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of a part, float32, and, where these are but some, the numbers of their rows, ascending, else nothing."""
    if isinstance(part.vectors, np.ndarray) and part.vectors.dtype == np.float32:
        return np.asarray(part.vectors), NOWHERE
    there = (rows >= base) & (rows < base + len(part.codes)) & (np.arange(rows.shape[1]) < counts[:, None])
    wanted = np.unique(rows[there])
    return np.asarray(part.vectors[wanted - base]).astype(np.float32), wanted


def _nothing_kept(queries: int, top_k: int) -> Kept:
    room = max(ROOM, 4 * top_k)
    return Kept(
        np.full((queries, top_k), -np.inf, np.float32),
        np.zeros(queries, np.int64),
        np.empty((queries, room), np.int64),
        np.empty((queries, room), np.float32),
        np.zeros(queries, np.int64),
    )


def _wider(kept: Kept, heaps: np.ndarray, sizes: np.ndarray, base: int, rows: int) -> Kept:
    """Twice the room, and nothing of the part whose scan had too little: heaps and sizes are as they were before it."""
    made = _nothing_kept(len(sizes), max(heaps.shape[1], kept.found.shape[1] // 2))
    for query, count in enumerate(kept.numbers.tolist()):
        row = kept.found[query, :count]
        others = np.flatnonzero((row < base) | (row >= base + rows))
        made.numbers[query] = len(others)
        made.found[query, : len(others)] = row[others]
        made.upper[query, : len(others)] = kept.upper[query, others]
    return made._replace(heaps=heaps.copy(), sizes=sizes.copy())
