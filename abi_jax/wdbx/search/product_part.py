"""Search by product codes: those that sum up to the most are candidates, exact scores decide. See `products`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from abi_jax.wdbx.search.codes import QueryCodes
from abi_jax.wdbx.search.filtered import choose_lists
from abi_jax.wdbx.search.ivf import QUERIES_OF_A_SHARE, Lists
from abi_jax.wdbx.search.kernels.arrays import Kept
from abi_jax.wdbx.search.kernels.lists import count_allowed
from abi_jax.wdbx.search.kernels.products import PLACES, SUM, best_keys, scan_product_lists, scan_products
from abi_jax.wdbx.search.kernels.shuffle import BLOCK
from abi_jax.wdbx.search.plan import ProductPlan, choose_products
from abi_jax.wdbx.search.products import ProductCodes, ProductIndex
from abi_jax.wdbx.search.threads import run, shares, workers

if TYPE_CHECKING:
    from abi_jax.wdbx.search.coded_part import CodedPart

SHARE = 1 << 21  # sums of a sub-space that are worth a thread
EVEN = 0.99  # of rows: in lists of which a filter leaves as much as elsewhere, but for chance
EVERYTHING = np.zeros(0, bool)


@dataclass(frozen=True)
class ProductPart:
    """Rows that are searched together: vectors `[n, D]`, lists and product codes, and which may be found; None: all.

    every: called for the same rows with int8 codes. by_lists: whether some lists alone may be looked at. ids: of the
    rows, int64 `[n]`, where these are numbers.
    """

    vectors: np.ndarray
    index: ProductIndex
    allowed: np.ndarray | None
    every: "Callable[[], CodedPart]"
    by_lists: bool = True
    ids: np.ndarray | None = None

    @property
    def codes(self) -> ProductCodes:
        """Codes of the rows."""
        return self.index.codes

    @property
    def lists(self) -> Lists:
        """Lists in whose order the codes stand."""
        return self.index.lists

    @cached_property
    def num_allowed(self) -> int:
        """How many rows may be found."""
        return len(self.codes) if self.allowed is None else int(np.count_nonzero(self.allowed))

    @cached_property
    def allowed_in_lists(self) -> np.ndarray | None:
        """How many rows of each list may be found, int64 `[L]`; None where all may be."""
        if self.allowed is None:
            return None
        made = np.empty(len(self.lists.centroids), np.int64)
        count_allowed(self.lists.order, self.lists.ends, self.allowed, made)
        return made

    @cached_property
    def _evenly(self) -> bool:
        """Whether rows that may be found lie where the others do: most lists have at least half of their share."""
        if self.allowed_in_lists is None:
            return True
        sizes = np.diff(self.lists.ends)
        share = self.num_allowed / len(self.codes)
        return bool(sizes[self.allowed_in_lists >= share * sizes / 2].sum() >= EVEN * len(self.codes))

    @cached_property
    def _plans(self) -> dict[tuple[float, int], tuple[ProductPlan, float] | None]:
        return {}

    def _plan(self, recall: float, top_k: int) -> tuple[ProductPlan, float] | None:
        if (recall, top_k) not in self._plans:
            about = (len(self.codes), self.num_allowed, self.index, recall, top_k)
            self._plans[recall, top_k] = choose_products(*about, lambda: self._evenly, self.by_lists)
        return self._plans[recall, top_k]

    def useful(self, recall: float, top_k: int) -> bool:
        """Whether product codes reach a recall, in less time than int8 codes."""
        return self._plan(recall, top_k) is not None

    def plan(self, recall: float, top_k: int) -> ProductPlan:
        """How the part is searched, if product codes are `useful`."""
        made = self._plan(recall, top_k)
        assert made is not None
        return made[0]

    def recall_of_lists(self, recall: float, top_k: int) -> float:
        """What recall the lists of the plan are asked for."""
        made = self._plan(recall, top_k)
        assert made is not None
        return made[1]

    def chosen(self, queries: QueryCodes, top_k: int, recall: float) -> np.ndarray:
        """The lists that each query looks at, int32 `[B, W]`; what is negative is none."""
        made = self._plan(recall, top_k)
        assert made is not None
        plan, of_lists = made
        if self.allowed_in_lists is None:
            return self.lists.nearest(queries, plan.nearest)
        return choose_lists(self.lists, self.allowed_in_lists, queries, top_k, of_lists)

    def scan(self, queries: QueryCodes, top_k: int, recall: float, threads: int, base: int) -> Kept:
        """The candidates of each query, of which nothing bounds the score. base: the number of row 0."""
        plan = self.plan(recall, top_k)
        if plan.way == "gather" and self.allowed is not None:
            rows = np.flatnonzero(self.allowed)
            return _kept(np.tile(base + rows, (len(queries), 1)), np.full(len(queries), len(rows)))
        tables = self.codes.tables(queries.exact)
        if plan.way == "ivf+pq":
            keys = self._scan_lists(self.chosen(queries, top_k, recall), tables, plan.candidates)
        else:
            keys = self._scan_all(tables, plan.candidates, threads)
        return _kept(base + self._rows(keys), (keys >= 0).sum(axis=1))

    def highest(self, tables: np.ndarray, wanted: int) -> list[np.ndarray]:
        """Of each query, by its table, the `wanted` rows that sum up to the most."""
        keys = self._scan_all(tables, wanted, workers())
        return [rows[there] for rows, there in zip(self._rows(keys), keys >= 0, strict=True)]

    def _rows(self, keys: np.ndarray) -> np.ndarray:
        return np.asarray(self.codes.order[np.where(keys < 0, 0, PLACES - keys % SUM)])

    def _scan_lists(self, chosen: np.ndarray, tables: np.ndarray, wanted: int) -> np.ndarray:
        kept, made = _nothing(len(tables), wanted), np.full((len(tables), wanted), -1, np.int64)
        about = (self.codes.codes, self.codes.order, self._mask, self.lists.ends, chosen)
        shares(len(tables), lambda a, b: scan_product_lists(*about, a, b, tables, wanted, *kept), QUERIES_OF_A_SHARE)
        best_keys(wanted, *kept, made)
        return made

    def _scan_all(self, tables: np.ndarray, wanted: int, threads: int) -> np.ndarray:
        count, blocks = len(self.codes), len(self.codes.codes)
        threads = max(1, min(threads, count * tables.shape[0] * tables.shape[1] // SHARE, blocks))
        made = np.full((threads, len(tables), wanted), -1, np.int64)
        edges = [min(count, blocks * i // threads * BLOCK) for i in range(threads + 1)]

        def scan(thread: int) -> None:
            kept = _nothing(len(tables), wanted)
            about = (self.codes.codes, self.codes.order, self._mask, edges[thread], edges[thread + 1])
            scan_products(*about, tables, wanted, *kept)
            best_keys(wanted, *kept, made[thread])

        run([partial(scan, thread) for thread in range(threads)])
        if threads == 1:
            return made[0]
        every = np.concatenate(list(made), axis=1)
        return np.sort(every, axis=1)[:, : -wanted - 1 : -1]

    @property
    def _mask(self) -> np.ndarray:
        return EVERYTHING if self.allowed is None else self.allowed


def _nothing(queries: int, wanted: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Room for twice as many keys as are wanted, how many there are, and what others must be more than."""
    return np.empty((queries, 2 * wanted + BLOCK), np.int64), np.zeros(queries, np.int64), np.full(queries, -1)


def _kept(rows: np.ndarray, numbers: np.ndarray) -> Kept:
    queries = len(rows)
    heaps = np.full((queries, 1), -np.inf, np.float32)
    return Kept(heaps, np.zeros(queries, np.int64), rows, np.full(rows.shape, np.inf, np.float32), numbers)
