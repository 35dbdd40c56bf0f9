"""Search on a CPU: codes say which rows are worth a look, exact scores decide. docs/architecture.md, "Search"."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from abi_jax.wdbx.search import flat
from abi_jax.wdbx.search.coded_part import CodedPart
from abi_jax.wdbx.search.codes import QueryCodes, make_query_codes
from abi_jax.wdbx.search.found import NONE_FOUND, Found, found_of, stacked
from abi_jax.wdbx.search.ivf import QUERIES_OF_A_SHARE
from abi_jax.wdbx.search.kernels.arrays import GROUP
from abi_jax.wdbx.search.one_call import OneCall, one_call
from abi_jax.wdbx.search.plan import BY_LISTS, Plan, counted_errors
from abi_jax.wdbx.search.product_part import ProductPart
from abi_jax.wdbx.search.steps import NOWHERE, SHARE, AnyPart, CrowdedError, Scans
from abi_jax.wdbx.search.threads import run, workers
from abi_jax.wdbx.search.told import Told

AT_ONCE = 128  # queries: memory is as many times what rows are kept for one of them
ALONE = 1 << 24  # products in one call that take no longer than to hand half of them to another thread
PIECE = 48  # queries of which a thread searches all rows, where there are enough for all threads: no two share a floor


@dataclass(frozen=True)
class Search:
    """A search of some parts, for queries again and again.

    recall: of the best rows, how many are to be found on average; 1: all, for certain. told: what was done, if asked.
    """

    parts: Sequence[AnyPart]
    metric: str
    top_k: int
    recall: float = 1.0
    told: Told | None = None

    def __call__(self, queries: np.ndarray) -> Found:
        """The best rows of each query `[B, D]`, float32; those that tie with the last one are all there."""
        count = len(queries)
        if 0 < count < GROUP:
            return self._some(queries)
        if not count:
            return found_of([], [len(each.codes) for each in self.parts])
        cores = workers()
        many = self.told is None and self._enough(queries, cores)
        if not many and count <= AT_ONCE:
            return self._some(queries, cores)
        num = cores * -(-count // (cores * PIECE)) if many else -(-count // AT_ONCE)
        edges = [*(count * i // num // GROUP * GROUP for i in range(num)), count]
        found: list[Found] = [NONE_FOUND] * num

        def work(i: int) -> None:
            found[i] = self._some(queries[edges[i] : edges[i + 1]], 1 if many else cores)

        tasks: list[Callable[[], None]] = [partial(work, i) for i in range(num)]
        if many:
            run(tasks)
        else:
            for task in tasks:
                task()
        return stacked(found)

    def _enough(self, queries: np.ndarray, cores: int) -> bool:
        """Whether every core had better search for some of the queries than for all of them in some of the rows."""
        count, dim = queries.shape
        if cores == 1 or count < cores * GROUP:
            return False
        if self._in_one_call is not None and self._in_one_call.scanned:
            return self._in_one_call.scanned * count > ALONE
        if count <= AT_ONCE and self._in_one_call is None and any(isinstance(x, ProductPart) for x in self.parts):
            return False  # kernels part them: threads that go step by step would wait for each other
        if count >= cores * QUERIES_OF_A_SHARE:
            return True
        rows = sum(each.rows for each, _ in self._plans)
        return all(each.way in BY_LISTS for each, _ in self._plans) and rows * dim * count >= cores * SHARE

    @cached_property
    def _plans(self) -> list[tuple[Plan, int]]:
        """How parts are searched, and their numbers; those of which most rows are looked at first."""
        there = [(part.plan(self.recall, self.top_k), i) for i, part in enumerate(self.parts) if len(part.codes)]
        return sorted(there, key=lambda each: -each[0].rows)

    @cached_property
    def _in_one_call(self) -> OneCall | None:
        if self.told is not None:
            return None
        return one_call(self.parts, self._plans, self.metric, self.top_k, self.recall)

    def _some(self, queries: np.ndarray, threads: int | None = None) -> Found:
        """What is found in so many threads, as many as there are cores by default."""
        in_one_call = self._in_one_call
        answer = None if in_one_call is None else in_one_call(queries)
        if answer is None:
            return self._step_by_step(queries, threads or workers())
        found, lacking = answer
        return found if lacking is None else self._with_all(queries, lacking, threads, lambda: found)

    def _step_by_step(self, queries: np.ndarray, threads: int) -> Found:
        try:
            return self._at_once(queries, threads)
        except CrowdedError:
            half = len(queries) // 2
            return stacked([self._step_by_step(each, threads) for each in (queries[:half], queries[half:])])

    def _at_once(self, queries: np.ndarray, threads: int) -> Found:
        parts, top_k = self.parts, self.top_k
        coded = make_query_codes(self.metric, queries, counted_errors(self.recall, queries.shape[1]))
        if _too_small(parts, coded):
            plain = [flat.Part(each.vectors, flat.row_norms(each.vectors), each.mask) for each in _all_of(parts)]
            return flat.search(plain, self.metric, queries, top_k)
        scans = Scans(parts, coded, top_k, self.recall, threads)
        for plan, number in self._plans:
            scans.scan(number, plan)
        lacking = scans.lacking() if any(plan.way in BY_LISTS for plan, _ in self._plans) else NOWHERE
        if self.told is not None:
            done = [(number, scans.done(number, plan)) for plan, number in self._plans]
            self.told.add(done, len(queries) - len(lacking))
        if not len(lacking):
            return scans.decide()
        if self.told is not None:
            every = _all_of(parts)
            after = [(number, _again(plan, every[number].plan(1, top_k), top_k)) for number, plan in done]
            self.told.add(after, len(lacking))
        return self._with_all(queries, lacking, threads, scans.decide)

    def _with_all(
        self, queries: np.ndarray, lacking: np.ndarray, threads: int | None, found: Callable[[], Found]
    ) -> Found:
        """What was found, and for queries whose lists held too little, the best of all rows."""
        again = Search(_all_of(self.parts), self.metric, self.top_k)._some(queries[lacking], threads)
        return again if len(lacking) == len(queries) else found().replaced(lacking, again)


def search(
    parts: Sequence[AnyPart],
    metric: str,
    queries: np.ndarray,
    top_k: int,
    recall: float = 1.0,
    told: Told | None = None,
) -> Found:
    """What `Search` finds for queries `[B, D]`, float32."""
    return Search(parts, metric, top_k, recall, told)(queries)


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
