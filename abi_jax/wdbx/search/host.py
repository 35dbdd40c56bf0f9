"""Exact search on a CPU: codes say which rows are worth a look, exact scores decide. docs/architecture.md, "Search"."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from abi_jax.wdbx.search.codes import Codes, QueryCodes, make_query_codes
from abi_jax.wdbx.search.flat import Found
from abi_jax.wdbx.search.kernels import GROUP, OVERFLOW, TILE, Kept, Ranges, gather, rank, rescore, scan
from abi_jax.wdbx.search.threads import run, workers

METRIC_NUMBERS = {"ip": 0, "cosine": 1, "l2": 2}
ROOM = 512  # rows that are kept for a query to begin with, and four times `top_k`
SHARE = 1 << 21  # products that are worth a thread
FEW = 8  # where only one row of so many may be found, these are looked at one by one
NOTHING = np.zeros(0, np.int32)
EVERYTHING = np.zeros(0, bool)


@dataclass(frozen=True)
class CodedPart:
    """Rows that are searched together: vectors `[n, D]`, their codes, and which may be found, bool `[n]`; None: all."""

    vectors: np.ndarray
    codes: Codes
    allowed: np.ndarray | None = None


def search(parts: Sequence[CodedPart], metric: str, queries: np.ndarray, top_k: int) -> list[Found]:
    """The best rows of each query `[B, D]`, float32; those that tie with the last one are all there."""
    search_ = _Search(parts, make_query_codes(metric, queries), top_k)
    for number in sorted(range(len(parts)), key=lambda i: -len(parts[i].codes)):
        search_.scan(number, whole(parts[number], len(queries)))
    return search_.decide()


def whole(part: CodedPart, queries: int) -> Ranges:
    """All rows for all queries; only the rows that are allowed, where these are few."""
    rows, count = NOTHING, len(part.codes)
    if part.allowed is not None:
        allowed = np.flatnonzero(part.allowed)
        if len(allowed) * FEW < count:
            rows, count = part.codes.places(allowed), len(allowed)
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

    def scan(self, number: int, ranges: Ranges) -> None:
        """Looks at ranges of part `number`, in as many threads as they are worth."""
        part = self.parts[number]
        work = np.cumsum((ranges.ends - ranges.starts) * ranges.counts) * part.codes.arrays.codes.shape[1]
        if not len(work):
            return
        threads = max(1, min(workers(), int(work[-1]) // SHARE))
        while len(self.kept) < threads:
            self.kept.append(_nothing_kept(len(self.queries), self.top_k))
        edges = [*np.searchsorted(work, [work[-1] * i // threads for i in range(threads)]).tolist(), len(work)]
        run([partial(self._scan, number, ranges, edges[i], edges[i + 1], i) for i in range(threads)])

    def _scan(self, number: int, ranges: Ranges, first: int, last: int, thread: int) -> None:
        part, base = self.parts[number], int(self.bases[number])
        allowed = EVERYTHING if part.allowed is None else part.allowed
        slack = self.queries.slack(part.codes.longest)
        before = self.kept[thread]
        heaps, sizes = before.heaps.copy(), before.sizes.copy()
        arrays, queries = part.codes.arrays, self.queries.arrays
        while (
            scan(arrays, base, allowed, ranges, first, last, queries, slack, self.floors, self.kept[thread]) == OVERFLOW
        ):
            self.kept[thread] = _wider(self.kept[thread], heaps, sizes, base, len(part.codes))

    def decide(self) -> list[Found]:
        """Exact scores of what was kept, and the best of these."""
        count = len(self.queries)
        if not self.kept:
            return [Found(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))] * count
        room = sum(each.found.shape[1] for each in self.kept)
        rows, bounds = np.empty((count, room), np.int64), np.empty((count, room), np.float32)
        counts = np.zeros(count, np.int64)
        for each in self.kept:
            gather(each, self.floors, rows, bounds, counts)
        rank(rows, bounds, counts)
        exact = np.full((count, max(1, int(counts.max()))), np.nan)
        heaps, sizes = np.empty((count, self.top_k)), np.zeros(count, np.int64)
        queries = self.queries
        for part, base in zip(self.parts, self.bases.tolist(), strict=False):
            vectors, first, numbered = _as_float32(part, base, rows, counts)
            rescore(
                METRIC_NUMBERS[queries.metric],
                vectors,
                first,
                0,
                count,
                queries.exact,
                queries.squares,
                numbered,
                bounds,
                counts,
                heaps,
                sizes,
                exact,
            )
        return [self._best(rows[q], exact[q], float(queries.squares[q])) for q in range(count)]

    def _best(self, rows: np.ndarray, exact: np.ndarray, square: float) -> Found:
        """The best of the rows that have an exact score, as it is told."""
        metric = self.queries.metric
        scored = np.flatnonzero(~np.isnan(exact))
        scores = (square - exact[scored] if metric == "l2" else exact[scored]).astype(np.float32)
        keys = scores if metric == "l2" else -scores
        order = np.argsort(keys, kind="stable")
        if len(order) > self.top_k:
            order = order[keys[order] <= keys[order[self.top_k - 1]]]
        chosen = rows[scored[order]]
        parts = np.searchsorted(self.bases, chosen, "right") - 1
        return Found(parts, chosen - self.bases[parts], scores[order])


def _as_float32(part: CodedPart, base: int, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Vectors in which rows of a part stand, float32, the number of the first, and the rows by their numbers there."""
    if isinstance(part.vectors, np.ndarray) and part.vectors.dtype == np.float32:
        return np.asarray(part.vectors), base, rows
    there = (rows >= base) & (rows < base + len(part.codes)) & (np.arange(rows.shape[1]) < counts[:, None])
    wanted = np.unique(rows[there])
    numbered = np.full(rows.shape, -1, np.int64)
    numbered[there] = np.searchsorted(wanted, rows[there])
    return np.asarray(part.vectors[wanted - base]).astype(np.float32), 0, numbered


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
