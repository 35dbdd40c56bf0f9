"""From logits to the next token, one setting a row, inside the decode step.

A row's draw depends on its seed and its position alone, never on its neighbours in the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.errors import InputError


@dataclass(frozen=True)
class SamplingConfig:
    """How one request samples. The defaults are greedy.

    `temperature` 0 takes the likeliest token; `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1
    each leave their filter out.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {
            "temperature": (self.temperature >= 0, "at least 0"),
            "top_k": (self.top_k >= 0, "at least 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p < 1, "at least 0 and below 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "seed": (0 <= self.seed < 2**32, "a 32-bit unsigned integer"),
        }
        for name, (fine, expected) in limits.items():
            if not fine:
                raise InputError(f"{name}={getattr(self, name)} must be {expected}")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """The settings of a batch, `[B]` each: f32, but `top_k` int32 and `seed` uint32."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    seed: jax.Array


def stack(configs: Sequence[SamplingConfig]) -> Sampling:
    """Lays the settings of a batch side by side."""

    def column(name: str, dtype: type) -> jax.Array:
        return jnp.asarray(np.array([getattr(c, name) for c in configs], dtype))

    return Sampling(
        temperature=column("temperature", np.float32),
        top_k=column("top_k", np.int32),
        top_p=column("top_p", np.float32),
        min_p=column("min_p", np.float32),
        repetition_penalty=column("repetition_penalty", np.float32),
        seed=column("seed", np.uint32),
    )


def penalize(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
    """Divides positive and multiplies negative logits of tokens `seen` `[B, V]` (arXiv:1909.05858, section 4.1)."""
    factor = jnp.where(seen, penalty[:, None], 1.0)
    return jnp.where(logits > 0, logits / factor, logits * factor)


def filter_logits(logits: jax.Array, s: Sampling) -> jax.Array:
    """Sets the logits that top-k, top-p and min-p exclude to -inf; `logits` `[B, V]` are at their temperature.

    Top-p is taken over what top-k leaves and keeps the token that crosses the threshold.
    """
    V = logits.shape[-1]
    ordered = -jnp.sort(-logits, axis=-1)
    rank = jnp.arange(V)[None]
    k = jnp.where(s.top_k > 0, jnp.minimum(s.top_k, V), V)[:, None]
    probs = jax.nn.softmax(jnp.where(rank < k, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probs, axis=-1) - probs
    # a sum that rounds up to 1 must not leave anything out where there is no top-p
    keep = (rank < k) & ((before < s.top_p[:, None]) | (s.top_p[:, None] >= 1))
    keep &= ordered >= ordered[:, :1] + jnp.log(s.min_p)[:, None]
    threshold = jnp.min(jnp.where(keep | (rank == 0), ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def sample(logits: jax.Array, s: Sampling, seen: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns the next token of every row, int32 `[B]`.

    logits f32 `[B, V]`; `seen` bool `[B, V]`: tokens the row holds already; `positions` int32 `[B]`: where
    the new token will stand.
    """

    def chosen(logits: jax.Array) -> jax.Array:
        logits = penalize(logits, seen, s.repetition_penalty)
        return jax.lax.cond(jnp.any(s.temperature > 0), draw, likeliest, logits)

    def draw(logits: jax.Array) -> jax.Array:
        scaled = logits / jnp.where(s.temperature > 0, s.temperature, 1.0)[:, None]
        filtered = jnp.any((s.top_k > 0) | (s.top_p < 1) | (s.min_p > 0))
        scaled = jax.lax.cond(filtered, lambda x: filter_logits(x, s), lambda x: x, scaled)

        def noise(seed: jax.Array, position: jax.Array) -> jax.Array:
            return jax.random.gumbel(jax.random.fold_in(jax.random.key(seed), position), logits.shape[-1:])

        picked = likeliest(scaled + jax.vmap(noise)(s.seed, positions))
        return jnp.where(s.temperature > 0, picked, likeliest(logits))

    plain = jnp.all((s.temperature == 0) & (s.repetition_penalty == 1))
    return jax.lax.cond(plain, likeliest, chosen, logits)


def likeliest(logits: jax.Array) -> jax.Array:
    """Returns the first largest entry of every row `[B, V]`, int32 `[B]`; the last token where a row is NaN.

    Two plain reductions: XLA's CPU backend does not vectorise the one that `argmax` is.
    """
    V = logits.shape[-1]
    top = jnp.max(logits, axis=-1, keepdims=True)
    at = jnp.where(logits == top, jnp.arange(V, dtype=jnp.int32), V - 1)
    return jnp.min(at, axis=-1)
