"""On one device: scores of rows, and the best of them, in the form that its platform does quickest.

Rows stand in blocks. The best `keep` blocks by their maxima hold the best `keep` rows, so that few scores are sorted.
What a form leaves out is never above what it says of it in `left`: search checks that, whatever the form.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 32  # rows
RECALL = 0.99  # of blocks on a TPU, whose `approx_max_k` is quick; what it misses is told in `left`
WORST = -jnp.inf


class Rows(NamedTuple):
    """Rows of a device: numbers `[n, D]`, scale and offset `[n]`, and which may be found, bool `[n]`."""

    rows: jax.Array
    scale: jax.Array
    offset: jax.Array
    mask: jax.Array


class Best(NamedTuple):
    """Of each query the best scores `[B, keep]`, where they are, int32, and a bound on what was left out, `[B]`.

    Every row that is neither here nor scores more than the last score here is at most `left`.
    """

    scores: jax.Array
    at: jax.Array
    left: jax.Array


def nothing(batch: int, keep: int) -> Best:
    """The best of no rows."""
    return Best(
        jnp.full((batch, keep), WORST, jnp.float32),
        jnp.zeros((batch, keep), jnp.int32),
        jnp.full(batch, WORST, jnp.float32),
    )


def products(rows: jax.Array, parts: jax.Array, scales: jax.Array) -> jax.Array:
    """Products of rows `[n, D]` and queries in parts `[p, B, D]`, float32 `[n, B]`.

    Rows go left as they lie: XLA's CPU backend packs the right operand.
    """
    count, batch, dim = parts.shape
    exact = jnp.int32 if rows.dtype == jnp.int8 else jnp.float32
    made = jnp.einsum(
        "nd,qd->nq",
        rows,
        parts.reshape(count * batch, dim),
        precision=jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None,
        preferred_element_type=exact,
    )
    if rows.dtype == jnp.int8:
        made = made.astype(jnp.float32) * scales.reshape(-1)
    return made.reshape(-1, count, batch).sum(axis=1) if count > 1 else made


def score(rows: Rows, parts: jax.Array, scales: jax.Array) -> jax.Array:
    """Scores, best when high, `[n, B]`; `WORST` where a row may not be found."""
    made = products(rows.rows, parts, scales) * rows.scale[:, None] + rows.offset[:, None]
    return jnp.where(rows.mask[:, None], made, WORST)


def select(scores: jax.Array, keep: int, approximate: bool) -> Best:
    """The best of scores `[n, B]`."""
    count, batch = scores.shape
    if count <= BLOCK * keep or count % BLOCK:
        return _padded(*jax.lax.top_k(scores.T, min(keep, count)), keep)
    blocks = scores.reshape(count // BLOCK, BLOCK, batch)
    chosen, left = best_blocks(blocks.max(axis=1).T, keep, approximate)
    inside = blocks[chosen, :, jnp.arange(batch)[:, None]]
    return within(inside, chosen, left, keep)


def best_blocks(maxima: jax.Array, keep: int, approximate: bool) -> tuple[jax.Array, jax.Array]:
    """The best blocks by their maxima `[B, blocks]`: which, `[B, keep]`, and the largest maximum not among them."""
    batch = len(maxima)
    if not approximate:  # what is left out is below `keep` others
        return jax.lax.top_k(maxima, keep)[1], jnp.full(batch, WORST, jnp.float32)
    chosen = jax.lax.approx_max_k(maxima, keep, recall_target=RECALL)[1]
    return chosen, maxima.at[jnp.arange(batch)[:, None], chosen].set(WORST).max(axis=1)


def within(inside: jax.Array, chosen: jax.Array, left: jax.Array, keep: int) -> Best:
    """The best of the scores `[B, keep, BLOCK]` in chosen blocks."""
    batch = len(inside)
    scores, at = jax.lax.top_k(inside.reshape(batch, -1), keep)
    return Best(scores, jnp.take_along_axis(chosen, at // BLOCK, axis=1) * BLOCK + at % BLOCK, left)


def better(first: Best, second: Best) -> Best:
    """The best of both."""
    scores, chosen = jax.lax.top_k(jnp.concatenate([first.scores, second.scores], axis=1), first.scores.shape[1])
    at = jnp.take_along_axis(jnp.concatenate([first.at, second.at], axis=1), chosen, axis=1)
    return Best(scores, at, jnp.maximum(first.left, second.left))


def best_in_tiles(
    before: Best, rows: Sequence[jax.Array], tiles: int, base: jax.Array, look: Callable[..., Best]
) -> Best:
    """The best of `before` and of rows, arrays `[n, ..]`, looked at in so many turns; they are counted from `base`."""
    count = len(rows[0])

    def take(state: Best, tile: tuple[jax.Array, Sequence[jax.Array]]) -> tuple[Best, None]:
        start, given = tile
        found = look(*given)
        return better(state, found._replace(at=found.at + base + start)), None

    if tiles == 1:
        return take(before, (jnp.int32(0), rows))[0]
    starts = jnp.arange(tiles, dtype=jnp.int32) * (count // tiles)
    split = tuple(each.reshape(tiles, count // tiles, *each.shape[1:]) for each in rows)
    return jax.lax.scan(take, before, (starts, split))[0]


def _padded(scores: jax.Array, at: jax.Array, keep: int) -> Best:
    missing = keep - scores.shape[1]
    wide = ((0, 0), (0, missing))
    return Best(
        jnp.pad(scores, wide, constant_values=WORST),
        jnp.pad(at.astype(jnp.int32), wide),
        jnp.full(len(scores), WORST, jnp.float32),
    )
