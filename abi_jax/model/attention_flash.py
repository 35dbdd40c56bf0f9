"""Flash attention kernels, cuDNN's and splash on TPU, and when they compute what the reference computes.

Shapes as in `model/attention.py`.
"""

import jax
import jax.numpy as jnp

from abi_jax.model.attention_terms import Bias, Past, Scoring, Sight, append_features

APART = 512.0  # half the least score between segments; their sums, up to 6,000, leave 2^-11 of a score exact in f32


def fold(
    q: jax.Array,
    k: jax.Array,
    sight: Sight,
    scale: float,
    bias: Bias | None,
    *,
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
    heads = q.shape[2]
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
        q, k = append_features(q, k, jnp.concatenate(extra_q, -1), jnp.concatenate(extra_k, -1))
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
    scoring: Scoring,
    bias: Bias | None = None,
) -> jax.Array:
    """cuDNN flash attention through `jax.nn.dot_product_attention`; see `flash_refusal` for what it cannot do.

    The causal mask goes by the place in the row, which within a segment is the order of positions.
    """
    d = q.shape[-1]
    q, k = fold(q, k, sight, scoring.scale, bias, segments=sight.packed)
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - d)])
    out = jax.nn.dot_product_attention(
        q,
        k.swapaxes(1, 2),
        v.swapaxes(1, 2),
        scale=1.0,
        is_causal=True,
        local_window_size=None if scoring.window is None else (scoring.window - 1, 0),
        implementation="cudnn",
    )
    return out[..., :d]


def tpu(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention, the Pallas TPU kernel that ships with JAX; see `flash_refusal` for what it cannot do."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    B, T, H, d = q.shape
    q, k = fold(q, k, sight, scoring.scale, bias, multiple=128)
    v = jnp.pad(v, [(0, 0)] * 3 + [(0, q.shape[-1] - d)])
    groups, window = H // k.shape[1], scoring.window
    one = masks.CausalMask((T, T)) if window is None else masks.LocalMask((T, T), (window - 1, 0), 0)
    splash = kernel.make_splash_mqa_single_device(
        masks.MultiHeadMask([one] * groups), attn_logits_soft_cap=scoring.softcap, interpret=interpret
    )
    segments = kernel.SegmentIds(q=sight.q_segments, kv=sight.k_segments)
    grouped = q.swapaxes(1, 2).reshape(B, k.shape[1], groups, T, q.shape[-1])
    per_head = jax.vmap(splash, in_axes=(0, 0, 0, None))
    out = jax.vmap(per_head, in_axes=(0, 0, 0, 0))(grouped, k, v, segments)
    return out.reshape(B, H, T, -1).swapaxes(1, 2)[..., :d].astype(v.dtype)


def flash_refusal(
    backend: str,
    q: jax.Array,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None = None,
    past: Past | None = None,
) -> str | None:
    """Says why `backend`, "cudnn" or "tpu", would not compute what the reference computes; None when it would."""
    if not sight.aligned or past is not None:
        return "queries and keys are not the same tokens (a cache is in use)"
    if scoring.softcap is not None and (bias is not None or sight.readable is not None):
        return "soft-capping would also cap the persona mask folded into the scores"
    if backend == "cudnn":
        if scoring.softcap is not None:
            return "cuDNN has no soft-capping"
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"dtype {q.dtype} is neither bfloat16 nor float16"
        if not _has_cudnn():
            return "there is no NVIDIA GPU here"
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


def _has_cudnn() -> bool:
    """Whether cuDNN can be asked what it supports, which tracing does: also to lower for a GPU that is elsewhere."""
    return jax.default_backend() == "gpu"


def _cudnn_head_dim() -> int:
    """Largest head dimension of cuDNN's flash attention: 128 before Hopper, 256 since."""
    capability = getattr(jax.devices()[0], "compute_capability", None)
    return 128 if capability is not None and float(capability) < 9 else 256


def _single_device() -> bool:
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.empty or mesh.size == 1
