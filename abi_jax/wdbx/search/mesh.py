"""Exact search on a mesh: every device scans its pages, candidates meet in one small merge, exact scores decide.

The answer is that of `flat.search`. Devices return a few more rows than were asked for; where these do not reach below
the margin by which scores may be off (many rows tie), every row above it is asked for.
"""

import hashlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np
from jax.sharding import Mesh

from abi_jax.errors import InputError
from abi_jax.wdbx.errors import WdbxError
from abi_jax.wdbx.search.exact import best_first, exact_scores
from abi_jax.wdbx.search.found import Best, Found, found_of
from abi_jax.wdbx.search.mesh_pages import PageShape, Queries, encode_queries, margin, page_shape
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_pool import Pool, Scanned
from abi_jax.wdbx.search.mesh_programs import Arrays, programs_on
from abi_jax.wdbx.search.plan import Plan
from abi_jax.wdbx.search.told import Told

BATCHES = (1, 4, 8, 16, 32, 64, 128, 256, 512)  # queries of a program
MOST_QUERIES = {"cpu": 64}  # of a program: XLA multiplies more no quicker; elsewhere, all of these
FEWEST_KEPT = {"float32": 32, "bfloat16": 128, "int8": 256}  # rows that a device returns for a query, at least
MANY_ROWS = 4096  # asked for: with more than these it matters how many there are
KEPT_AT_ONCE = 1 << 20  # rows that a device returns for all queries of a program
SLAB_BYTES = {"cpu": 64 << 20}  # on a device; elsewhere:
LARGEST_SLAB = 1 << 30
KERNELS = ("xla", "pallas")
SCORES_AT_ONCE = 1 << 24  # numbers of vectors that are scored exactly


@dataclass(frozen=True)
class MeshSearchConfig:
    """How a mesh searches.

    compute: the type of products and of what devices hold: "float32", "bfloat16" or "int8"; "auto" is float32 on a CPU,
    whose products of shorter types are slow, int8 for vectors of int8, else bfloat16. The answer is the same with each.
    bytes_per_device: what vectors may take of a device's memory; collections that are larger are streamed through it.
    kernel: "xla", or "pallas" to fuse products and maxima. rows_per_page: a power of two; by default a page is 1 MiB.
    """

    compute: str = "auto"
    bytes_per_device: int | None = None
    kernel: str = "xla"
    rows_per_page: int | None = None

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS:
            raise InputError(f"kernel {self.kernel!r}: expected one of {', '.join(KERNELS)}")
        if self.compute != "auto" or self.rows_per_page is not None:
            page_shape("ip", 1, "float32" if self.compute == "auto" else self.compute, self.rows_per_page)
        if self.bytes_per_device is not None and self.bytes_per_device < 1:
            raise InputError(f"bytes_per_device {self.bytes_per_device}: expected a positive number, or None")


