"""Product codes on one device: sums of what a query's table says of the codes of rows, and the best of these.

A byte of a row is the codes of two sub-spaces, and a table has what both add for each of the 256 bytes, so that a row
takes half as many look-ups. Sums are whole numbers below 2^16, which float32 holds: they are those of the kernels of a
host, on every platform and in either form.
"""

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.wdbx.search.mesh_select import WORST, Best, best_in_tiles, select

PAIR = 256
CODE, CODES = 4, 16  # bits, and what they can be
LOW = CODES - 1

Arrays = tuple[jax.Array, ...]


def scan_codes(
    rows: jax.Array,
    mask: jax.Array,
    base: jax.Array,
    tables: jax.Array,
    best: jax.Array,
    at: jax.Array,
    left: jax.Array,
    far: jax.Array,
    *,
    tiles: int,
    platform: str,
) -> Arrays:
    """On one device: the rows with the highest sums, with what is the best so far.

    rows: uint8 `[pages, R, M / 2]`. tables: uint8 `[B, M, 16]`. All else is as a scan of rows takes and returns it.
    """
    form = by_products if platform == "tpu" else by_look_up

    def look(codes: jax.Array, allowed: jax.Array) -> Best:
        sums = jnp.where(allowed[:, None], form(codes, tables), WORST)
        return select(sums, best.shape[-1], approximate=platform == "tpu")

    flat = rows.reshape(-1, rows.shape[-1]), mask.reshape(-1)
    after = best_in_tiles(Best(best[0], at[0], left[0]), flat, tiles, base, look)
    return after.scores[None], after.at[None], after.left[None], far


def by_look_up(codes: jax.Array, tables: jax.Array) -> jax.Array:
    """Sums float32 `[n, B]` of codes uint8 `[n, M / 2]` by tables uint8 `[B, M, 16]`: compiled to one loop."""
    width = codes.shape[1]
    wide = tables.astype(jnp.int32).reshape(-1, width, 2, CODES)
    pairs = (wide[:, :, 1, :, None] + wide[:, :, 0, None, :]).reshape(-1, width * PAIR).T
    where = codes.astype(jnp.int32) + PAIR * jnp.arange(width)
    found = pairs.at[where].get(mode="promise_in_bounds")
    return found.sum(axis=1).astype(jnp.float32)


def by_products(codes: jax.Array, tables: jax.Array) -> jax.Array:
    """The same as a matrix product, where look-ups are slow: of a one for every code, and of what is exact there."""
    both = jnp.stack([codes & LOW, codes >> CODE], axis=-1)
    ones = (both[..., None] == jnp.arange(CODES, dtype=jnp.uint8)).astype(jnp.bfloat16)
    wide = tables.astype(jnp.bfloat16).reshape(len(tables), -1)
    return jnp.einsum("nd,qd->nq", ones.reshape(len(codes), -1), wide, preferred_element_type=jnp.float32)


def packed(codes: np.ndarray) -> np.ndarray:
    """Blocks of codes as a host has them, uint8 `[k, M, 16]`, row by row: uint8 `[32 k, M / 2]`."""
    even, odd = codes[:, 0::2], codes[:, 1::2]
    first, last = (even & LOW) | (odd << CODE), (even >> CODE) | (odd & ~np.uint8(LOW))
    return np.concatenate([first, last], axis=2).transpose(0, 2, 1).reshape(-1, codes.shape[1] // 2)
