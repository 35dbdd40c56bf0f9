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

from abi_jax.wdbx.search.mesh_pages import NUMPY, PageShape, parts_of
from abi_jax.wdbx.search.mesh_select import Best, Rows, better, nothing, score, select

AXIS = "pages"
SPREAD, WHOLE = PartitionSpec(AXIS), PartitionSpec()
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

        made: Arrays = self._call(("begin", batch, keep), make, (), SPREAD)
        return made

    def scan(self, slab: Sequence[Any], mask: Any, base: Any, queries: Sequence[Any], best: Arrays) -> Arrays:
        """The best of `best` and of the rows of a slab, which are counted from `base`."""
        batch, keep = best[0].shape[1:]
        tiles = scan_tiles(self.devices, slab[0].shape, batch, self.platform)
        form = partial(_scan, tiles=tiles, kernel=self.kernel, platform=self.platform)
        specs = (*(SPREAD,) * 5, WHOLE, WHOLE, WHOLE, *(SPREAD,) * 4)
        key = ("scan", slab[0].shape, slab[0].dtype, batch, keep)
        made: Arrays = self._call(key, form, specs, SPREAD, *slab, mask, self.number(base), *queries, *best)
        return made

    def merge(self, best: Arrays) -> Arrays:
        """Of all devices: scores, device and row `[B, keep]`, `left` `[B]`, `reach` `[2]`; the same everywhere."""
        made: Arrays = self._call(("merge", *best[0].shape[1:]), _merge, (SPREAD,) * 4, WHOLE, *best)
        return made

    def above(self, slab: Sequence[Any], mask: Any, queries: Sequence[Any], floor: Any) -> jax.Array:
        """Which rows of a slab score at least `floor` for the first query, bool `[D P, R]`, the same everywhere."""
        specs = (*(SPREAD,) * 5, WHOLE, WHOLE, WHOLE)
        key = ("above", slab[0].shape, slab[0].dtype)
        made: jax.Array = self._call(key, _above, specs, WHOLE, *slab, mask, *queries, floor)
        return made

    def write(self, slab: Arrays, pages: Sequence[Any], slot: Any) -> Arrays:
        """A slab with one page anew on every device whose `slot` is there; the slab as it was is gone."""
        specs = (SPREAD,) * 9
        key = ("write", slab[0].shape, slab[0].dtype)
        made: Arrays = self._call(key, _write, specs, SPREAD, *slab, *pages, slot, gone=(0, 1, 2, 3))
        return made

    def agree(self, said: np.ndarray) -> bool:
        """Whether all processes say the same: int32 `[n]` of each."""
        told = self.spread([said[None]] * len(self.local), self.local)
        low, high = self._call(("agree", len(said)), _agree, (SPREAD,), WHOLE, told)
        return bool((np.asarray(low) == np.asarray(high)).all())

    def _call(
        self, key: Any, form: Callable[..., Any], given: Any, returned: Any, *arguments: Any, gone: tuple[int, ...] = ()
    ) -> Any:
        if key not in self._made:
            mapped = jax.shard_map(form, mesh=self.mesh, in_specs=given, out_specs=returned, check_vma=False)
            described = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in arguments]
            with jax.set_mesh(self.mesh):
                self._made[key] = jax.jit(mapped, donate_argnums=gone).lower(*described).compile()
        return self._made[key](*arguments)


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
    count = rows.shape[0] * rows.shape[1]
    before = Best(best[0], at[0], left[0])

    def take(state: Best, tile: tuple[jax.Array, Rows]) -> tuple[Best, None]:
        start, given = tile
        if kernel == "pallas":
            found = select_fused(given, parts, scales, keep, platform)
        else:
            found = select(score(given, parts, scales), keep, approximate=platform == "tpu")
        return better(state, found._replace(at=found.at + base + start)), None

    flat = Rows(rows.reshape(count, -1), scale.reshape(-1), offset.reshape(-1), mask.reshape(-1))
    if tiles == 1:
        after, _ = take(before, (jnp.int32(0), flat))
    else:
        starts = jnp.arange(tiles, dtype=jnp.int32) * (count // tiles)
        split = Rows(*(each.reshape(tiles, count // tiles, *each.shape[1:]) for each in flat))
        after, _ = jax.lax.scan(take, before, (starts, split))
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


def _write(
    rows: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    reach: jax.Array,
    new_rows: jax.Array,
    new_scale: jax.Array,
    new_offset: jax.Array,
    new_reach: jax.Array,
    slot: jax.Array,
) -> Arrays:
    there = slot[0] < rows.shape[0]
    at = jnp.minimum(slot[0], rows.shape[0] - 1)

    def put(old: jax.Array, new: jax.Array) -> jax.Array:
        kept = jax.lax.dynamic_slice_in_dim(old, at, 1)
        return jax.lax.dynamic_update_slice_in_dim(old, jnp.where(there, new, kept), at, 0)

    pairs = zip((rows, scale, offset, reach), (new_rows, new_scale, new_offset, new_reach), strict=True)
    return tuple(put(old, new) for old, new in pairs)


def _agree(said: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jax.lax.pmin(said[0], AXIS), jax.lax.pmax(said[0], AXIS)
