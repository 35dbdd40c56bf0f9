"""Search on a mesh: every device scans its pages, candidates meet in one small merge, exact scores decide.

The answer is that of `flat.search`. Devices return a few more rows than were asked for; where these do not reach below
the margin by which scores may be off (many rows tie), every row above it is asked for. Asked for less than all, devices
look at product codes alone, where these are wanted and of use, or at lists of rows that have some, where that takes
less time.
"""

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.sharding import Mesh

from abi_jax.errors import InputError
from abi_jax.wdbx.errors import WdbxError
from abi_jax.wdbx.search.found import Best, Found, found_of
from abi_jax.wdbx.search.mesh_near import Looking, Near, decide, lacking
from abi_jax.wdbx.search.mesh_pages import PageShape, encode_queries, page_shape
from abi_jax.wdbx.search.mesh_part import MeshPart
from abi_jax.wdbx.search.mesh_plan import plan, probes_for
from abi_jax.wdbx.search.mesh_pool import Pool
from abi_jax.wdbx.search.mesh_products import Coded, CodedSearch, CodePool, code_shape
from abi_jax.wdbx.search.mesh_programs import Arrays, programs_on
from abi_jax.wdbx.search.mesh_slab import Scanned
from abi_jax.wdbx.search.plan import DEVIATIONS, Plan
from abi_jax.wdbx.search.product_part import ProductPart
from abi_jax.wdbx.search.threads import given_up_at_exit
from abi_jax.wdbx.search.told import Told

if TYPE_CHECKING:
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.products import ProductIndex

BATCHES = (1, 4, 8, 16, 32, 64, 128, 256, 512)  # queries of a program
MOST_QUERIES = {"cpu": 64}  # of a program: XLA multiplies more no quicker; elsewhere, all of these
FEWEST_KEPT = {"float32": 32, "bfloat16": 128, "int8": 256}  # rows that a device returns for a query, at least
MANY_ROWS = 4096  # asked for: with more than these it matters how many there are
KEPT_AT_ONCE = 1 << 20  # rows that a device returns for all queries of a program
SLAB_BYTES = {"cpu": 64 << 20}  # on a device; elsewhere:
LARGEST_SLAB = 1 << 30
KERNELS = ("xla", "pallas")
LISTS = ("auto", "mesh", "host")


