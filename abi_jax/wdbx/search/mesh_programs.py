"""The programs of a search on a mesh, each compiled once for its shapes and called as compiled.

What a caller's context holds (a mesh that is set, rules, a platform) therefore never makes JAX trace or compile again.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from threading import RLock
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from abi_jax.wdbx.search.mesh_codes import scan_codes
from abi_jax.wdbx.search.mesh_gather import gather, width_of
from abi_jax.wdbx.search.mesh_pages import NUMPY, PageShape, parts_of
from abi_jax.wdbx.search.mesh_probe import probe
from abi_jax.wdbx.search.mesh_select import Best, Rows, best_in_tiles, nothing, score, select
from abi_jax.wdbx.search.threads import check_exit

AXIS = "pages"
SPREAD, WHOLE = PartitionSpec(AXIS), PartitionSpec()
OF_SLAB = (*(SPREAD,) * 5, WHOLE, WHOLE, WHOLE, *(SPREAD,) * 4)  # a slab, which rows, base, queries, the best so far
SCORES_AT_ONCE = {"cpu": 1 << 24}  # of a device: more are made in turns, each of which copies its rows; elsewhere:
MOST_SCORES = 1 << 29
Arrays = tuple[jax.Array, ...]


class Programs:
    """Programs over devices in one row. kernel: "xla" or "pallas", see `mesh_kernel`."""

    def __init__(self, devices: Sequence[jax.Device], kernel: str = "xla") -> None:
        self.mesh = Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))
        self.kernel = kernel
        self.platform = str(self.mesh.devices.flat[0].platform)
        self.devices = int(self.mesh.size)
        here = jax.process_index(self.mesh.devices.flat[0].client)
        self.local = [i for i, each in enumerate(self.mesh.devices.flat) if each.process_index == here]
        self.lock = RLock()  # programs that talk across devices must reach each of them in one order
        self._made: dict[Any, Any] = {}
        self._numbers: dict[int, jax.Array] = {}
        self._begun: dict[tuple[int, int], Arrays] = {}

    def __len__(self) -> int:
        """How many programs there are."""
        return len(self._made)

    @property
    def alone(self) -> bool:
        """Whether all devices are this process's."""
        return len(self.local) == self.devices

    def spread(self, parts: Sequence[np.ndarray], devices: Sequence[int]) -> jax.Array:
        """An array split along its first axis, of what this process's `devices` (`local`) hold of it."""
        found = [self.mesh.devices.flat[i] for i in devices]
        placed = [jax.device_put(part, device) for part, device in zip(parts, found, strict=True)]
        shape = (self.devices * parts[0].shape[0], *parts[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(self.mesh, SPREAD), placed)

    def split(self, array: np.ndarray) -> jax.Array:
        """The array, the same in every process, split along its first axis."""
        if self.alone:
            return jax.device_put(array, NamedSharding(self.mesh, SPREAD))
        return self.spread([array.reshape(self.devices, -1, *array.shape[1:])[i] for i in self.local], self.local)

    def copy(self, array: np.ndarray) -> jax.Array:
        """The array, the same in every process, on every device."""
        sharding = NamedSharding(self.mesh, WHOLE)
        if self.alone:
            return jax.device_put(array, sharding)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def number(self, value: int) -> jax.Array:
        """A number, int32, on every device."""
        if value not in self._numbers:
            self._numbers[value] = self.copy(np.array(value, np.int32))
        return self._numbers[value]

    def begin(self, batch: int, keep: int) -> Arrays:
        """The best of nothing on every device: scores, rows, `left`, `reach`."""

        def make() -> Arrays:
            return (*(each[None] for each in nothing(batch, keep)), jnp.zeros((1, 2), jnp.float32))

        if (batch, keep) not in self._begun:
            self._begun[batch, keep] = self.call(("begin", batch, keep), make, (), SPREAD)
        return self._begun[batch, keep]

    def scan(self, slab: Sequence[Any], mask: Any, base: Any, queries: Sequence[Any], best: Arrays) -> Arrays:
        """The best of `best` and of the rows of a slab, which are counted from `base`."""
        return self._run("scan", slab, mask, base, queries, best)

    def gather(self, slab: Sequence[Any], places: Any, base: Any, queries: Sequence[Any], best: Arrays) -> Arrays:
        """The best of `best` and of some rows of a slab. places: int32 `[D, W]`, negative where there is none."""
        return self._run("gather", slab, places, base, queries, best)

    def probe(
        self, slab: Sequence[Any], mask: Any, blocks: Any, base: Any, queries: Sequence[Any], best: Arrays
    ) -> Arrays:
        """The best of `best` and of some blocks of a slab. blocks: int32 `[D, B, W]`, negative where there is none."""
        self._ready(slab, queries, best)
        key, form = ("probe", *_shapes(slab, best)), partial(probe, platform=self.platform)
        specs = (SPREAD, *OF_SLAB)
        made: Arrays = self.call(key, form, specs, SPREAD, *slab, mask, blocks, self.number(base), *queries, *best)
        return made

    def _run(
        self, way: str, slab: Sequence[Any], which: Any, base: Any, queries: Sequence[Any], best: Arrays
    ) -> Arrays:
        self._ready(slab, queries, best)
        with self.lock:
            made: Arrays = self._made[way, *_shapes(slab, best)](*slab, which, self.number(base), *queries, *best)
        return made

    def _ready(self, slab: Sequence[Any], queries: Sequence[Any], best: Arrays) -> None:
        """Compiles what looks at all rows of such a slab, and at few: which of them it is may change with any write."""
        shapes, (pages, rows) = _shapes(slab, best), slab[0].shape[:2]
        width = width_of(pages // self.devices * rows)
        if ("scan", *shapes) in self._made and (width is None or ("gather", *shapes) in self._made):
            return
        rest, split = (self.number(0), *queries, *best), NamedSharding(self.mesh, SPREAD)
        if width is not None:
            places = jax.ShapeDtypeStruct((self.devices, width), np.int32, sharding=split)
            few = partial(gather, platform=self.platform)
            self._compile(("gather", *shapes), few, OF_SLAB, SPREAD, (*slab, places, *rest))
        tiles = scan_tiles(self.devices, slab[0].shape, shapes[2], self.platform)
        every = partial(_scan, tiles=tiles, kernel=self.kernel, platform=self.platform)
        mask = jax.ShapeDtypeStruct((pages, rows), np.bool_, sharding=split)
        self._compile(("scan", *shapes), every, OF_SLAB, SPREAD, (*slab, mask, *rest))

    def scan_codes(self, slab: Sequence[Any], mask: Any, base: int, tables: Any, best: Arrays) -> Arrays:
        """The best of `best` and of the rows of a slab by their product codes, counted from `base`."""
        batch = len(tables)
        wide = tables.shape[1] * tables.shape[2] if self.platform == "tpu" else 0  # ones for the codes of a row
        tiles = scan_tiles(self.devices, slab[0].shape, batch + wide, self.platform)
        form = partial(scan_codes, tiles=tiles, platform=self.platform)
        specs = (SPREAD, SPREAD, WHOLE, WHOLE, *(SPREAD,) * 4)
        key = ("codes", *_shapes(slab, best))
        made: Arrays = self.call(key, form, specs, SPREAD, *slab, mask, self.number(base), tables, *best)
        return made

    def merge(self, best: Arrays) -> Arrays:
        """Of all devices: scores, device and row `[B, keep]`, `left` `[B]`, `reach` `[2]`; the same everywhere."""
        made: Arrays = self.call(("merge", *best[0].shape[1:]), _merge, (SPREAD,) * 4, WHOLE, *best)
        return made

    def above(self, slab: Sequence[Any], mask: Any, queries: Sequence[Any], floor: Any) -> jax.Array:
        """Which rows of a slab score at least `floor` for the first query, bool `[D P, R]`, the same everywhere."""
        specs = (*(SPREAD,) * 5, WHOLE, WHOLE, WHOLE)
        key = ("above", slab[0].shape, slab[0].dtype)
        made: jax.Array = self.call(key, _above, specs, WHOLE, *slab, mask, *queries, floor)
        return made

    def write(self, slab: Arrays, pages: Sequence[Any], slot: Any) -> Arrays:
        """A slab with one page anew on every device whose `slot` is there; the slab as it was is gone."""
        key = ("write", slab[0].shape, slab[0].dtype)
        gone = tuple(range(len(slab)))
        made: Arrays = self.call(key, _write, SPREAD, SPREAD, *slab, *pages, slot, gone=gone)
        return made

    def agree(self, said: np.ndarray) -> bool:
        """Whether all processes say the same: int32 `[n]` of each."""
        told = self.spread([said[None]] * len(self.local), self.local)
        low, high = self.call(("agree", len(said)), _agree, (SPREAD,), WHOLE, told)
        return bool((np.asarray(low) == np.asarray(high)).all())

    def call(
        self, key: Any, form: Callable[..., Any], given: Any, returned: Any, *arguments: Any, gone: tuple[int, ...] = ()
    ) -> Any:
        """What `form` makes of the arguments on every device; compiled once for a `key`, which says all of its shapes.

        given, returned: how arguments and what is made of them are split over devices. gone: arguments that are not
        used again. Nobody waits for what is compiled without `lock`.
        """
        check_exit()
        if key not in self._made:
            self._compile(key, form, given, returned, arguments, gone)
        with self.lock:
            return self._made[key](*arguments)

    def _compile(
        self,
        key: Any,
        form: Callable[..., Any],
        given: Any,
        returned: Any,
        arguments: Sequence[Any],
        gone: tuple[int, ...] = (),
    ) -> None:
        mapped = jax.shard_map(form, mesh=self.mesh, in_specs=given, out_specs=returned, check_vma=False)
        described = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in arguments]
        with jax.set_mesh(self.mesh):
            self._made[key] = jax.jit(mapped, donate_argnums=gone).lower(*described).compile()


def _shapes(slab: Sequence[Any], best: Arrays) -> tuple[Any, ...]:
    """What programs for a slab depend on: its shape and type, the number of queries and how many rows are kept."""
    return slab[0].shape, slab[0].dtype, *best[0].shape[1:]


@cache
def programs_on(devices: tuple[jax.Device, ...], kernel: str) -> Programs:
    """The programs on these devices: once for all that search on them."""
    return Programs(devices, kernel)


def scan_tiles(devices: int, slab: tuple[int, ...], batch: int, platform: str) -> int:
    """In how many turns a device scores its rows, so that scores take little memory; divides its pages."""
    pages, rows = slab[0] // devices, slab[1]
    tiles = 1
    while tiles < pages and pages * rows * batch > tiles * SCORES_AT_ONCE.get(platform, MOST_SCORES):
        tiles *= 2
    return tiles


def scan_structs(shape: PageShape, pages: int, batch: int, keep: int) -> list[jax.ShapeDtypeStruct]:
    """Of what shapes one device's arguments of a scan are, to lower it for devices that are elsewhere."""
    kind, count = NUMPY[shape.compute], parts_of(shape.compute, batch)
    made = [
        ((pages, shape.rows, shape.dim), kind),
        ((pages, shape.rows), np.float32),
        ((pages, shape.rows), np.float32),
    ]
    made += [((pages, 2), np.float32), ((pages, shape.rows), np.bool_), ((), np.int32)]
    made += [((count, batch, shape.dim), kind), ((count, batch), np.float32)]
    made += [
        ((1, batch, keep), np.float32),
        ((1, batch, keep), np.int32),
        ((1, batch), np.float32),
        ((1, 2), np.float32),
    ]
    return [jax.ShapeDtypeStruct(*each) for each in made]


def _scan(
    rows: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    reach: jax.Array,
    mask: jax.Array,
    base: jax.Array,
    parts: jax.Array,
    scales: jax.Array,
    best: jax.Array,
    at: jax.Array,
    left: jax.Array,
    far: jax.Array,
    *,
    tiles: int,
    kernel: str,
    platform: str,
) -> Arrays:
    if kernel == "pallas":  # imported where it is asked for, since it takes a while
        from abi_jax.wdbx.search.mesh_kernel import select_fused
    keep = best.shape[-1]

    def look(*given: jax.Array) -> Best:
        if kernel == "pallas":
            return select_fused(Rows(*given), parts, scales, keep, platform)
        return select(score(Rows(*given), parts, scales), keep, approximate=platform == "tpu")

    count = rows.shape[0] * rows.shape[1]
    flat = rows.reshape(count, -1), scale.reshape(-1), offset.reshape(-1), mask.reshape(-1)
    after = best_in_tiles(Best(best[0], at[0], left[0]), flat, tiles, base, look)
    seen = jnp.where(mask.any(axis=1)[:, None], reach, 0).max(axis=0)
    return after.scores[None], after.at[None], after.left[None], jnp.maximum(far, seen[None])


def _merge(best: jax.Array, at: jax.Array, left: jax.Array, far: jax.Array) -> Arrays:
    keep = best.shape[-1]
    gathered = [jax.lax.all_gather(each[0], AXIS) for each in (best, at)]
    scores, rows = (each.transpose(1, 0, 2).reshape(best.shape[1], -1) for each in gathered)
    scores, chosen = jax.lax.top_k(scores, keep)
    rows = jnp.take_along_axis(rows, chosen, axis=1)
    device = (chosen // keep).astype(jnp.int32)
    return scores, device, rows, jax.lax.pmax(left[0], AXIS), jax.lax.pmax(far[0], AXIS)


def _above(
    rows: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    reach: jax.Array,
    mask: jax.Array,
    parts: jax.Array,
    scales: jax.Array,
    floor: jax.Array,
) -> jax.Array:
    count = rows.shape[0] * rows.shape[1]
    flat = Rows(rows.reshape(count, -1), scale.reshape(-1), offset.reshape(-1), mask.reshape(-1))
    found = (score(flat, parts, scales)[:, 0] >= floor).reshape(mask.shape) & mask
    return jax.lax.all_gather(found, AXIS, tiled=True)


def _write(*given: jax.Array) -> Arrays:
    """given: arrays of a slab, as many of one page each, and the slot."""
    count, slot = len(given) // 2, given[-1]
    there = slot[0] < given[0].shape[0]
    at = jnp.minimum(slot[0], given[0].shape[0] - 1)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        kept = jax.lax.dynamic_slice_in_dim(old, at, 1)
        return jax.lax.dynamic_update_slice_in_dim(old, jnp.where(there, new, kept), at, 0)

    return tuple(put(old, new) for old, new in zip(given[:count], given[count:-1], strict=True))


def _agree(said: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.pmin(said[0], AXIS), jax.lax.pmax(said[0], AXIS)
