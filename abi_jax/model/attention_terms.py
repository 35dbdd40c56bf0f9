"""What attention is given besides queries, keys and values: who sees whom, and how scores are made.

who sees whom (one row, two packed segments of three tokens, window of 2)

    key     a0 a1 a2 b0 b1 b2
    a0       x
    a1       x  x
    a2          x  x               causal, within the segment, within the window;
    b0                x            then AND what the request's personas may read;
    b1                x  x         then ADD the persona bias u(query) . v(key)
    b2                   x  x
"""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

NEVER = -1e30  # finite, so that a row that sees nothing gives a mean and not NaN


@dataclass(frozen=True)
class Scoring:
    """Scores are `softcap * tanh(scale * q.k / softcap)`; a `window` counts the keys a query sees, itself included."""

    scale: float
    softcap: float | None = None
    window: int | None = None

    def cap(self, scores: jax.Array) -> jax.Array:
        """Soft-caps scores (arXiv:2408.00118, section 2)."""
        return scores if self.softcap is None else self.softcap * jnp.tanh(scores / self.softcap)


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


def append_features(q: jax.Array, k: jax.Array, u: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Makes u `[B, T, H, F]` and v `[B, S, F]` further dimensions of q and of every head of k, so that q.k adds u.v."""
    v = jnp.broadcast_to(v[:, None], (*k.shape[:3], v.shape[-1]))
    return jnp.concatenate([q, u.astype(q.dtype)], -1), jnp.concatenate([k, v.astype(k.dtype)], -1)


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
