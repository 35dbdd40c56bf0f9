"""Rows of a slab one by one, where a filter leaves few: each device copies its own together and multiplies them.

How many there are is no part of the program: the table of places has room for as many as are worth it.
"""

import jax
import jax.numpy as jnp

from abi_jax.wdbx.search.mesh_select import Best, Rows, better, score, select
from abi_jax.wdbx.search.plan import FEW

AT_ONCE = {"cpu": 256}  # rows; elsewhere:
MOST_AT_ONCE = 1 << 14
FEWEST = 512  # places of a table: a slab of not many more rows is scanned in no time
NO_PLACE = -1

Arrays = tuple[jax.Array, ...]


def width_of(rows: int) -> int | None:
    """How many places there are in a device's table for a slab of which it has so many rows; None: it is scanned."""
    return rows // FEW if rows // FEW >= FEWEST else None


def gather(
    rows: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    reach: jax.Array,
    places: jax.Array,
    base: jax.Array,
    parts: jax.Array,
    scales: jax.Array,
    best: jax.Array,
    at: jax.Array,
    left: jax.Array,
    far: jax.Array,
    *,
    platform: str,
) -> Arrays:
    """On one device: the best of some rows, with what is the best so far.

    places: int32 `[1, W]`, where the rows are, then `NO_PLACE`. All else is as a scan takes and returns it.
    """
    keep, which, per_page = best.shape[-1], places[0], rows.shape[1]
    flat = rows.reshape(-1, rows.shape[-1])
    at_once = min(AT_ONCE.get(platform, MOST_AT_ONCE), len(which))

    def some(i: jax.Array, state: Best) -> Best:
        chosen = jax.lax.dynamic_slice_in_dim(which, i * at_once, at_once)
        here = jnp.maximum(chosen, 0)
        near = Rows(flat[here], scale.reshape(-1)[here], offset.reshape(-1)[here], chosen >= 0)
        found = select(score(near, parts, scales), keep, approximate=False)
        return better(state, found._replace(at=here[found.at] + base))

    turns = (jnp.count_nonzero(which >= 0) + at_once - 1) // at_once
    after = jax.lax.fori_loop(0, turns, some, Best(best[0], at[0], left[0]))
    seen = jnp.where((which >= 0)[:, None], reach[jnp.maximum(which, 0) // per_page], 0).max(axis=0)
    return after.scores[None], after.at[None], after.left[None], jnp.maximum(far, seen[None])