class MeshSearch:
    """Searches collections on the devices of a mesh, and keeps their pages there. Safe to share between threads.

    On a mesh of many processes each of them asks the same, in the same order, of the same version.
    """

    def __init__(self, mesh: Mesh, config: MeshSearchConfig | None = None) -> None:
        self.config = config or MeshSearchConfig()
        self.programs = programs_on(tuple(mesh.devices.flat), self.config.kernel)
        self._pools: dict[Hashable, Pool] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of pages on each device."""
        return sum(pool.nbytes for pool in self._pools.values())

    def __call__(
        self,
        collection: Hashable,
        parts: Sequence[MeshPart],
        metric: str,
        queries: np.ndarray,
        top_k: int,
        told: Told | None = None,
    ) -> Found:
        """The best rows of each query `[B, D]`, float32; rows that tie with the last one are all there.

        collection: whose rows these are; its pages are kept together. told: what was done, if asked.
        """
        found: list[Best] = []
        keep = keep_for(self._shape(parts, metric, queries.shape[1]).compute, parts, top_k)
        most = min(KEPT_AT_ONCE // keep, MOST_QUERIES.get(self.programs.platform, BATCHES[-1]))
        step = max((size for size in BATCHES if size <= most), default=1)
        for start in range(0, len(queries), step):
            found += self._some(collection, parts, metric, queries[start : start + step], top_k, keep, told)
        return found_of(found, [len(each.vectors) for each in parts])

    def _shape(self, parts: Sequence[MeshPart], metric: str, dim: int) -> PageShape:
        compute = self.config.compute
        if compute == "auto":
            whole = bool(parts) and parts[0].vectors.dtype == np.int8
            compute = "float32" if self.programs.platform == "cpu" else "int8" if whole else "bfloat16"
        return page_shape(metric, dim, compute, self.config.rows_per_page)

    def _some(
        self,
        collection: Hashable,
        parts: Sequence[MeshPart],
        metric: str,
        queries: np.ndarray,
        top_k: int,
        keep: int,
        told: Told | None,
    ) -> list[Best]:
        batch = next(size for size in BATCHES if size >= len(queries))
        with self.programs.lock:
            pool = self._pool(collection, parts, metric, queries.shape[1])
            self._check(parts, queries, top_k)
            encoded = encode_queries(pool.shape, queries, batch)
            near, floors, incomplete = self._near(pool, parts, encoded, top_k, len(queries), keep)
            if incomplete:
                near += self._all_above(pool, parts, queries, incomplete, floors)
            if told is not None:
                self._tell(told, pool.shape.compute, parts, len(queries), len(incomplete))
        return decide(parts, metric, queries, top_k, near)

    def _tell(self, told: Told, compute: str, parts: Sequence[MeshPart], queries: int, again: int) -> None:
        """Notes how parts were searched. again: for how many queries all rows above a bound were asked for."""
        where = f"{self.programs.devices} devices of type {self.programs.platform}, {compute} by {self.config.kernel}"
        rows = [len(part.vectors) if part.allowed.any() else 0 for part in parts]
        once = [Plan("mesh", count, len(part.vectors), 0, where) for count, part in zip(rows, parts, strict=True)]
        twice = f"{where}; twice, since rows tie or are nearly as good"
        told.add(enumerate(once), queries - again)
        told.add(enumerate(replace(plan, rows=2 * plan.rows, why=twice) for plan in once), again)

    def _pool(self, collection: Hashable, parts: Sequence[MeshPart], metric: str, dim: int) -> Pool:
        shape = self._shape(parts, metric, dim)
        key = (collection, shape)
        if key not in self._pools:
            most = SLAB_BYTES.get(self.programs.platform, LARGEST_SLAB)
            if self.config.bytes_per_device is not None:
                if self.config.bytes_per_device < 2 * shape.nbytes:
                    raise InputError(
                        f"bytes_per_device {self.config.bytes_per_device}: expected at least {2 * shape.nbytes}, two "
                        f"pages of {shape.rows} rows of {shape.dim} x {shape.compute}"
                    )
                most = min(most, self.config.bytes_per_device // 4)
            self._pools[key] = Pool(shape, self.programs, max(1, most // shape.nbytes))
        pool = self._pools.pop(key)
        if self.programs.alone:
            self._pools = {other: each for other, each in self._pools.items() if each.is_wanted()}
        self._pools[key] = pool  # the last that was used
        return pool

    def _check(self, parts: Sequence[MeshPart], queries: np.ndarray, top_k: int) -> None:
        """Raises `WdbxError` where processes ask different things: they would wait for each other without end."""
        if self.programs.alone:
            return
        said = hashlib.sha256(np.array([top_k, len(queries)]).tobytes())
        for part in parts:
            said.update(np.array([len(part.vectors)]).tobytes() + np.packbits(part.allowed).tobytes())
        said.update(queries.tobytes())
        if not self.programs.agree(np.frombuffer(said.digest()[:16], np.int32)):
            raise WdbxError(
                "the processes of a mesh ask different things of a collection; expected the same version, queries, "
                "filter and top_k in each of them"
            )

    def _slabs(self, pool: Pool, parts: Sequence[MeshPart], pending: list[Arrays]) -> Iterator[tuple[Scanned, int]]:
        """The slabs of a search, and from which row of a device on each counts. pending: what was made of them."""
        budget, page = self.config.bytes_per_device, pool.shape.nbytes
        size = 1
        if budget is None:
            missing = pool.prepare(parts, None)
        else:
            size = 1 << (max(1, budget // 4 // page).bit_length() - 1)
            pages = sum(-(-len(part.vectors) // pool.shape.rows) for part in parts if part.allowed.any())
            needed = -(-pages // self.programs.devices) * page
            self._make_room(pool, min(needed, budget), budget)
            for room in (budget, budget - 2 * size * page):  # what is streamed needs room for two slabs
                while pool.nbytes > room:
                    pool.drop(pool.slabs[-1])
                missing = pool.prepare(parts, room)
                if not missing:
                    break
        base = 0
        for each in pool.scanned(parts):
            yield each, base
            base += each.slab.slots // self.programs.devices * pool.shape.rows

        def wait() -> None:
            if len(pending) > 1:
                jax.block_until_ready(pending[-2])
            del pending[:-1]

        for each in pool.streamed(parts, missing, size, wait):
            yield each, base
            base += each.slab.slots // self.programs.devices * pool.shape.rows

    def _make_room(self, pool: Pool, needed: int, budget: int) -> None:
        """Gives up slabs of other collections, those first that were not asked for the longest."""
        others = [each for each in self._pools.values() if each is not pool]
        for other in others:
            while other.slabs and sum(each.nbytes for each in others) + max(needed, pool.nbytes) > budget:
                other.drop(other.slabs[-1])

    def _near(
        self, pool: Pool, parts: Sequence[MeshPart], queries: Queries, top_k: int, count: int, keep: int
    ) -> tuple[list["Near"], np.ndarray, list[int]]:
        """Candidates, floors of scores `[B]`, and the queries for which there may be more candidates than these."""
        batch = queries.parts.shape[1]
        sent = [self.programs.copy(queries.parts), self.programs.copy(queries.scales)]
        best = self.programs.begin(batch, keep)
        pending: list[Arrays] = []
        scanned, bases = [], []
        for each, base in self._slabs(pool, parts, pending):
            best = self.programs.scan(each.slab.arrays, each.mask, base, sent, best)
            pending.append(best)
            scanned.append((each.part, each.page, each.slab.slots))
            bases.append(base)
        if not scanned:
            return [], np.full(count, -np.inf), []
        scores, device, row, left, reach = (np.asarray(each) for each in self.programs.merge(best))
        off = margin(pool.shape, queries, float(reach[0]), float(reach[1]))
        scores = scores[:count].astype(np.float64)
        floors = scores[:, top_k - 1] - 2 * off if top_k <= keep else np.full(count, -np.inf)
        unseen = np.maximum(left[:count], scores[:, -1])
        incomplete = np.flatnonzero((unseen > -np.inf) & (unseen >= floors)).tolist()
        good = (scores > -np.inf) & (scores >= floors[:, None])
        good[incomplete] = False
        query, place = np.nonzero(good)
        found = locate(pool.shape.rows, self.programs.devices, scanned, bases, device[query, place], row[query, place])
        return [Near(query, *found)], floors, incomplete

    def _all_above(
        self, pool: Pool, parts: Sequence[MeshPart], queries: np.ndarray, which: Sequence[int], floors: np.ndarray
    ) -> list["Near"]:
        """Every row of a few queries that scores its floor or more."""
        encoded = [encode_queries(pool.shape, queries[q : q + 1], BATCHES[0]) for q in which]
        sent = [(self.programs.copy(each.parts), self.programs.copy(each.scales)) for each in encoded]
        with np.errstate(over="ignore"):
            low = np.nextafter(floors.astype(np.float32), np.float32(-np.inf))
        found = []
        pending: list[Arrays] = []
        for each, _ in self._slabs(pool, parts, pending):
            for q, query in zip(which, sent, strict=True):
                floor = self.programs.copy(low[q])
                told = np.asarray(self.programs.above(each.slab.arrays, each.mask, query, floor))
                slot, row = np.nonzero(told)
                found.append(Near(np.full(len(slot), q), each.part[slot], each.page[slot] * pool.shape.rows + row))
        return found


def keep_for(compute: str, parts: Sequence[MeshPart], top_k: int) -> int:
    """How many rows a device returns for a query: a power of two, and no more than there can be."""
    wanted = top_k if top_k <= MANY_ROWS else min(top_k, sum(len(part.vectors) for part in parts))
    return max(FEWEST_KEPT[compute], 1 << (2 * wanted - 1).bit_length())


@dataclass(frozen=True)
class Near:
    """Candidates: of which query, in which part of the search, which row of it."""

    query: np.ndarray
    part: np.ndarray
    row: np.ndarray


def locate(
    rows: int,
    devices: int,
    scanned: Sequence[tuple[np.ndarray, np.ndarray, int]],
    bases: Sequence[int],
    device: np.ndarray,
    row: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Part of the search and row in it, from the device and the row there, counted through what it scanned."""
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


def on_mesh(mesh: Mesh | MeshSearch | None, config: MeshSearchConfig | None = None) -> MeshSearch | None:
    """What searches on a mesh; None where there is none, and `mesh` itself where it is one already."""
    return mesh if mesh is None or isinstance(mesh, MeshSearch) else MeshSearch(mesh, config)
