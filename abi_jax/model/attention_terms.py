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
from typing import Any

import jax
import jax.numpy as jnp

from abi_jax.model.int8 import Int8

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


@dataclass(frozen=True)
class Block:
    """Pages side by side: as `Past`, and k and v may be codes."""

    k: jax.Array | Int8
    v: jax.Array | Int8
    sight: Sight
    features: jax.Array | None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedPast:
    """What pages hold of the tokens before these: k, v `[N, K, W, d]`, W tokens a page, features `[N, F, W]`.

    Row `b` holds tokens 0 to `lengths[b]`, those of page `n` of it in page `table[b, n]`; roles int32 `[N, W]`.
    q_positions, q_segments, readable: as in `Sight`. group: so many rows in turn are one answer's, a token each, one
    after the other. ahead: the new tokens of `[B, T]` such queries, of which each sees those before it where pages will
    hold them.
    """

    k: jax.Array | Int8
    v: jax.Array | Int8
    table: jax.Array
    lengths: jax.Array
    q_positions: jax.Array
    q_segments: jax.Array
    roles: jax.Array | None = None
    readable: jax.Array | None = None
    features: jax.Array | None = None
    ahead: Block | None = None
    group: int = field(default=1, metadata={"static": True})

    @property
    def reach(self) -> jax.Array:
        """How many tokens the longest row holds, new ones that see each other here among them."""
        if self.ahead is None:
            return jnp.max(self.lengths)
        return jnp.max(self.lengths + _count(self.ahead))

    def block(self, n: jax.Array, width: int) -> Block:
        """Pages `n * width` to `(n + 1) * width` of every row, side by side."""
        ids = jax.lax.dynamic_slice_in_dim(self.table, n * width, width, axis=1)
        size = width * self.k.shape[2]
        positions = n * size + jnp.arange(size, dtype=jnp.int32)
        slots = jnp.broadcast_to(positions, (ids.shape[0], size))
        used = (slots < self.lengths[:, None]).astype(jnp.int32)
        roles = None if self.roles is None else _side_by_side(self.roles, ids, 1)
        sight = Sight(self.q_positions, slots, self.q_segments, used, roles, self.readable)
        features = None if self.features is None else _side_by_side(self.features, ids, 2)
        past = Block(_side_by_side(self.k, ids, 2), _side_by_side(self.v, ids, 2), sight, features)
        return past if self.ahead is None else _laid_over(past, self.ahead, slots - self.lengths[:, None])


def _count(new: Block) -> jax.Array:
    return jnp.sum(new.sight.k_segments > 0, axis=1, dtype=jnp.int32)


def _laid_over(past: Block, new: Block, at: jax.Array) -> Block:
    """`past` with the tokens `at` int32 `[B, S]` of `new` in their slots; where it is none of them, as it was."""
    there = (at >= 0) & (at < _count(new)[:, None])

    def lay(old: Any, new: Any, axis: int) -> Any:
        def one(old: jax.Array, new: jax.Array) -> jax.Array:
            shape = [1] * old.ndim
            shape[0], shape[axis] = at.shape
            picked = jnp.take_along_axis(new, jnp.clip(at, 0, new.shape[axis] - 1).reshape(shape), axis)
            return jnp.where(there.reshape(shape), picked, old)

        return jax.tree.map(one, old, new)

    roles = lay(past.sight.k_roles, new.sight.k_roles, 1)
    sight = replace(past.sight, k_segments=past.sight.k_segments | there, k_roles=roles)
    return Block(lay(past.k, new.k, 2), lay(past.v, new.v, 2), sight, lay(past.features, new.features, 2))


def _side_by_side(pool: Any, ids: jax.Array, axis: int) -> Any:
    """Pages `ids` `[B, n]` of a pool, joined along the axis of their tokens: `[B, ...]`."""
    if isinstance(pool, Int8):
        return Int8(_side_by_side(pool.codes, ids, axis), _side_by_side(pool.scales, ids, axis))
    if ids.shape[1] == 1:
        return pool[ids[:, 0]]
    found = jnp.moveaxis(pool[ids], 1, axis)
    return found.reshape(*found.shape[:axis], -1, *found.shape[axis + 2 :])
