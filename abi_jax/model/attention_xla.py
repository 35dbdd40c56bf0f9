"""Attention as XLA compiles it, in forms that its CPU backend runs fast too.

Shapes as in `model/attention.py`; `M` are the queries of all heads that share a key-value head.
"""

import jax
import jax.numpy as jnp

from abi_jax.model.attention_terms import NEVER, Bias, Past, Scoring, Sight, append_features
from abi_jax.model.int8 import Int8


def xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None = None,
    past: Past | None = None,
    smallest_block: int = 128,
) -> jax.Array:
    """Grouped heads without repeating keys; aligned queries go in blocks that skip the keys after them."""
    if past is not None:
        return _with_past(q, k, v, sight, past, scoring, bias)
    if bias is not None and scoring.softcap is None and q.dtype == jnp.float32:
        # one product for scores and mask, one for each gradient; terms of zero leave the other sums' bits as they are
        q, k = append_features(q, k, bias.u / scoring.scale, bias.v.swapaxes(1, 2))
        bias = None
    T = q.shape[1]
    blocks = next((n for n in (8, 4, 2) if T % n == 0 and T // n >= smallest_block), 1)
    if not sight.aligned or blocks == 1:
        return _block(q, k, v, sight, scoring, bias)
    parts = []
    for start in range(0, T, T // blocks):
        stop = start + T // blocks
        part = None if bias is None else Bias(bias.u[:, start:stop], bias.v[:, :, :stop])
        keys, values = k[:, :, :stop], v[:, :, :stop]
        parts.append(_block(q[:, start:stop], keys, values, sight.rows(start, stop), scoring, part))
    return jnp.concatenate(parts, axis=1)


def _block(q: jax.Array, k: jax.Array, v: jax.Array, sight: Sight, scoring: Scoring, bias: Bias | None) -> jax.Array:
    return by_token(_weigh(masked_scores(q, k, sight, scoring, bias), v), q.shape[1])


def by_head(x: jax.Array, kv_heads: int) -> jax.Array:
    """`[B, T, H, n]` to `[B, K, M, n]`, `M` the queries of all heads that share keys.

    In this form every product of attention and of its gradient has its batch dimensions first, and XLA's CPU
    backend transposes nothing as large as the scores.
    """
    B, T, H, n = x.shape
    return x.reshape(B, T, kv_heads, H // kv_heads, n).transpose(0, 2, 3, 1, 4).reshape(B, kv_heads, -1, n)


def by_token(x: jax.Array, T: int) -> jax.Array:
    """Undoes `by_head` for `T` queries."""
    B, K, M, n = x.shape
    return x.reshape(B, K, M // T, T, n).transpose(0, 3, 1, 2, 4).reshape(B, T, -1, n)


@jax.custom_vjp
def _weigh(scores: jax.Array, v: jax.Array) -> jax.Array:
    """`softmax(scores) v` of scores f32 `[B, K, M, S]` and v `[B, K, S, d]`: `[B, K, M, d]`."""
    return _weigh_forward(scores, v)[0]


def _weigh_forward(scores: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = jnp.einsum("bkms,bksd->bkmd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / total).astype(v.dtype)
    return out, (weights, total, v, out)


def _weigh_backward(saved: tuple[jax.Array, ...], dout: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum over keys in the softmax's gradient is `dout . out` (arXiv:2205.14135, appendix B.2)."""
    weights, total, v, out = saved
    share = jnp.sum(dout.astype(jnp.float32) * out, axis=-1, keepdims=True) / total
    dout = (dout / total).astype(v.dtype)
    dv = jnp.einsum("bkms,bkmd->bksd", weights.astype(v.dtype), dout)
    dweights = jnp.einsum("bkmd,bksd->bkms", dout, v, preferred_element_type=jnp.float32)
    return weights * (dweights - share), dv


_weigh.defvjp(_weigh_forward, _weigh_backward)


def masked_scores(
    q: jax.Array,
    k: jax.Array | Int8,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None,
) -> jax.Array:
    """Masked scores f32 `[B, K, M, S]`, of the queries as `by_head` lays them out."""
    B, T, _, _ = q.shape
    K, S = k.shape[1:3]
    grouped = by_head((q * scoring.scale).astype(q.dtype), K)
    keys = k.codes.astype(q.dtype) if isinstance(k, Int8) else k
    scores = jnp.einsum("bkmd,bksd->bkms", grouped, keys, preferred_element_type=jnp.float32)
    if isinstance(k, Int8):
        scores *= k.scales[:, :, None]
    scores = scoring.cap(scores)
    if bias is not None:
        u = by_head(bias.u, K)
        scores += jnp.einsum("bmf,bfs->bms", u.reshape(B, -1, u.shape[-1]), bias.v).reshape(scores.shape)
    mask = sight.mask(scoring.window)[:, None, None]
    return jnp.where(mask, scores.reshape(B, K, -1, T, S), NEVER).reshape(scores.shape)


def _with_past(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    past: Past,
    scoring: Scoring,
    bias: Bias | None,
) -> jax.Array:
    """One softmax over the cache and the new tokens, in two parts: the cache is read as it lies, not copied."""
    old_bias = None if bias is None or past.features is None else Bias(bias.u, past.features)
    old = masked_scores(q, past.k, past.sight, scoring, old_bias)
    new = masked_scores(q, k, sight, scoring, bias)
    top = jnp.maximum(jnp.max(old, axis=-1, keepdims=True), jnp.max(new, axis=-1, keepdims=True))
    old, new = jnp.exp(old - top), jnp.exp(new - top)
    total = jnp.sum(old, axis=-1, keepdims=True) + jnp.sum(new, axis=-1, keepdims=True)

    def weighted(weights: jax.Array, v: jax.Array) -> jax.Array:
        weights = (weights / total).astype(v.dtype)
        return jnp.einsum("bkms,bksd->bkmd", weights, v, preferred_element_type=jnp.float32)

    return by_token((weighted(old, past.v) + weighted(new, v)).astype(v.dtype), q.shape[1])
