"""Search of a mesh by product codes: devices keep these alone, the host scores the candidates they find exactly.

Each part has its own tables and its own number of candidates, as on a host, so that parts have slabs of their own. The
candidates are those of a host, on any number of devices: of rows that sum up to the same the first ones by their
places. Where more of these tie than a device returns, the host looks at all codes of the part itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn
from weakref import WeakKeyDictionary

import numpy as np

from abi_jax.wdbx.search.codes import make_query_codes
from abi_jax.wdbx.search.mesh_codes import packed
from abi_jax.wdbx.search.mesh_near import Near, locate
from abi_jax.wdbx.search.mesh_pages import PageShape, page_shape
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_pool import Pool
from abi_jax.wdbx.search.mesh_programs import Arrays, Programs
from abi_jax.wdbx.search.mesh_select import BLOCK
from abi_jax.wdbx.search.mesh_slab import NOBODY, Scanned
from abi_jax.wdbx.search.plan import ProductPlan
from abi_jax.wdbx.search.product_part import ProductPart
from abi_jax.wdbx.search.products import ProductIndex

FEWEST_KEPT = 64  # rows that a device returns for a query, at least

Slabs = Callable[["CodePool", Sequence[MeshPart], list[Arrays]], Iterator[tuple[Scanned, int]]]


def code_shape(metric: str, dim: int, rows: int | None) -> PageShape:
    """The shape of pages of product codes. rows: of a page, else as many as one of int8 has."""
    return PageShape(metric, dim, "pq", page_shape(metric, dim, "int8", rows).rows)


class CodePool(Pool):
    """The product codes of one collection; slabs hold those of one owner each, in the order of lists."""

    def bring(self, part: MeshPart, index: ProductIndex) -> MeshPart:
        """The part with codes that are there, whose pages the next `prepare` puts on the devices."""
        self.arrange(part, index.lists)
        return replace(part, products=lambda: index)

    def places(self, part: MeshPart, at: np.ndarray) -> np.ndarray:
        """Places in the order of lists, of places in the pages of a part."""
        layout = self.layout(part)
        assert layout is not None
        return np.asarray(layout.blocks_at.reshape(-1)[at // BLOCK] * BLOCK + at % BLOCK)

    def streamed(
        self, parts: Sequence[MeshPart], missing: Sequence[tuple[int, int]], pages: int, wait: Callable[[], None]
    ) -> Iterator[Scanned]:
        """As of other pages; none is of two parts."""
        for number in sorted({i for i, _ in missing}):
            yield from super().streamed(parts, [each for each in missing if each[0] == number], pages, wait)

    def _group(self, number: int) -> int:
        return number

    def _held(self, count: int, pages: Sequence[tuple[int, MeshPart, int]]) -> tuple[np.ndarray, ...]:
        made = np.zeros((count, self.shape.rows, self.shape.code_bytes), np.uint8)
        for slot, part, page in pages:
            index, layout = part.products and part.products(), self.layout(part)
            assert index is not None and layout is not None
            blocks = layout.blocks_at[page]
            codes = packed(index.codes.codes[blocks[blocks >= 0]])
            made[slot, : len(codes)] = codes
        return (made,)


class Coded:
    """How parts are searched by product codes, remembered by their owners."""

    def __init__(self) -> None:
        self._last: WeakKeyDictionary[object, tuple[np.ndarray, ProductPart]] = WeakKeyDictionary()

    def part(self, part: MeshPart, index: ProductIndex) -> ProductPart:
        """The same rows as a host searches them."""
        last = self._last.get(part.owner)
        if last is None or last[0] is not part.allowed or last[1].index is not index:
            allowed = None if part.allowed.all() else part.allowed
            last = part.allowed, ProductPart(part.vectors, index, allowed, _no_int8, by_lists=False)
            self._last[part.owner] = last
        return last[1]


def _no_int8() -> NoReturn:
    raise AssertionError("a mesh has no int8 codes")


@dataclass(frozen=True)
class CodedSearch:
    """One search by product codes. parts: of the whole search; coded: by number, those that are searched so.

    slabs: of a search of parts of a pool, and from which row of a device on each counts. batches: sizes of programs.
    """

    programs: Programs
    pool: CodePool
    parts: Sequence[MeshPart]
    coded: Mapping[int, ProductPart]
    slabs: Slabs
    batches: Sequence[int]

    def near(self, queries: np.ndarray, top_k: int, recall: float, at_once: int) -> list[Near]:
        """The candidates of queries `[B, D]`. at_once: rows that a device returns for all queries of a program."""
        plans = {number: part.plan(recall, top_k) for number, part in self.coded.items()}
        found = []
        for number, plan in plans.items():
            if plan.way == "gather":
                rows = np.flatnonzero(self.parts[number].allowed)
                query = np.repeat(np.arange(len(queries)), len(rows))
                found.append(Near(query, np.full(len(query), number), np.tile(rows, len(queries))))
        plans = {number: plan for number, plan in plans.items() if plan.way != "gather"}
        if not plans:
            return found
        exact = make_query_codes(self.pool.shape.metric, queries).exact
        most = max(self.batches[0], at_once // max(_kept(plan) for plan in plans.values()))
        step = max(size for size in self.batches if size <= most)
        for start in range(0, len(queries), step):
            found += self._some(exact[start : start + step], plans, start)
        return found

    def _some(self, exact: np.ndarray, plans: Mapping[int, ProductPlan], first: int) -> list[Near]:
        batch = next(size for size in self.batches if size >= len(exact))
        numbers = list(plans)
        parts = [self.pool.bring(self.parts[number], self.coded[number].index) for number in numbers]
        tables = [self.coded[number].codes.tables(exact) for number in numbers]
        sent = [self.programs.copy(np.pad(each, ((0, batch - len(each)), (0, 0), (0, 0)))) for each in tables]
        best = [self.programs.begin(batch, _kept(plans[number])) for number in numbers]
        pending: list[Arrays] = []
        scanned, bases = [], []
        for (slab, seen), base in self.slabs(self.pool, parts, pending):
            i = int(seen.part[seen.part != NOBODY][0])
            best[i] = self.programs.scan_codes(slab.arrays, seen.mask, base, sent[i], best[i])
            pending.append(best[i])
            scanned.append((seen.part, seen.page, slab.slots))
            bases.append(base)
        found = []
        for i, number in enumerate(numbers):
            sums, device, row, left, _ = (np.asarray(each)[: len(exact)] for each in self.programs.merge(best[i]))
            wanted = plans[number].candidates
            floors, unseen = sums[:, wanted - 1], np.maximum(left, sums[:, -1])
            tied = (unseen > -np.inf) & (unseen >= floors)
            query, column = np.nonzero((sums > -np.inf) & (sums >= floors[:, None]) & ~tied[:, None])
            rows, devices = self.pool.shape.rows, self.programs.devices
            _, at = locate(rows, devices, scanned, bases, device[query, column], row[query, column])
            order = np.lexsort((self.pool.places(parts[i], at), -sums[query, column], query))
            query, at = query[order], at[order]
            good = np.arange(len(query)) - np.searchsorted(query, query) < wanted
            query, rows_found = query[good], self.pool.rows_at(parts[i], at[good])
            found.append(Near(query + first, np.full(len(query), number), rows_found))
            for q in np.flatnonzero(tied).tolist():
                rows_found = self.coded[number].highest(tables[i][q : q + 1], wanted)[0]
                every = np.full(len(rows_found), q + first)
                found.append(Near(every, np.full(len(every), number), rows_found))
        return found


def _kept(plan: ProductPlan) -> int:
    """How many rows a device returns for a query: a power of two, twice as many as are wanted or more."""
    return max(FEWEST_KEPT, 1 << (2 * plan.candidates - 1).bit_length())
