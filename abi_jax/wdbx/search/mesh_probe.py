"""Some blocks of a slab for each query: those of the lists it looks at. The host names them, devices score their own.

Tables of blocks are of one width, and where a query looks at more there are several, so that one program serves a shape
of slabs. How much of a table is filled is no part of the program, and what is not filled takes no time.
"""

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.wdbx.search.mesh_select import BLOCK, WORST, Best, Rows, better, score, select

WIDTH = 128  # blocks of a query in a table
AT_ONCE = 8  # blocks that are copied and multiplied at once
QUERIES_AT_ONCE = {"cpu": 1}  # elsewhere:
MOST_QUERIES = 16
NO_BLOCK = -1

Arrays = tuple[jax.Array, ...]


def probe(
    rows: jax.Array,
    scale: jax.Array,
    offset: jax.Array,
    reach: jax.Array,
    mask: jax.Array,
    blocks: jax.Array,
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
    """On one device: the best rows of chosen blocks, with what is the best so far.

    blocks: int32 `[1, B, W]`, those of each query first, then `NO_BLOCK`. All else is as a scan takes and returns it.
    """
    pages, per_page = rows.shape[:2]
    keep, width = best.shape[-1], blocks.shape[-1]
    count = pages * per_page // BLOCK
    every = Rows(rows.reshape(count, BLOCK, -1), *(each.reshape(count, BLOCK) for each in (scale, offset, mask)))

    def of_query(given: tuple[jax.Array, jax.Array, jax.Array]) -> Best:
        part, unit, which = given

        def some(i: jax.Array, scores: jax.Array) -> jax.Array:
            chosen = jax.lax.dynamic_slice_in_dim(which, i * AT_ONCE, AT_ONCE)
            near = Rows(*(each[jnp.maximum(chosen, 0)].reshape(AT_ONCE * BLOCK, *each.shape[2:]) for each in every))
            near = near._replace(mask=near.mask & jnp.repeat(chosen >= 0, BLOCK))
            made = score(near, part[:, None], unit[:, None])[:, 0]
            return jax.lax.dynamic_update_slice_in_dim(scores, made, i * AT_ONCE * BLOCK, 0)

        turns = (jnp.count_nonzero(which >= 0) + AT_ONCE - 1) // AT_ONCE
        scores = jax.lax.fori_loop(0, turns, some, jnp.full(width * BLOCK, WORST, jnp.float32))
        found = select(scores[:, None], keep, approximate=False)
        return Best(*(each[0] for each in found))

    queries = (parts.transpose(1, 0, 2), scales.T, blocks[0])
    found = jax.lax.map(of_query, queries, batch_size=min(blocks.shape[1], QUERIES_AT_ONCE.get(platform, MOST_QUERIES)))
    names = jnp.take_along_axis(blocks[0], found.at // BLOCK, axis=1) * BLOCK + found.at % BLOCK
    after = better(Best(best[0], at[0], left[0]), found._replace(at=names + base))
    seen = jnp.where(blocks[0][..., None] >= 0, reach[jnp.maximum(blocks[0], 0) * BLOCK // per_page], 0).max(
        axis=(0, 1)
    )
    return after.scores[None], after.at[None], after.left[None], jnp.maximum(far, seen[None])


def tables(query: np.ndarray, device: np.ndarray, block: np.ndarray, batch: int, devices: int) -> list[np.ndarray]:
    """Blocks of a slab by device and query, int32 `[devices, batch, WIDTH]` each, those of a query in the first ones.

    query, device, block: int64 `[n]` of each.
    """
    key = device * batch + query
    order = np.argsort(key, kind="stable")
    key = key[order]
    counts = np.bincount(key, minlength=devices * batch)
    width = -(-int(counts.max(initial=0)) // WIDTH) * WIDTH
    made = np.full((devices * batch, width), NO_BLOCK, np.int32)
    made[key, np.arange(len(key)) - (np.cumsum(counts) - counts)[key]] = block[order]
    every = made.reshape(devices, batch, width)
    return [np.ascontiguousarray(every[..., at : at + WIDTH]) for at in range(0, width, WIDTH)]
