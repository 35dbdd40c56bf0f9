"""Attention by one of several backends, which agree with one reference or refuse.

Shapes: q `[B, T, H, d]`, k and v `[B, K, S, d]` with `K` key-value heads, result `[B, T, H, d]`. `past` holds
cached tokens that the queries see beside k and v.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from abi_jax.errors import InputError
from abi_jax.model.attention_flash import cudnn, flash_refusal, tpu
from abi_jax.model.attention_paged import paged
from abi_jax.model.attention_terms import NEVER, Bias, PagedPast, Past, Scoring, Sight
from abi_jax.model.attention_xla import xla
from abi_jax.sharding.context import current_platform


def reference(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None = None,
    past: Past | None = None,
) -> jax.Array:
    """The definition: dense scores, dense mask, f32 throughout. What every backend is compared with."""
    groups = q.shape[2] // k.shape[1]
    mask = sight.mask(scoring.window)
    if past is not None:
        k, v = jnp.concatenate([past.k, k], axis=2), jnp.concatenate([past.v, v], axis=2)
        mask = jnp.concatenate([past.sight.mask(scoring.window), mask], axis=2)
        if bias is not None and past.features is not None:
            bias = Bias(bias.u, jnp.concatenate([past.features, bias.v], axis=2))
    k, v = (jnp.repeat(x.astype(jnp.float32), groups, axis=1) for x in (k, v))
    scores = jnp.einsum("bthd,bhsd->bhts", q.astype(jnp.float32), k) * scoring.scale
    scores = scoring.cap(scores)
    if bias is not None:
        scores = scores + jnp.einsum("bthf,bfs->bhts", bias.u, bias.v)
    scores = jnp.where(mask[:, None], scores, NEVER)
    return jnp.einsum("bhts,bhsd->bthd", jax.nn.softmax(scores, axis=-1), v).astype(q.dtype)


BACKENDS: dict[str, Callable[..., jax.Array]] = {"reference": reference, "xla": xla, "cudnn": cudnn, "tpu": tpu}


def refusal(
    backend: str,
    q: jax.Array,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None = None,
    past: Past | None = None,
) -> str | None:
    """Says why `backend` would not compute what the reference computes, or None when it would."""
    return None if backend in ("reference", "xla") else flash_refusal(backend, q, sight, scoring, bias, past)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sight: Sight,
    scoring: Scoring,
    bias: Bias | None = None,
    past: Past | PagedPast | None = None,
    *,
    backend: str = "auto",
) -> jax.Array:
    """Attention by the named backend, or by the platform's best that computes the same thing.

    A backend asked for by name that would compute something else raises `InputError` with the reason. Pages are
    read by one, whatever is asked for (see `attention_paged.py`).
    """
    if isinstance(past, PagedPast):
        return paged(q, k, v, sight, scoring, bias, past)
    if backend not in (*BACKENDS, "auto"):
        raise InputError(f"attention={backend!r} is unknown; choose from auto, {', '.join(BACKENDS)}")
    if backend == "auto":
        best = {"gpu": "cudnn", "tpu": "tpu"}.get(current_platform(), "xla")
        backend = "xla" if refusal(best, q, sight, scoring, bias, past) else best
    elif reason := refusal(backend, q, sight, scoring, bias, past):
        raise InputError(f"attention={backend!r} cannot compute this: {reason}; use 'xla'")
    given: dict[str, Any] = {} if past is None else {"past": past}
    return BACKENDS[backend](q, k, v, sight, scoring, bias, **given)
