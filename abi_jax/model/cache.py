"""The key-value cache: one fixed-shape buffer a layer, written in place when donated.

Slot `s` of a row holds the token at position `s`, so nothing but the row's length is needed to know what
a slot holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from abi_jax.model.attention_terms import Past, Sight
from abi_jax.model.config import ModelConfig
from abi_jax.model.persona import num_features


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """keys, values: `[B, K, S, d]` a layer; roles int32 `[B, S]`; features f32 `[B, F, S]`; lengths int32 `[B]`."""

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    roles: jax.Array
    features: jax.Array | None
    lengths: jax.Array

    @property
    def size(self) -> int:
        """Number of slots a row, `S`."""
        return self.roles.shape[1]

    def past(self, layer: int, sight: Sight, marks: bool) -> Past:
        """What a layer's new tokens, which see each other by `sight`, see here; `marks`: with the features."""
        slots = jnp.broadcast_to(jnp.arange(self.size, dtype=jnp.int32), self.roles.shape)
        used = (slots < self.lengths[:, None]).astype(jnp.int32)
        roles = None if sight.readable is None else self.roles
        seen = Sight(sight.q_positions, slots, sight.q_segments, used, roles, sight.readable)
        return Past(self.keys[layer], self.values[layer], seen, self.features if marks else None)

    def extended(
        self,
        kept: Sequence[tuple[jax.Array, jax.Array]],
        roles: jax.Array,
        features: jax.Array | None,
        starts: jax.Array,
        lengths: jax.Array,
    ) -> "Cache":
        """The cache with T more tokens a row, from slot `starts[b]`.

        kept: keys and values `[B, K, T, d]` a layer; roles `[B, T]`; features `[B, F, T]`; lengths `[B]`: the new ones.
        """
        return Cache(
            keys=tuple(write(old, new, starts, 2) for old, (new, _) in zip(self.keys, kept, strict=True)),
            values=tuple(write(old, new, starts, 2) for old, (_, new) in zip(self.values, kept, strict=True)),
            roles=write(self.roles, roles, starts, 1),
            features=None if self.features is None or features is None else write(self.features, features, starts, 2),
            lengths=lengths,
        )


def new_cache(config: ModelConfig, batch: int, size: int, dtype: DTypeLike = jnp.float32) -> Cache:
    """Returns an empty cache of `size` slots for `batch` rows."""
    shape = (batch, config.num_kv_heads, size, config.head_dim)
    persona = config.persona
    return Cache(
        keys=tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)),
        values=tuple(jnp.zeros(shape, dtype) for _ in range(config.num_layers)),
        roles=jnp.zeros((batch, size), jnp.int32),
        features=jnp.zeros((batch, num_features(persona), size), jnp.float32) if persona and persona.mask else None,
        lengths=jnp.zeros((batch,), jnp.int32),
    )


def write(buffer: jax.Array, new: jax.Array, starts: jax.Array, axis: int) -> jax.Array:
    """Writes `new` into `buffer` along the slot `axis`, row `b` from slot `starts[b]`.

    One update a row: XLA's CPU backend does each in place, where a batched scatter becomes a loop.
    """
    for row in range(buffer.shape[0]):
        index = [jnp.int32(0)] * buffer.ndim
        index[0], index[axis] = jnp.int32(row), starts[row]
        buffer = jax.lax.dynamic_update_slice(buffer, new[row : row + 1].astype(buffer.dtype), index)
    return buffer


def after(starts: jax.Array, x: jax.Array) -> jax.Array:
    """Returns `starts` `[B]`, but not before `x` `[B, T, D]` is known.

    A buffer that is read, then written must be known to be so: where nothing orders the two, XLA's CPU backend
    copies the whole buffer rather than write in place.
    """
    return starts + jnp.minimum(jnp.isnan(x[:, 0, 0]).astype(starts.dtype), 0)


def grow(cache: Cache, size: int) -> Cache:
    """Returns the cache with `size` slots a row; the contents stay."""
    more = size - cache.size
    slots = [(0, 0), (0, 0), (0, more), (0, 0)]
    return replace(
        cache,
        keys=tuple(jnp.pad(x, slots) for x in cache.keys),
        values=tuple(jnp.pad(x, slots) for x in cache.values),
        roles=jnp.pad(cache.roles, [(0, 0), (0, more)]),
        features=None if cache.features is None else jnp.pad(cache.features, [(0, 0), (0, 0), (0, more)]),
    )