@dataclass(frozen=True)
class MeshSearchConfig:
    """How a mesh searches.

    compute: the type of products and of what devices hold: "float32", "bfloat16" or "int8"; "auto" is float32 on a CPU,
    whose products of shorter types are slow, int8 for vectors of int8, else bfloat16. The answer is the same with each.
    bytes_per_device: what vectors may take of a device's memory; collections that are larger are streamed through it.
    kernel: "xla", or "pallas" to fuse products and maxima. rows_per_page: a power of two; by default a page is 1 MiB.
    lists: where inverted lists are made, "mesh" or "host"; "auto" is the host where devices are its own CPU.
    """

    compute: str = "auto"
    bytes_per_device: int | None = None
    kernel: str = "xla"
    rows_per_page: int | None = None
    lists: str = "auto"

    def __post_init__(self) -> None:
        if self.lists not in LISTS:
            raise InputError(f"lists {self.lists!r}: expected one of {', '.join(LISTS)}")
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
        self._coded = Coded()

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
        recall: float = 1.0,
    ) -> Found:
        """The best rows of each query `[B, D]`, float32; rows that tie with the last one are all there.

        collection: whose rows these are; its pages are kept together. told: what was done, if asked. recall: of the
        best rows, how many are to be found on average; 1: all, for certain.
        """
        found: list[Best] = []
        keep = keep_for(self._shape(parts, metric, queries.shape[1]).compute, parts, top_k)
        most = min(KEPT_AT_ONCE // keep, MOST_QUERIES.get(self.programs.platform, BATCHES[-1]))
        step = max((size for size in BATCHES if size <= most), default=1)
        for start in range(0, len(queries), step):
            found += self._some(collection, parts, metric, queries[start : start + step], top_k, keep, told, recall)
        return found_of(found, [len(each.vectors) for each in parts])

    def explain(self, parts: Sequence[MeshPart], recall: float, top_k: int) -> list[Plan]:
        """How each part would be searched for one query, and why, with the lists that there are. Makes nothing."""
        made = [plan(each, each.lists(), recall, top_k, 1, self.programs.platform) for each in parts]
        for number, coded in self._coded_parts(parts, _products(parts, recall), recall, top_k).items():
            made[number] = coded.plan(recall, top_k)
        return [self._here(each) for each in made]

    @property
    def makes_lists(self) -> bool:
        """Whether lists are made on the devices."""
        own = self.programs.platform == "cpu" and self.programs.alone
        return self.config.lists == "mesh" or (self.config.lists == "auto" and not own)

    def wants_lists(self, metric: str, vectors: np.ndarray) -> bool:
        """Whether lists of some vectors can be made unasked: no other process need help, and rows need not stream."""
        part = MeshPart(self, vectors, np.ones(1, bool))
        return self.programs.alone and self._fits(self._shape([part], metric, vectors.shape[1]), [part])

    def make_lists(self, collection: Hashable, owner: object, metric: str, vectors: np.ndarray) -> "Lists":
        """Lists of the vectors `[n, D]` of an owner, made on the devices, and what can be said of their recall."""
        from abi_jax.wdbx.search.mesh_kmeans import make_lists  # imported where lists are, since it compiles kernels

        part = MeshPart(owner, vectors, np.ones(len(vectors), bool))

        def find(queries: np.ndarray, count: int) -> Sequence[Best]:
            with self.programs.lock:
                pool = self._pool(collection, self._shape([part], metric, vectors.shape[1]))
                searches = pool.searches
                found = self(collection, [part], metric, queries, count).each()
                pool.searches = searches  # else what others asked for would be old soon
            return found

        with given_up_at_exit():
            return make_lists(self.programs, metric, vectors, find)

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
        recall: float,
    ) -> list[Best]:
        with self.programs.lock:
            self._check(parts, queries, top_k, recall)
            coded = self._coded_parts(parts, self._agreed(parts, recall), recall, top_k)
            others = [i for i in range(len(parts)) if i not in coded]
            near = self._by_codes(collection, parts, coded, metric, queries, top_k, told, recall)
            if others:
                rows, noted = [parts[i] for i in others], None if told is None else (told, others)
                found = self._by_rows(collection, rows, metric, queries, top_k, keep, noted, recall)
                near += [replace(each, part=np.array(others)[each.part]) for each in found]
        return decide(parts, metric, queries, top_k, near)

    def _by_rows(
        self,
        collection: Hashable,
        parts: Sequence[MeshPart],
        metric: str,
        queries: np.ndarray,
        top_k: int,
        keep: int,
        told: tuple[Told, Sequence[int]] | None,
        recall: float,
    ) -> list[Near]:
        """What devices find by the rows that they hold. told: and the numbers of the parts."""
        batch = next(size for size in BATCHES if size >= len(queries))
        pool = self._pool(collection, self._shape(parts, metric, queries.shape[1]))
        plans = self._plans(pool, parts, recall, top_k, batch)
        probes = probes_for(pool, parts, plans, queries, top_k, recall)
        share = 1.0 if recall >= 1 else min(1.0, DEVIATIONS / queries.shape[1] ** 0.5)
        looked = Looking(self.programs, pool, parts, probes, partial(self._slabs, pool, parts), share)
        near, floors, again = looked.near(encode_queries(pool.shape, queries, batch), top_k, len(queries), keep)
        if probes:
            again = sorted({*again, *lacking(near, parts, top_k, len(queries))})
            if again:
                rest = self._by_rows(collection, parts, metric, queries[again], top_k, keep, None, 1.0)
                near = [each.without(again) for each in near]
                near += [replace(each, query=np.array(again)[each.query]) for each in rest]
        elif again:
            near += looked.all_above(queries, again, floors)
        if told is not None:
            self._tell(told, pool.shape.compute, looked.done(plans, len(queries)), bool(probes), again, len(queries))
        return near

    def _by_codes(
        self,
        collection: Hashable,
        parts: Sequence[MeshPart],
        coded: Mapping[int, ProductPart],
        metric: str,
        queries: np.ndarray,
        top_k: int,
        told: Told | None,
        recall: float,
    ) -> list[Near]:
        """What devices find by product codes, of the parts that are searched so."""
        if not coded:
            return []
        shape = code_shape(metric, queries.shape[1], self.config.rows_per_page)
        pool = self._pool(collection, shape, CodePool)
        assert isinstance(pool, CodePool)
        if told is not None:
            plans = ((number, part.plan(recall, top_k)) for number, part in coded.items())
            told.add([(number, self._here(plan, ", product codes")) for number, plan in plans], len(queries))
        search = CodedSearch(self.programs, pool, parts, coded, self._slabs, BATCHES)
        return search.near(queries, top_k, recall, KEPT_AT_ONCE)

    def _coded_parts(
        self, parts: Sequence[MeshPart], products: "Sequence[ProductIndex | None]", recall: float, top_k: int
    ) -> dict[int, ProductPart]:
        """By number, the parts that are searched by product codes."""
        pairs = enumerate(zip(parts, products, strict=True))
        made = {i: self._coded.part(part, index) for i, (part, index) in pairs if index is not None}
        return {i: each for i, each in made.items() if each.useful(recall, top_k)}

    def _agreed(self, parts: Sequence[MeshPart], recall: float) -> "list[ProductIndex | None]":
        """The product codes of each part, where all processes have the same."""
        found = _products(parts, recall)
        if any(each.products is not None for each in parts) and not self.agree([_digest(each) for each in found]):
            return [None] * len(parts)
        return found

    def _plans(self, pool: Pool, parts: Sequence[MeshPart], recall: float, top_k: int, batch: int) -> list[Plan]:
        """How parts are searched; rows whose lists are looked at stand by these from here on."""
        if recall >= 1:
            return [plan(part, None, recall, top_k, batch, self.programs.platform) for part in parts]
        lists = [None if (layout := pool.layout(part)) is None else layout.lists for part in parts]
        if self._fits(pool.shape, parts):
            every = [each or part.lists() for each, part in zip(lists, parts, strict=True)]
            if self.agree([b"" if each is None else each.ends.tobytes() for each in every]):
                lists = every
        made = []
        for part, each in zip(parts, lists, strict=True):
            made.append(plan(part, each, recall, top_k, batch, self.programs.platform))
            if each is not None and made[-1].way == "ivf":
                pool.arrange(part, each)
        return made

    def _fits(self, shape: PageShape, parts: Sequence[MeshPart]) -> bool:
        """Whether the devices may hold all rows: lists are of no use for rows that stream through them."""
        return self.config.bytes_per_device is None or self._needed(shape, parts) <= self.config.bytes_per_device

    def _needed(self, shape: PageShape, parts: Sequence[MeshPart]) -> int:
        pages = sum(-(-len(part.vectors) // shape.rows) for part in parts if part.allowed.any())
        return -(-pages // self.programs.devices) * shape.nbytes

    def _here(self, plan: Plan, how: str = "") -> Plan:
        """The plan, with where it is carried out."""
        where = f"{self.programs.devices} devices of type {self.programs.platform}{how}"
        return replace(plan, why=f"{where}; {plan.why}" if plan.why else where)

    def _tell(
        self,
        told: tuple[Told, Sequence[int]],
        compute: str,
        plans: Sequence[Plan],
        by_lists: bool,
        again: Sequence[int],
        queries: int,
    ) -> None:
        """Notes how parts were searched. again: the queries for which all rows were looked at after that."""
        how = f", {compute} by {self.config.kernel}"
        why = "lists held too few rows, so that all were searched after them" if by_lists else "twice"
        ties = "" if by_lists else ", since rows tie or are nearly as good"
        twice = [
            replace(plan, way="mesh", rows=plan.rows + (plan.of if plan.rows else 0), why=f"{why}{ties}")
            for plan in plans
        ]
        for each, count in ((plans, queries - len(again)), (twice, len(again))):
            told[0].add(zip(told[1], (self._here(plan, how) for plan in each), strict=True), count)

    def _pool(self, collection: Hashable, shape: PageShape, kind: type[Pool] = Pool) -> Pool:
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
            self._pools[key] = kind(shape, self.programs, max(1, most // shape.nbytes))
        pool = self._pools.pop(key)
        if self.programs.alone:
            self._pools = {other: each for other, each in self._pools.items() if each.is_wanted()}
        self._pools[key] = pool  # the last that was used
        return pool

    def _check(self, parts: Sequence[MeshPart], queries: np.ndarray, top_k: int, recall: float) -> None:
        """Raises `WdbxError` where processes ask different things: they would wait for each other without end."""
        if self.programs.alone:
            return
        wanted = any(part.products is not None for part in parts)
        asked = np.array([top_k, len(queries), recall, wanted]).tobytes()
        rows = [np.array([len(part.vectors)]).tobytes() + np.packbits(part.allowed).tobytes() for part in parts]
        if not self.agree([asked, *rows, queries.tobytes()]):
            raise WdbxError(
                "the processes of a mesh ask different things of a collection; expected the same version, queries, "
                "filter, top_k, recall and codes in each of them"
            )

    def agree(self, said: Sequence[bytes]) -> bool:
        """Whether all processes say the same; all of them ask, at the same place among searches."""
        if self.programs.alone:
            return True
        digest = hashlib.sha256(b"".join(len(each).to_bytes(8, "little") + each for each in said)).digest()
        return self.programs.agree(np.frombuffer(digest[:16], np.int32))

    def _slabs(self, pool: Pool, parts: Sequence[MeshPart], pending: list[Arrays]) -> Iterator[tuple[Scanned, int]]:
        """The slabs of a search, and from which row of a device on each counts. pending: what was made of them."""
        budget, page = self.config.bytes_per_device, pool.shape.nbytes
        size = 1
        if budget is None:
            missing = pool.prepare(parts, None)
        else:
            size = 1 << (max(1, budget // 4 // page).bit_length() - 1)
            self._make_room(pool, min(self._needed(pool.shape, parts), budget), budget)
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


def _products(parts: Sequence[MeshPart], recall: float) -> "list[ProductIndex | None]":
    return [part.products() if part.products is not None and recall < 1 else None for part in parts]


def _digest(index: "ProductIndex | None") -> bytes:
    """What codes follow from, of the same rows."""
    if index is None:
        return b""
    measured = [index.codes.candidates[each] for each in sorted(index.codes.candidates)]
    return b"".join(each.tobytes() for each in (index.codes.books, index.lists.ends, *measured))


def keep_for(compute: str, parts: Sequence[MeshPart], top_k: int) -> int:
    """How many rows a device returns for a query: a power of two, and no more than there can be."""
    wanted = top_k if top_k <= MANY_ROWS else min(top_k, sum(len(part.vectors) for part in parts))
    return max(FEWEST_KEPT[compute], 1 << (2 * wanted - 1).bit_length())


def on_mesh(mesh: Mesh | MeshSearch | None, config: MeshSearchConfig | None = None) -> MeshSearch | None:
    """What searches on a mesh; None where there is none, and `mesh` itself where it is one already."""
    return mesh if mesh is None or isinstance(mesh, MeshSearch) else MeshSearch(mesh, config)
