"""Search on a CPU: codes say which rows are worth a look, exact scores decide. docs/architecture.md, "Search"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from abi_jax.wdbx.search import flat
from abi_jax.wdbx.search.codes import Codes, CodesMaker, QueryCodes, make_query_codes
from abi_jax.wdbx.search.filtered import choose_lists
from abi_jax.wdbx.search.found import NONE_FOUND, Found, bases_of, found_of, stacked
from abi_jax.wdbx.search.ivf import QUERIES_OF_A_SHARE, Lists
from abi_jax.wdbx.search.kernels.arrays import GROUP, OVERFLOW, TILE, Kept
from abi_jax.wdbx.search.kernels.decide import decide, gather
from abi_jax.wdbx.search.kernels.lists import count_allowed
from abi_jax.wdbx.search.kernels.scan import scan_chosen, scan_lists, scan_tiles
from abi_jax.wdbx.search.plan import DEVIATIONS, Plan, choose
from abi_jax.wdbx.search.product_part import ProductPart
from abi_jax.wdbx.search.threads import run, shares, workers
from abi_jax.wdbx.search.told import Told

METRIC_NUMBERS = {"ip": 0, "cosine": 1, "l2": 2}
BY_LISTS = ("ivf", "ivf+pq")
ROOM = 512  # rows that are kept for a query to begin with, and four times `top_k`
SHARE = 1 << 21  # products that are worth a thread
CROWDED = 1 << 23  # rows that are kept, of all queries: with more, fewer are searched at once
AT_ONCE = 128  # queries: memory is as many times what rows are kept for one of them
PIECE = 48  # queries of which a thread searches all rows, where there are enough for all threads: no two share a floor
NOTHING = np.zeros(0, np.int32)
NOWHERE = np.zeros(0, np.int64)
EVERYTHING = np.zeros(0, bool)
NO_CODES = CodesMaker("ip", 1, np.dtype(np.float32)).of(np.zeros((0, 1), np.float32))


@dataclass(frozen=True)
class CodedPart:
    """Rows that are searched together: vectors `[n, D]`, their codes, and which may be found, bool `[n]`; None: all.

    lists: those in whose order the codes stand, if any.
    """

    vectors: np.ndarray
    codes: Codes
    allowed: np.ndarray | None = None
    lists: Lists | None = None

    @cached_property
    def plans(self) -> dict[tuple[float, int], Plan]:
        """Plans that were made, by recall and `top_k`."""
        return {}

    def plan(self, recall: float, top_k: int) -> Plan:
        """How the part is searched."""
        made = self.plans.get((recall, top_k))
        if made is None:
            made = choose(len(self.codes), self.num_allowed, self.lists, recall, top_k)
            self.plans[recall, top_k] = made
        return made

    @property
    def mask(self) -> np.ndarray:
        """Which rows may be found, bool `[n]`."""
        return np.ones(len(self.codes), bool) if self.allowed is None else self.allowed

    @cached_property
    def num_allowed(self) -> int:
        """How many rows may be found."""
        return len(self.codes) if self.allowed is None else int(np.count_nonzero(self.allowed))

    @cached_property
    def allowed_in_lists(self) -> np.ndarray | None:
        """How many rows of each list may be found, int64 `[L]`; None where all may be."""
        if self.lists is None or self.allowed is None:
            return None
        made = np.empty(len(self.lists.centroids), np.int64)
        count_allowed(self.lists.order, self.lists.ends, self.allowed, made)
        return made


AnyPart = CodedPart | ProductPart


def search(
    parts: Sequence[AnyPart],
    metric: str,
    queries: np.ndarray,
    top_k: int,
    recall: float = 1.0,
    told: Told | None = None,
) -> Found:
    """The best rows of each query `[B, D]`, float32; those that tie with the last one are all there.

    recall: of the best rows, how many are to be found on average; 1: all, for certain. told: what was done, if asked.
    """
    cores, count = workers(), len(queries)
    if not count:
        return found_of([], [len(each.codes) for each in parts])
    many = told is None and _enough(parts, queries, top_k, recall, cores)
    if not many and count <= AT_ONCE:
        return _search(parts, metric, queries, top_k, recall, told, cores)
    num = cores * -(-count // (cores * PIECE)) if many else -(-count // AT_ONCE)
    edges = [*(count * i // num // GROUP * GROUP for i in range(num)), count]
    found: list[Found] = [NONE_FOUND] * num

    def work(i: int) -> None:
        some = queries[edges[i] : edges[i + 1]]
        found[i] = _search(parts, metric, some, top_k, recall, told, 1 if many else cores)

    tasks: list[Callable[[], None]] = [partial(work, i) for i in range(num)]
    if many:
        run(tasks)
    else:
        for task in tasks:
            task()
    return stacked(found)


def _enough(parts: Sequence[AnyPart], queries: np.ndarray, top_k: int, recall: float, cores: int) -> bool:
    """Whether every core had better search for some of the queries than for all of them in some of the rows."""
    count, dim = queries.shape
    if cores == 1 or count < cores * GROUP:
        return False
    if count >= cores * QUERIES_OF_A_SHARE:
        return True
    plans = [part.plan(recall, top_k) for part in parts if len(part.codes)]
    rows = sum(each.rows for each in plans)
    return all(each.way in BY_LISTS for each in plans) and rows * dim * count >= cores * SHARE


class _Crowded(Exception):
    """More rows may be among the best than there had better be memory for, with so many queries."""


def _search(
    parts: Sequence[AnyPart],
    metric: str,
    queries: np.ndarray,
    top_k: int,
    recall: float,
    told: Told | None,
    threads: int,
) -> Found:
    try:
        return _search_at_once(parts, metric, queries, top_k, recall, told, threads)
    except _Crowded:
        half = len(queries) // 2
        some = queries[:half], queries[half:]
        return stacked([_search(parts, metric, each, top_k, recall, told, threads) for each in some])


def _search_at_once(
    parts: Sequence[AnyPart],
    metric: str,
    queries: np.ndarray,
    top_k: int,
    recall: float,
    told: Told | None,
    threads: int,
) -> Found:
    share = 1.0 if recall >= 1 else min(1.0, DEVIATIONS / queries.shape[1] ** 0.5)
    coded = make_query_codes(metric, queries, share)
    if _too_small(parts, coded):
        plain = [flat.Part(each.vectors, flat.row_norms(each.vectors), each.mask) for each in _all_of(parts)]
        return flat.search(plain, metric, queries, top_k)
    search_ = _Search(parts, coded, top_k, threads)
    plans = [(part.plan(recall, top_k), number) for number, part in enumerate(parts) if len(part.codes)]
    by_lists = False
    for plan, number in sorted(plans, key=lambda each: -each[0].rows):
        part = parts[number]
        if isinstance(part, ProductPart):
            if len(queries) > 1 and 2 * part.plan(recall, top_k).candidates * len(queries) * threads > CROWDED:
                raise _Crowded
            search_.scan_products(number, part, recall)
            by_lists |= plan.way == "ivf+pq"
            continue
        lists = part.lists
        if plan.way == "ivf" and lists is not None:
            allowed = part.allowed_in_lists
            if allowed is None:
                search_.scan_lists(number, part, lists, plan.nearest)
            else:
                search_.scan_chosen(number, part, lists, choose_lists(lists, allowed, search_.queries, top_k, recall))
            by_lists = True
        else:
            search_.scan_all(number, part, plan.way == "gather")
    lacking = search_.lacking() if by_lists else NOWHERE
    if told is not None:
        done = [(number, search_.done(number, plan, recall)) for plan, number in plans]
        told.add(done, len(queries) - len(lacking))
    if not len(lacking):
        return search_.decide()
    every = _all_of(parts)
    if told is not None:
        told.add([(number, _again(plan, every[number].plan(1, top_k), top_k)) for number, plan in done], len(lacking))
    again = _search(every, metric, queries[lacking], top_k, 1.0, None, threads)
    return again if len(lacking) == len(queries) else search_.decide().replaced(lacking, again)


def _all_of(parts: Sequence[AnyPart]) -> list[CodedPart]:
    """The same parts with codes that find all rows."""
    return [each.every() if isinstance(each, ProductPart) else each for each in parts]


def _too_small(parts: Sequence[AnyPart], queries: QueryCodes) -> bool:
    """Whether products of codes may be less than float32 can tell apart."""
    if queries.metric == "cosine":
        return False
    squares = queries.arrays.squares
    if squares.min() < flat.SMALL**2 and ((squares > 0) & (squares < flat.SMALL**2)).any():
        return True
    lengths = (each.codes.longest for each in parts if isinstance(each, CodedPart))
    return 0 < max(lengths, default=0) < flat.SMALL


def _again(plan: Plan, after: Plan, top_k: int) -> Plan:
    why = f"lists held fewer than {top_k} rows, so that all were searched after them: {after.why}"
    return Plan(after.way, plan.rows + after.rows, plan.of, plan.nearest, why)


class _Search:
    """One search: floors that all threads share, and what each of them keeps."""

    def __init__(self, parts: Sequence[AnyPart], queries: QueryCodes, top_k: int, threads: int) -> None:
        self.threads = threads
        self.parts = parts
        self.queries = queries
        self.top_k = top_k
        self.bases = bases_of(*(len(each.codes) for each in parts))
        self.floors = np.full(len(queries), -np.inf, np.float32)
        self.kept = [_nothing_kept(len(queries), top_k)]
        self.candidates: list[Kept] = []  # of product codes, which have no bounds

    def scan_products(self, number: int, part: ProductPart, recall: float) -> None:
        """Looks at product codes of a part."""
        base = int(self.bases[number])
        self.candidates.append(part.scan(self.queries, self.top_k, recall, self.threads, base))

    def scan_all(self, number: int, part: CodedPart, one_by_one: bool) -> None:
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

    def scan_lists(self, number: int, part: CodedPart, lists: Lists, nearest: int) -> None:
        """Looks at the `nearest` lists of a part, in as many threads as queries are worth."""
        self._scan_lists(number, part, scan_lists, *lists.arrays, min(nearest, len(lists.centroids)))

    def scan_chosen(self, number: int, part: CodedPart, lists: Lists, chosen: np.ndarray) -> None:
        """Looks at the lists of a part that were chosen for each query; see `choose_lists`."""
        self._scan_lists(number, part, scan_chosen, lists.ends, chosen)

    def _scan_lists(self, number: int, part: CodedPart, kernel: Callable[..., int], *which: Any) -> None:
        heaps, sizes = self.kept[0].heaps.copy(), self.kept[0].sizes.copy()
        about = (*which, *self._about(number, part))
        full = True
        while full:
            full = False

            def scan(first: int, last: int) -> None:
                nonlocal full
                asked = (first, last, *self.queries.arrays, self.floors)
                if kernel(*about, *asked, *self.kept[0]) == OVERFLOW:
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
            raise _Crowded
        made = _nothing_kept(len(sizes), max(self.top_k, kept.found.shape[1] // 2), self.top_k)
        for query, count in enumerate(kept.numbers.tolist()):
            row = kept.found[query, :count]
            others = np.flatnonzero((row < base) | (row >= end))
            made.numbers[query] = len(others)
            made.found[query, : len(others)] = row[others]
            made.upper[query, : len(others)] = kept.upper[query, others]
        made.heaps[:], made.sizes[:] = heaps, sizes
        self.kept[thread] = made

    def done(self, number: int, plan: Plan, recall: float) -> Plan:
        """A plan that was carried out, with the rows and lists that were looked at on average."""
        part = self.parts[number]
        lists, allowed = part.lists, part.allowed_in_lists
        if plan.way not in BY_LISTS or lists is None:
            return plan
        if isinstance(part, ProductPart):
            chosen = part.chosen(self.queries, self.top_k, recall)
        elif allowed is None:
            chosen = lists.nearest(self.queries, plan.nearest)
        else:
            chosen = choose_lists(lists, allowed, self.queries, self.top_k, recall)
        rows = np.where(chosen >= 0, np.diff(lists.ends)[chosen], 0).sum() / len(chosen)
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

        shares(count, work, 2 * QUERIES_OF_A_SHARE)
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
