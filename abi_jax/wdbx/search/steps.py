"""A search step by step: queries are codes already, threads scan parts, and exact scores decide in the end."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from abi_jax.wdbx.search.coded_part import CodedPart
from abi_jax.wdbx.search.codes import QueryCodes
from abi_jax.wdbx.search.found import Found, bases_of
from abi_jax.wdbx.search.ivf import QUERIES_OF_A_SHARE
from abi_jax.wdbx.search.kernels.arrays import METRIC_NUMBERS, OVERFLOW, ROOM, TILE, Kept
from abi_jax.wdbx.search.kernels.decide import decide, gather
from abi_jax.wdbx.search.kernels.scan import scan_lists, scan_tiles
from abi_jax.wdbx.search.plan import BY_LISTS, Plan
from abi_jax.wdbx.search.product_part import ProductPart
from abi_jax.wdbx.search.threads import run, shares

AnyPart = CodedPart | ProductPart

SHARE = 1 << 21  # products that are worth a thread
CROWDED = 1 << 23  # rows that are kept, of all queries: with more, fewer are searched at once
NOTHING = np.zeros(0, np.int32)
NOWHERE = np.zeros(0, np.int64)
EVERYTHING = np.zeros(0, bool)


class CrowdedError(Exception):
    """More rows may be among the best than there had better be memory for, with so many queries."""


class Scans:
    """One search: floors that all threads share, and what each of them keeps."""

    def __init__(self, parts: Sequence[AnyPart], queries: QueryCodes, top_k: int, recall: float, threads: int) -> None:
        self.threads = threads
        self.parts = parts
        self.queries = queries
        self.top_k = top_k
        self.recall = recall
        self.bases = bases_of(*(len(each.codes) for each in parts))
        self.floors = np.full(len(queries), -np.inf, np.float32)
        self.kept = [_nothing_kept(len(queries), top_k)]
        self.candidates: list[Kept] = []  # of product codes, which have no bounds

    def scan(self, number: int, plan: Plan) -> None:
        """Looks at a part."""
        part = self.parts[number]
        if isinstance(part, ProductPart):
            self._scan_products(number, part)
        elif plan.way == "ivf" and part.lists is not None:
            chosen = part.chosen(self.queries, plan, self.top_k, self.recall)
            self._scan_lists(number, part, part.lists.ends, chosen)
        else:
            self._scan_all(number, part, plan.way == "gather")

    def _scan_products(self, number: int, part: ProductPart) -> None:
        candidates = part.plan(self.recall, self.top_k).candidates
        if len(self.queries) > 1 and 2 * candidates * len(self.queries) * self.threads > CROWDED:
            raise CrowdedError
        base = int(self.bases[number])
        self.candidates.append(part.scan(self.queries, self.top_k, self.recall, self.threads, base))

    def _scan_all(self, number: int, part: CodedPart, one_by_one: bool) -> None:
        """Looks at all rows of a part, in as many threads as they are worth; at the allowed ones, if `one_by_one`."""
        rows = NOTHING
        count = len(part.codes)
        if one_by_one and part.allowed is not None:
            rows = part.codes.places(np.flatnonzero(part.allowed))
            count = len(rows)
        work = count * len(self.queries) * part.codes.arrays.codes.shape[1]
        threads = max(1, min(self.threads, work // SHARE, -(-count // TILE)))
        while len(self.kept) < threads:
            self.kept.append(_nothing_kept(len(self.queries), self.top_k))
        tiles = -(-count // TILE)
        edges = [min(count, tiles * i // threads * TILE) for i in range(threads + 1)]

        def scan(first: int, last: int, thread: int) -> None:
            about = (*self._about(number, part), rows, first, last, *self.queries.arrays, self.floors)
            heaps, sizes = self.kept[thread].heaps.copy(), self.kept[thread].sizes.copy()
            while scan_tiles(*about, *self.kept[thread]) == OVERFLOW:
                self._widen(number, thread, heaps, sizes)

        run([partial(scan, edges[i], edges[i + 1], i) for i in range(threads)])

    def _scan_lists(self, number: int, part: CodedPart, ends: np.ndarray, chosen: np.ndarray) -> None:
        """Looks at lists that were chosen for each query, in as many threads as queries are worth."""
        heaps, sizes = self.kept[0].heaps.copy(), self.kept[0].sizes.copy()
        about = (ends, chosen, *self._about(number, part))
        full = True
        while full:
            full = False

            def scan(first: int, last: int) -> None:
                nonlocal full
                asked = (first, last, *self.queries.arrays, self.floors)
                if scan_lists(*about, *asked, *self.kept[0]) == OVERFLOW:
                    full = True

            shares(len(self.queries), scan, QUERIES_OF_A_SHARE)
            if full:
                self._widen(number, 0, heaps, sizes)

    def _about(self, number: int, part: CodedPart) -> tuple[Any, ...]:
        allowed = EVERYTHING if part.allowed is None else part.allowed
        return (*part.codes.arrays, part.codes.longest, int(self.bases[number]), allowed)

    def _widen(self, number: int, thread: int, heaps: np.ndarray, sizes: np.ndarray) -> None:
        """Twice the room, and nothing of the part that had too little: heaps and sizes are as they were before it."""
        kept, base, end = self.kept[thread], self.bases[number], self.bases[number + 1]
        if len(sizes) > 1 and 2 * kept.found.size > CROWDED:
            raise CrowdedError
        made = _nothing_kept(len(sizes), max(self.top_k, kept.found.shape[1] // 2), self.top_k)
        for query, count in enumerate(kept.numbers.tolist()):
            row = kept.found[query, :count]
            others = np.flatnonzero((row < base) | (row >= end))
            made.numbers[query] = len(others)
            made.found[query, : len(others)] = row[others]
            made.upper[query, : len(others)] = kept.upper[query, others]
        made.heaps[:], made.sizes[:] = heaps, sizes
        self.kept[thread] = made

    def done(self, number: int, plan: Plan) -> Plan:
        """A plan that was carried out, with the rows and lists that were looked at on average."""
        part = self.parts[number]
        if plan.way not in BY_LISTS or part.lists is None:
            return plan
        if isinstance(part, ProductPart):
            chosen = part.chosen(self.queries, self.top_k, self.recall)
        else:
            chosen = part.chosen(self.queries, plan, self.top_k, self.recall)
        rows = np.where(chosen >= 0, np.diff(part.lists.ends)[chosen], 0).sum() / len(chosen)
        nearest = np.count_nonzero(chosen >= 0) / len(chosen)
        return replace(plan, rows=round(float(rows)), nearest=round(nearest))

    def lacking(self) -> np.ndarray:
        """Queries that have less than `top_k` rows, though there are more that may be found, int64."""
        counts = self.kept[0].numbers
        for each in (*self.kept[1:], *self.candidates):
            counts = counts + each.numbers
        if int(counts.min()) >= self.top_k:
            return NOWHERE
        return np.flatnonzero(counts < min(self.top_k, sum(each.num_allowed for each in self.parts)))

    def decide(self) -> Found:
        """Exact scores of what was kept, and the best of these."""
        count = len(self.queries)
        if len(self.kept) == 1 and not self.candidates and all(_is_float32(each) for each in self.parts):
            _, _, rows, bounds, counts = self.kept[0]
        else:
            kept = [*self.kept, *self.candidates]
            room = sum(each.found.shape[1] for each in kept)
            rows, bounds = np.empty((count, room), np.int64), np.empty((count, room), np.float32)
            counts = np.zeros(count, np.int64)
            for each in kept:
                gather(each.found, each.upper, each.numbers, self.floors, rows, bounds, counts)
        exact, scores = np.empty(rows.shape), np.empty(rows.shape, np.float32)
        heaps, sizes = np.empty((count, self.top_k)), np.empty(count, np.int64)
        metric, asked, squares = METRIC_NUMBERS[self.queries.metric], self.queries.exact, self.queries.arrays.squares
        bases = zip(self.parts, self.bases.tolist(), strict=False)
        vectors = [_as_float32(part, base, rows, counts) for part, base in bases if len(part.codes)]
        tied = np.zeros(count, bool)

        def work(first: int, last: int) -> None:
            for number, (block, wanted, base) in enumerate(vectors):
                turn = (number == 0, number == len(vectors) - 1, first, last)
                about = (rows, bounds, counts, heaps, sizes, exact, scores, tied)
                decide(metric, block, wanted, base, *turn, asked, squares, self.floors, *about)

        shares(count, work, QUERIES_OF_A_SHARE if self.candidates else 2 * QUERIES_OF_A_SHARE)
        widest = int(counts.max(initial=0))
        return Found(rows[:, :widest].copy(), scores[:, :widest].copy(), counts, tied, self.bases)


def _is_float32(part: AnyPart) -> bool:
    return isinstance(part.vectors, np.ndarray) and part.vectors.dtype == np.float32


def _as_float32(part: AnyPart, base: int, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Vectors of a part, float32, the number of the first; and, where these are but some, those of all, ascending."""
    if _is_float32(part):
        return np.asarray(part.vectors), NOWHERE, base
    there = (rows >= base) & (rows < base + len(part.codes)) & (np.arange(rows.shape[1]) < counts[:, None])
    wanted = np.unique(rows[there])
    return np.asarray(part.vectors[wanted - base]).astype(np.float32), wanted, base


def _nothing_kept(queries: int, least: int, top_k: int | None = None) -> Kept:
    """Room for four times `least` rows of each query."""
    room, top_k = max(ROOM, 4 * least), least if top_k is None else top_k
    return Kept(
        np.full((queries, top_k), -np.inf, np.float32),
        np.zeros(queries, np.int64),
        np.empty((queries, room), np.int64),
        np.empty((queries, room), np.float32),
        np.zeros(queries, np.int64),
    )
