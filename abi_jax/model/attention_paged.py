"""Attention to a cache of pages: one softmax, made page by page (arXiv:2112.05682; arXiv:2309.06180).

The pages of a row are read in their order, and one that holds nothing a query sees changes no bit. So a row's result
depends neither on how far the other rows reach nor on where its pages lie.

Several new tokens of one answer are rows, too, a group of them: each sees itself, then page by page all that came
before it, new ones laid where pages will hold them: it makes no difference whether those came in this step or earlier.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from abi_jax.model.attention_terms import Bias, Block, PagedPast, Scoring, Sight
from abi_jax.model.attention_xla import by_head, by_token, masked_scores
from abi_jax.model.int8 import Int8
from abi_jax.model.pages import as_kept
from abi_jax.sharding.context import current_platform

State = tuple[jax.Array, jax.Array, jax.Array]


def paged(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None,
    past: PagedPast,
) -> jax.Array:
    """Shapes as in `model/attention.py`: of the new tokens, which see each other and what the pages hold.

    Where pages hold codes, it is scores and weights that are scaled: one number for the many of a key or a value.
    """
    scores = masked_scores(q, k, sight, scoring, bias)
    top, T = jnp.max(scores, axis=-1, keepdims=True), q.shape[1]
    if past.group == 1:
        nothing = (top, jnp.zeros_like(top), jnp.zeros((*scores.shape[:-1], v.shape[-1]), jnp.float32))
        state = _and(nothing, scores, v, v.dtype)
    else:
        state, q, scoring, bias, past = _of_groups(top, q, k, v, sight, scoring, bias, past)
    _, total, out = _and_pages(state, q, scoring, bias, past)
    return by_token((out / total).astype(v.dtype), q.shape[1]).reshape(-1, T, *q.shape[2:])


def _and(state: State, scores: jax.Array, values: jax.Array | Int8, dtype: DTypeLike) -> State:
    """A softmax, and more of its terms. A state: the highest score, the sum of weights, that of weighted values.

    dtype: that of the product with the values.
    """
    top, total, out = state
    higher = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
    old, new = jnp.exp(top - higher), jnp.exp(scores - higher)
    weights = new * values.scales[:, :, None] if isinstance(values, Int8) else new
    numbers = (values.codes if isinstance(values, Int8) else values).astype(dtype)
    weighted = jnp.einsum("bkms,bksd->bkmd", weights.astype(dtype), numbers, preferred_element_type=jnp.float32)
    return higher, total * old + jnp.sum(new, axis=-1, keepdims=True), out * old + weighted


def _and_pages(state: State, q: jax.Array, scoring: Scoring, bias: Bias | None, past: PagedPast) -> State:
    """`_and` what the pages hold, page by page."""
    width = _pages_at_once(past)
    size = width * past.k.shape[2]

    def add_block(n: jax.Array, state: State) -> State:
        block = past.block(n, width)
        marks = None if bias is None or block.features is None else Bias(bias.u, block.features)
        return _and(state, masked_scores(q, block.k, block.sight, scoring, marks), block.v, q.dtype)

    live = past.q_segments > 0
    last = -(-past.reach // size)
    first = jnp.int32(0)
    if scoring.window is not None:
        far = jnp.iinfo(jnp.int32).max
        first = jnp.maximum(jnp.min(jnp.where(live, past.q_positions, far)) - scoring.window + 1, 0) // size
    return jax.lax.fori_loop(first, last, add_block, state)


def _of_groups(
    top: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None,
    past: PagedPast,
) -> tuple[State, jax.Array, Scoring, Bias | None, PagedPast]:
    """Rows of one token each, with its score `top` on itself, as rows of `past.group` that have begun with that."""
    T, K, heads = past.group, v.shape[1], q.shape[2]

    def joined(x: jax.Array, axis: int = 1) -> jax.Array:
        """`[B T, ...]`, one token along `axis`, to `[B, ...]` with T of them."""
        x = jnp.moveaxis(x, axis, 1)
        return jnp.moveaxis(x.reshape(-1, T, *x.shape[2:]), 1, axis)

    itself = (top, jnp.ones_like(top), jnp.repeat(v.astype(jnp.float32), heads // K, axis=1))
    top, total, out = (by_head(x.reshape(-1, T, heads, x.shape[-1]), K) for x in itself)
    positions, segments = joined(past.q_positions), joined(past.q_segments)
    readable = None if past.readable is None else joined(past.readable)
    roles = None if sight.k_roles is None else joined(sight.k_roles)
    if bias is not None:
        bias = Bias(joined(bias.u), as_kept(joined(bias.v, 2), bias.v))
    seen = Sight(positions, positions, segments, segments, roles, readable)
    ahead = Block(as_kept(joined(k, 2), past.k), as_kept(joined(v, 2), past.v), seen, None if bias is None else bias.v)
    past = replace(
        past,
        table=past.table[::T],
        lengths=past.lengths[::T],
        q_positions=positions - 1,  # they have seen themselves
        q_segments=segments,
        readable=readable,
        ahead=ahead,
    )
    scoring = scoring if scoring.window is None else replace(scoring, window=scoring.window - 1)
    return (top, total, out), joined(q), scoring, bias, past


def _pages_at_once(past: PagedPast) -> int:
    """A processor's cache holds one page of every row; an accelerator wants more work a round."""
    wanted = 1 if current_platform() == "cpu" else 8
    return next(n for n in range(wanted, 0, -1) if past.table.shape[1] % n == 0)
