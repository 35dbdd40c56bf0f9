"""What devices found, as rows of the parts of a search, and which of these are the best by their exact scores."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from abi_jax.wdbx.search.exact import best_first, exact_scores
from abi_jax.wdbx.search.found import Best
from abi_jax.wdbx.search.mesh_pages import Queries, encode_queries, margin
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_plan import Probe
from abi_jax.wdbx.search.mesh_pool import LISTED, Pool
from abi_jax.wdbx.search.mesh_probe import AT_ONCE, tables
from abi_jax.wdbx.search.mesh_programs import Arrays, Programs
from abi_jax.wdbx.search.mesh_select import BLOCK
from abi_jax.wdbx.search.mesh_slab import NOBODY, Scanned, Seen, Slab
from abi_jax.wdbx.search.plan import FEW, MOST, Plan

SCORES_AT_ONCE = 1 << 24  # numbers of vectors that are scored exactly


@dataclass(frozen=True)
class Near:
    """Candidates: of which query, in which part of the search, which row of it."""

    query: np.ndarray
    part: np.ndarray
    row: np.ndarray

    def without(self, queries: Sequence[int]) -> "Near":
        """Those of all other queries."""
        others = ~np.isin(self.query, queries)
        return Near(self.query[others], self.part[others], self.row[others])


@dataclass
class Looking:
    """One search of some queries on the devices. slabs: those of the search, and from which row of a device on each
    counts; given what was made of those before. probes: by part, which blocks are looked at, where not all are. share:
    of the largest error of what devices hold, what counts."""

    programs: Programs
    pool: Pool
    parts: Sequence[MeshPart]
    probes: Mapping[int, Probe]
    slabs: Callable[[list[Arrays]], Iterator[tuple[Scanned, int]]]
    share: float
    rows: Counter[int] = field(default_factory=Counter)  # of parts, that every query looked at
    gathered: set[int] = field(default_factory=set)  # parts of which some were looked at alone

    def near(self, queries: Queries, top_k: int, count: int, keep: int) -> tuple[list["Near"], np.ndarray, list[int]]:
        """Candidates, floors of scores `[B]`, and the queries for which there may be more candidates than these."""
        batch = queries.parts.shape[1]
        sent = [self.programs.copy(queries.parts), self.programs.copy(queries.scales)]
        best = self.programs.begin(batch, keep)
        pending: list[Arrays] = []
        scanned, bases = [], []
        for (slab, seen), base in self.slabs(pending):
            blocks = self._blocks(slab, seen, batch)
            for table in blocks or ():
                best = self.programs.probe(slab.arrays, seen.mask, self.programs.split(table), base, sent, best)
            if blocks is None:
                best = self._all_of(slab, seen, base, sent, best)
            pending.append(best)
            scanned.append((seen.part, seen.page, slab.slots))
            bases.append(base)
        if not scanned:
            return [], np.full(count, -np.inf), []
        scores, device, row, left, reach = (np.asarray(each) for each in self.programs.merge(best))
        off = margin(self.pool.shape, queries, float(reach[0]), float(reach[1]), self.share)
        scores = scores[:count].astype(np.float64)
        floors = scores[:, top_k - 1] - 2 * off if top_k <= keep else np.full(count, -np.inf)
        unseen = np.maximum(left[:count], scores[:, -1])
        incomplete = np.flatnonzero((unseen > -np.inf) & (unseen >= floors)).tolist()
        good = (scores > -np.inf) & (scores >= floors[:, None])
        good[incomplete] = False
        query, place = np.nonzero(good)
        rows, devices = self.pool.shape.rows, self.programs.devices
        found = locate(rows, devices, scanned, bases, device[query, place], row[query, place])
        return [self._near(query, *found)], floors, incomplete

    def all_above(self, queries: np.ndarray, which: Sequence[int], floors: np.ndarray) -> list["Near"]:
        """Every row that scores its floor or more for a few of the queries `[B, D]`."""
        encoded = [encode_queries(self.pool.shape, queries[q : q + 1], 1) for q in which]
        sent = [(self.programs.copy(each.parts), self.programs.copy(each.scales)) for each in encoded]
        with np.errstate(over="ignore"):
            low = np.nextafter(floors.astype(np.float32), np.float32(-np.inf))
        found = []
        for (slab, seen), _ in self.slabs([]):
            for q, query in zip(which, sent, strict=True):
                floor = self.programs.copy(low[q])
                told = np.asarray(self.programs.above(slab.arrays, seen.mask, query, floor))
                slot, row = np.nonzero(told)
                places = seen.page[slot] * self.pool.shape.rows + row
                found.append(self._near(np.full(len(slot), q), seen.part[slot], places))
        return found

    def done(self, plans: Sequence[Plan], queries: int) -> list[Plan]:
        """The plans as they were carried out, with the rows and lists that a query looked at on average."""
        made = list(plans)
        for number, plan in enumerate(plans):
            probe, rows = self.probes.get(number), self.rows[number]
            if probe is not None:
                rows = min(plan.of, round(probe.rows / queries) + rows)
                made[number] = replace(plan, rows=rows, nearest=round(probe.lists))
                if rows > MOST * plan.of:
                    why = "most rows are looked at, since devices hold few of them, or others beside are not in lists"
                    made[number] = replace(made[number], way="mesh", nearest=0, why=why)
            elif number in self.gathered and FEW * rows < plan.of:
                allowed = int(np.count_nonzero(self.parts[number].allowed))
                why = f"{allowed} of {plan.of} rows may be found"
                made[number] = replace(plan, way="gather", rows=rows, why=why)
        return made

    def _near(self, query: np.ndarray, part: np.ndarray, places: np.ndarray) -> "Near":
        rows = np.zeros(len(places), np.int64)
        for number in np.unique(part).tolist():
            rows[part == number] = self.pool.rows_at(self.parts[number], places[part == number])
        return Near(query, part, rows)

    def _all_of(self, slab: Slab, seen: Seen, base: int, sent: Sequence[Any], best: Arrays) -> Arrays:
        """The best of `best` and of all rows of a slab that may be found."""
        few = seen.few
        for number, pages in Counter(seen.part.tolist()).items():
            if few is None:
                self.rows[number] += pages * self.pool.shape.rows
            else:
                rows = seen.rows.reshape(len(seen.part), -1)[seen.part == number]
                self.rows[number] += int(np.count_nonzero(rows))
                self.gathered.add(number)
        if few is None:
            return self.programs.scan(slab.arrays, seen.mask, base, sent, best)
        return self.programs.gather(slab.arrays, few, base, sent, best)

    def _blocks(self, slab: Slab, seen: Seen, batch: int) -> list[np.ndarray] | None:
        """Tables of the blocks of a slab that are looked at; None where all are."""
        live = {number for number in np.unique(seen.part).tolist() if number != NOBODY}
        live = {number for number in live if self.parts[number].allowed.any()}
        if slab.group != LISTED or not live <= self.probes.keys():
            return None
        size, per_page = slab.slots // self.programs.devices, self.pool.shape.rows // BLOCK
        chosen = []
        for number in sorted(live):
            probe = self.probes[number]
            slots = np.flatnonzero(seen.part == number)
            slot_of = np.full(probe.layout.pages, NOBODY)
            slot_of[seen.page[slots]] = slots
            page, inside = probe.layout.places
            slot = slot_of[page[probe.block]]
            there = slot != NOBODY
            at = slot[there] % size * per_page + inside[probe.block[there]]
            chosen.append((probe.query[there], slot[there] // size, at))
        query, device, block = (np.concatenate(each) for each in zip(*chosen, strict=True))
        most = int(np.bincount(device * batch + query).max(initial=0))
        if most and max(AT_ONCE, most) > MOST * size * per_page:
            return None
        return tables(query, device, block, batch, self.programs.devices)


def lacking(near: Sequence["Near"], parts: Sequence[MeshPart], top_k: int, queries: int) -> list[int]:
    """Queries that have less than `top_k` candidates, though there are more rows that may be found."""
    there = sum(int(np.count_nonzero(part.allowed)) for part in parts)
    counts = sum(np.bincount(each.query, minlength=queries) for each in near)
    return np.flatnonzero(counts < min(top_k, there)).tolist()


def locate(
    rows: int,
    devices: int,
    scanned: Sequence[tuple[np.ndarray, np.ndarray, int]],
    bases: Sequence[int],
    device: np.ndarray,
    row: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Part of the search and place in its pages, from the device and the row there, counted through what it scanned."""
    which = np.searchsorted(np.array(bases), row, side="right") - 1
    part, at = np.zeros(len(row), np.int64), np.zeros(len(row), np.int64)
    for i in np.unique(which).tolist():
        chosen = which == i
        parts, pages, slots = scanned[i]
        inside = row[chosen] - bases[i]
        slot = device[chosen] * (slots // devices) + inside // rows
        part[chosen], at[chosen] = parts[slot], pages[slot] * rows + inside % rows
    return part, at


def decide(parts: Sequence[MeshPart], metric: str, queries: np.ndarray, top_k: int, near: Sequence[Near]) -> list[Best]:
    """The best candidates of each query by their exact scores; those that tie with the last one are all there."""
    query = np.concatenate([np.zeros(0, np.int64), *(each.query for each in near)])
    part = np.concatenate([np.zeros(0, np.int64), *(each.part for each in near)])
    row = np.concatenate([np.zeros(0, np.int64), *(each.row for each in near)])
    scores = np.zeros(len(row), np.float32)
    at_once = max(1, SCORES_AT_ONCE // queries.shape[1])
    for number in np.unique(part).tolist():
        chosen = np.flatnonzero(part == number)
        for start in range(0, len(chosen), at_once):
            some = chosen[start : start + at_once]
            scores[some] = exact_scores(metric, queries[query[some]], np.asarray(parts[number].vectors[row[some]]))
    keys = best_first(metric, scores)
    order = np.lexsort((row, part, keys, query))
    ends = np.searchsorted(query[order], np.arange(len(queries) + 1))
    found = []
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        mine = order[start:end]
        if len(mine) > top_k:
            mine = mine[keys[mine] <= keys[mine[top_k - 1]]]
        found.append(Best(part[mine], row[mine], scores[mine]))
    return found
