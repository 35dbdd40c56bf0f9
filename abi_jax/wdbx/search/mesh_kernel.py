"""The product and the maxima of its blocks in one kernel (Pallas), so that scores are never in memory.

Worth it where a batch is so large that scores take as long to write as products to make. The best blocks' rows are then
multiplied again, few of them. Compared with `mesh_select` in tests, interpreted; choose it with `kernel="pallas"`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from abi_jax.wdbx.search.mesh_select import BLOCK, WORST, Best, Rows, best_blocks, score, select, within

ROWS, QUERIES, DEPTH = 128, 128, 64  # of a step on a GPU; DEPTH: of the dimension, at a time
TPU_ROWS, TPU_DIM = 512, 2048  # of a step on a TPU, and the largest dimension whose rows its memory holds
AGAIN = 1 << 17  # rows that are multiplied again at a time


def select_fused(rows: Rows, parts: jax.Array, scales: jax.Array, keep: int, platform: str) -> Best:
    """`select` of `score`, fused where shapes allow it: a query in one part, rows and dimension in whole steps."""
    count = len(rows.rows)
    approximate = platform == "tpu"
    if count <= BLOCK * keep or not fits(rows.rows.shape, parts.shape, platform):
        return select(score(rows, parts, scales), keep, approximate)
    chosen, left = best_blocks(block_maxima(rows, parts[0], scales[0], platform).T, keep, approximate)
    blocks = Rows(*(each.reshape(count // BLOCK, BLOCK, *each.shape[1:]) for each in rows))

    def again(query: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        part, scale, which = query
        near = Rows(*(each[which].reshape(keep * BLOCK, *each.shape[2:]) for each in blocks))
        return score(near, part[None, None], scale[None, None])[:, 0].reshape(keep, BLOCK)

    at_once = max(1, min(parts.shape[1], AGAIN // (keep * BLOCK)))
    inside = jax.lax.map(again, (parts[0], scales[0], chosen), batch_size=at_once)
    return within(inside, chosen, left, keep)


def fits(rows: tuple[int, ...], parts: tuple[int, ...], platform: str) -> bool:
    """Whether rows `[n, D]` and queries `[p, B, D]` are whole steps of the platform's kernel."""
    count, dim = rows
    if parts[0] != 1 or parts[1] < 16:
        return False
    if platform == "tpu":
        return count % TPU_ROWS == 0 and dim % 128 == 0 and dim <= TPU_DIM
    return count % ROWS == 0 and dim % DEPTH == 0


def block_maxima(
    rows: Rows, queries: jax.Array, scales: jax.Array, platform: str, interpret: bool | None = None
) -> jax.Array:
    """The best score in every block for queries `[B, D]`, float32 `[n / BLOCK, B]`. interpret: by default on a CPU."""
    count, dim = rows.rows.shape
    batch = len(queries)
    step, width = (TPU_ROWS, batch) if platform == "tpu" else (ROWS, min(QUERIES, batch))
    column = pl.BlockSpec((step, 1), lambda i, j: (i, 0))
    return pl.pallas_call(
        partial(_step, depth=dim if platform == "tpu" else DEPTH),
        grid=(count // step, batch // width),
        in_specs=[
            pl.BlockSpec((step, dim), lambda i, j: (i, 0)),
            column,
            column,
            pl.BlockSpec((width, dim), lambda i, j: (j, 0)),
            pl.BlockSpec((1, width), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((step // BLOCK, width), lambda i, j: (i, j)),
        out_shape=jax.ShapeDtypeStruct((count // BLOCK, batch), jnp.float32),
        compiler_params=None if platform == "tpu" else triton.CompilerParams(num_warps=8, num_stages=3),
        interpret=platform == "cpu" if interpret is None else interpret,
        name="wdbx_block_maxima",
    )(
        rows.rows,
        rows.scale[:, None],
        jnp.where(rows.mask, rows.offset, WORST)[:, None],
        queries,
        scales[None],
    )


def _step(rows: Any, scale: Any, offset: Any, queries: Any, scales: Any, out: Any, *, depth: int) -> None:
    """The maxima of some blocks for some queries, `depth` numbers of a row at a time."""
    count, dim = rows.shape
    width = queries.shape[0]
    whole = rows.dtype == jnp.int8

    def add(i: jax.Array | int, made: jax.Array) -> jax.Array:
        at = pl.ds(i * depth, depth)
        return made + jax.lax.dot_general(
            rows[:, at],
            queries[:, at],
            (((1,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None,
            preferred_element_type=made.dtype,
        )

    made = jnp.zeros((count, width), jnp.int32 if whole else jnp.float32)
    made = add(0, made) if depth == dim else jax.lax.fori_loop(0, dim // depth, add, made)
    if whole:
        made = made.astype(jnp.float32) * scales[...]
    made = made * scale[...] + offset[...]
    out[...] = made.reshape(count // BLOCK, BLOCK, width).max(axis=1)
