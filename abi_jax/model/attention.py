"""Attention backends that agree with one reference, or refuse.

    who sees whom (one row, two packed segments of three tokens, window of 2)

        key     a0 a1 a2 b0 b1 b2
        a0       x
        a1       x  x
        a2          x  x               causal, within the segment, within the window;
        b0                x            then AND what the request's personas may read;
        b1                x  x         then ADD the persona bias u(query) . v(key)
        b2                   x  x

Shapes: q `[B, T, H, d]`, k and v `[B, K, S, d]` with `K` key-value heads, result `[B, T, H, d]`. `past` holds
cached tokens that the queries see beside k and v.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from abi_jax.errors import InputError
from abi_jax.sharding.context import current_platform

APART = 64.0  # half the least score between segments: e^-128 is zero in f32, and the sums stay exact in bf16
NEVER = -1e30  # finite, so that a row that sees nothing gives a mean and not NaN


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sight:
    """Which keys each query may see.

    Positions are int32 within a segment; segment 0 is padding. `readable` `[B, T, R]` says which roles a
    query may read and goes with `k_roles`. `aligned`: queries and keys are the same tokens, in order.
    `packed`: a row holds several segments.
    """

    q_positions: jax.Array
    k_positions: jax.Array
    q_segments: jax.Array
    k_segments: jax.Array
    k_roles: jax.Array | None = None
    readable: jax.Array | None = None
    aligned: bool = field(default=False, metadata={"static": True})
    packed: bool = field(default=True, metadata={"static": True})

    def mask(self, window: int | None) -> jax.Array:
        """Returns `[B, T, S]` bool, true where a query sees a key."""
        distance = self.q_positions[:, :, None] - self.k_positions[:, None, :]
        seen = distance >= 0
        if self.packed or not self.aligned:
            seen &= (self.q_segments[:, :, None] == self.k_segments[:, None, :]) & (self.k_segments[:, None, :] > 0)
        if window is not None:
            seen &= distance < window
        if self.readable is not None:
            assert self.k_roles is not None, "readable needs k_roles"
            seen &= jnp.take_along_axis(self.readable, self.k_roles[:, None, :], axis=2)
        return seen

    def rows(self, start: int, stop: int) -> "Sight":
        """The same for queries `start:stop` and the keys an aligned block of them can see."""
        part = slice(start, stop)
        return replace(
            self,
            q_positions=self.q_positions[:, part],
            q_segments=self.q_segments[:, part],
            readable=None if self.readable is None else self.readable[:, part],
            k_positions=self.k_positions[:, :stop],
            k_segments=self.k_segments[:, :stop],
            k_roles=None if self.k_roles is None else self.k_roles[:, :stop],
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bias:
    """The factored persona mask `M_w[i, j] = u(i) . v(j)`: u f32 `[B, T, H, F]`, v f32 `[B, F, S]`."""

    u: jax.Array
    v: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Past:
    """What a cache holds of the tokens before these: k, v `[B, K, S, d]`, features `[B, F, S]` of the persona mask.

    `sight` says which of the S slots each new token sees.
    """

    k: jax.Array
    v: jax.Array
    sight: Sight
    features: jax.Array | None = None


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    bias: Bias | None = None,
    past: Past | None = None,
) -> jax.Array:
    """The definition: dense scores, dense mask, f32 throughout. What every backend is compared with."""
    groups = q.shape[2] // k.shape[1]
    mask = sight.mask(window)
    if past is not None:
        k, v = jnp.concatenate([past.k, k], axis=2), jnp.concatenate([past.v, v], axis=2)
        mask = jnp.concatenate([past.sight.mask(window), mask], axis=2)
        if bias is not None and past.features is not None:
            bias = Bias(bias.u, jnp.concatenate([past.features, bias.v], axis=2))
    k, v = (jnp.repeat(x.astype(jnp.float32), groups, axis=1) for x in (k, v))
    scores = jnp.einsum("bthd,bhsd->bhts", q.astype(jnp.float32), k) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        scores = scores + jnp.einsum("bthf,bfs->bhts", bias.u, bias.v)
    scores = jnp.where(mask[:, None], scores, NEVER)
    return jnp.einsum("bhts,bhsd->bthd", jax.nn.softmax(scores, axis=-1), v).astype(q.dtype)


def xla(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    bias: Bias | None = None,
    past: Past | None = None,
    smallest_block: int = 128,
) -> jax.Array:
    """Grouped heads without repeating keys; aligned queries go in blocks that skip the keys after them."""
    T = q.shape[1]
    blocks = next((n for n in (8, 4, 2) if T % n == 0 and T // n >= smallest_block), 1)
    if past is not None:
        return _xla_past(q, k, v, sight, past, scale=scale, softcap=softcap, window=window, bias=bias)
    one = partial(_xla_block, scale=scale, softcap=softcap, window=window)
    if not sight.aligned or blocks == 1:
        return one(q, k, v, sight, bias=bias)
    parts = []
    for start in range(0, T, T // blocks):
        stop = start + T // blocks
        part = None if bias is None else Bias(bias.u[:, start:stop], bias.v[:, :, :stop])
        parts.append(one(q[:, start:stop], k[:, :, :stop], v[:, :, :stop], sight.rows(start, stop), bias=part))
    return jnp.concatenate(parts, axis=1)


def _xla_block(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    bias: Bias | None,
) -> jax.Array:
    scores = _scores(q, k, sight, scale, softcap, window, bias)
    return _by_token(_weigh(scores, v), q)


def _by_head(x: jax.Array, kv_heads: int) -> jax.Array:
    """`[B, T, H, n]` to `[B, K, M, n]`, `M` the queries of all heads that share keys.

    In this form every product of attention and of its gradient has its batch dimensions first, and XLA's CPU
    backend transposes nothing as large as the scores.
    """
    B, T, H, n = x.shape
    return x.reshape(B, T, kv_heads, H // kv_heads, n).transpose(0, 2, 3, 1, 4).reshape(B, kv_heads, -1, n)


def _by_token(x: jax.Array, like: jax.Array) -> jax.Array:
    """Undoes `_by_head`."""
    B, T, H, n = like.shape
    K = x.shape[1]
    return x.reshape(B, K, H // K, T, n).transpose(0, 3, 1, 2, 4).reshape(like.shape)


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


def _scores(
    q: jax.Array,
    k: jax.Array,
    sight: Sight,
    scale: float,
    softcap: float | None,
    window: int | None,
    bias: Bias | None,
) -> jax.Array:
    """Masked scores f32 `[B, K, M, S]`, of the queries as `_by_head` lays them out."""
    B, T, _, _ = q.shape
    K, S = k.shape[1:3]
    grouped = _by_head((q * scale).astype(q.dtype), K)
    scores = jnp.einsum("bkmd,bksd->bkms", grouped, k, preferred_element_type=jnp.float32)
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    if bias is not None:
        u = _by_head(bias.u, K)
        scores += jnp.einsum("bmf,bfs->bms", u.reshape(B, -1, u.shape[-1]), bias.v).reshape(scores.shape)
    mask = sight.mask(window)[:, None, None]
    return jnp.where(mask, scores.reshape(B, K, -1, T, S), NEVER).reshape(scores.shape)


def _xla_past(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    past: Past,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    bias: Bias | None,
) -> jax.Array:
    """One softmax over the cache and the new tokens, in two parts: the cache is read as it lies, not copied."""
    old_bias = None if bias is None or past.features is None else Bias(bias.u, past.features)
    old = _scores(q, past.k, past.sight, scale, softcap, window, old_bias)
    new = _scores(q, k, sight, scale, softcap, window, bias)
    top = jnp.maximum(jnp.max(old, axis=-1, keepdims=True), jnp.max(new, axis=-1, keepdims=True))
    old, new = jnp.exp(old - top), jnp.exp(new - top)
    total = jnp.sum(old, axis=-1, keepdims=True) + jnp.sum(new, axis=-1, keepdims=True)

    def weighted(weights: jax.Array, v: jax.Array) -> jax.Array:
        weights = (weights / total).astype(v.dtype)
        return jnp.einsum("bkms,bksd->bkmd", weights, v, preferred_element_type=jnp.float32)

    return _by_token((weighted(old, past.v) + weighted(new, v)).astype(v.dtype), q)


def fold(
    q: jax.Array,
    k: jax.Array,
    sight: Sight,
    *,
    scale: float,
    bias: Bias | None,
    segments: bool = False,
    multiple: int = 16,
) -> tuple[jax.Array, jax.Array]:
    """Appends the persona bias, the reading rules and, if asked, packed segments to q and k as extra head dimensions.

    A causal flash kernel with scale 1 then computes `scale * q.k + u.v` and never sees a dense mask. A role that
    may not be read costs a score of -30000, which is zero after the softmax in every dtype. A segment's number is
    written in bits of -1 and 1: with itself that gives exactly 0, with any other at most `-2 * APART`.
    """
    q = q * scale
    extra_q: list[jax.Array] = []
    extra_k: list[jax.Array] = []
    heads, kv_heads = q.shape[2], k.shape[1]
    if bias is not None:
        extra_q.append(bias.u)
        extra_k.append(bias.v.swapaxes(1, 2))
    if sight.readable is not None and sight.k_roles is not None:
        penalty = jnp.where(sight.readable, 0.0, -30_000.0)
        extra_q.append(jnp.broadcast_to(penalty[:, :, None], (*q.shape[:2], heads, penalty.shape[-1])))
        extra_k.append(jax.nn.one_hot(sight.k_roles, penalty.shape[-1]))
    if segments:
        own, other = _bits(sight.q_segments, q.shape[1]), _bits(sight.k_segments, q.shape[1])
        own = jnp.concatenate([own, jnp.full_like(own[..., :1], -own.shape[-1])], -1) * APART
        extra_q.append(jnp.broadcast_to(own[:, :, None], (*q.shape[:2], heads, own.shape[-1])))
        extra_k.append(jnp.concatenate([other, jnp.ones_like(other[..., :1])], -1))
    if extra_q:
        u, v = jnp.concatenate(extra_q, -1), jnp.concatenate(extra_k, -1)
        v = jnp.broadcast_to(v[:, None], (k.shape[0], kv_heads, *v.shape[1:]))
        q = jnp.concatenate([q, u.astype(q.dtype)], -1)
        k = jnp.concatenate([k, v.astype(k.dtype)], -1)
    short = -q.shape[-1] % multiple
    pad = [(0, 0)] * 3 + [(0, short)]
    return jnp.pad(q, pad), jnp.pad(k, pad)


def _bits(segments: jax.Array, most: int) -> jax.Array:
    """Segment numbers up to `most` `[B, S]` in bits of -1 and 1: f32 `[B, S, bits]`."""
    return 2.0 * (segments[..., None] >> jnp.arange(most.bit_length()) & 1) - 1.0


def cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    bias: Bias | None = None,
) -> jax.Array:
    """cuDNN flash attention through `jax.nn.dot_product_attention`; see `refusal` for what it cannot do.

    The causal mask goes by the place in the row, which within a segment is the order of positions.
    """
    d = q.shape[-1]
    q, k = fold(q, k, sight, scale=scale, bias=bias, segments=sight.packed)
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - d)])
    out = jax.nn.dot_product_attention(
        q,
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        scale=1.0,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return out[..., :d]


def tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    bias: Bias | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention, the Pallas TPU kernel that ships with JAX; see `refusal` for what it cannot do."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    B, T, H, d = q.shape
    q, k = fold(q, k, sight, scale=scale, bias=bias, multiple=128)
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - d)])
    groups = H // k.shape[1]
    one = masks.CausalMask((T, T)) if window is None else masks.LocalMask((T, T), (window - 1, 0), 0)
    splash = kernel.make_splash_mqa_single_device(
        masks.MultiHeadMask([one] * groups), attn_logits_soft_cap=softcap, interpret=interpret
    )
    segments = kernel.SegmentIds(q=sight.q_segments, kv=sight.k_segments)
    grouped = q.swapaxes(1, 2).reshape(B, k.shape[1], groups, T, q.shape[-1])
    per_head = jax.vmap(splash, in_axes=(0, 0, 0, None))
    out = jax.vmap(per_head, in_axes=(0, 0, 0, 0))(grouped, k, v, segments)
    return out.reshape(B, H, T, -1).swapaxes(1, 2)[..., :d].astype(v.dtype)


BACKENDS: dict[str, Callable[..., jax.Array]] = {"reference": reference, "xla": xla, "cudnn": cudnn, "tpu": tpu}


def refusal(
    backend: str,
    q: jax.Array,
    k: jax.Array,
    sight: Sight,
    *,
    softcap: float | None,
    bias: Bias | None,
    past: Past | None = None,
) -> str | None:
    """Says why `backend` would not compute what the reference computes, or None when it would."""
    if backend in ("reference", "xla"):
        return None
    if not sight.aligned or past is not None:
        return "queries and keys are not the same tokens (a cache is in use)"
    if softcap is not None and (bias is not None or sight.readable is not None):
        return "soft-capping would also cap the persona mask folded into the scores"
    if backend == "cudnn":
        if softcap is not None:
            return "cuDNN has no soft-capping"
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"dtype {q.dtype} is neither bfloat16 nor float16"
        width, limit = _folded_width(q, sight, bias), _cudnn_head_dim()
        if width > limit:
            return f"its head dimension {width}, persona mask included, must be at most {limit} on this GPU"
    if backend == "tpu" and (q.shape[1] % 128 or not _single_device()):
        return f"sequence length {q.shape[1]} must be a multiple of 128, on one device"
    return None


def _folded_width(q: jax.Array, sight: Sight, bias: Bias | None, multiple: int = 16) -> int:
    width = q.shape[-1] + (0 if bias is None else bias.u.shape[-1])
    width += 0 if sight.readable is None else sight.readable.shape[-1]
    width += q.shape[1].bit_length() + 1 if sight.packed else 0
    return width + -width % multiple


def _cudnn_head_dim() -> int:
    """Largest head dimension of cuDNN's flash attention: 128 before Hopper, 256 since."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    return 128 if capability is not None and float(capability) < 9 else 256


def _single_device() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    bias: Bias | None = None,
    past: Past | None = None,
    backend: str = "auto",
) -> jax.Array:
    """Attention by the named backend, or by the platform's best that computes the same thing.

    A backend asked for by name that would compute something else raises `InputError` with the reason.
    """
    if backend not in (*BACKENDS, "auto"):
        raise InputError(f"attention={backend!r} is unknown; choose from auto, {', '.join(BACKENDS)}")
    options: dict[str, Any] = {"scale": scale, "softcap": softcap, "window": window, "bias": bias}
    if past is not None:
        options["past"] = past
    if backend == "auto":
        best = {"gpu": "cudnn", "tpu": "tpu"}.get(current_platform(), "xla")
        backend = "xla" if refusal(best, q, k, sight, softcap=softcap, bias=bias, past=past) else best
    elif reason := refusal(backend, q, k, sight, softcap=softcap, bias=bias, past=past):
        raise InputError(f"attention={backend!r} cannot compute this: {reason}; use 'xla'")
    return BACKENDS[backend](q, k, v, sight, **options)
