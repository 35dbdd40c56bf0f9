"""A key-value cache of pages: rows of any length share one pool, and may share pages (arXiv:2309.06180).

Page `n` of a row holds its tokens from `n * W`; a table says where it lies in the pool. Page 0 of the pool belongs to
nobody: what is written for rows that are not there, or beyond a row's end, goes to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from abi_jax.model.attention_terms import PagedPast, Sight
from abi_jax.model.config import ModelConfig
from abi_jax.model.int8 import Int8, encode
from abi_jax.model.persona import num_features
from abi_jax.sharding.context import constrain

NOBODYS = 0  # the page that no row has


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pages:
    """N pages of W tokens: keys, values `[N, K, W, d]` a layer; roles int32 `[N, W]`; features f32 `[N, F, W]`.

    Keys and values may be codes, with a scale for each token and head.
    """

    keys: tuple[jax.Array | Int8, ...]
    values: tuple[jax.Array | Int8, ...]
    roles: jax.Array
    features: jax.Array | None

    @property
    def size(self) -> int:
        """Tokens a page, `W`."""
        return self.roles.shape[1]


def new_pages(config: ModelConfig, count: int, size: int, dtype: DTypeLike = jnp.float32) -> Pages:
    """Returns `count` empty pages of `size` tokens, their heads laid out over the current mesh; int8: of codes."""
    shape = (count, config.num_kv_heads, size, config.head_dim)
    persona = config.persona
    marked = persona is not None and persona.mask
    axes = (None, "kv_heads", None, None)

    def empty() -> jax.Array | Int8:
        pool = constrain(jnp.zeros(shape, dtype), axes)
        if pool.dtype != jnp.int8:
            return pool
        return Int8(pool, constrain(jnp.zeros(shape[:-1], jnp.float32), axes[:-1]))

    return Pages(
        keys=tuple(empty() for _ in range(config.num_layers)),
        values=tuple(empty() for _ in range(config.num_layers)),
        roles=jnp.zeros((count, size), jnp.int32),
        features=jnp.zeros((count, num_features(persona), size), jnp.float32) if persona and marked else None,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedCache:
    """Rows of a pool: table int32 `[B, M]` of their pages, lengths int32 `[B]`. A drop-in for `cache.Cache`.

    group: so many rows in turn are one answer's: they have its pages, and each is a new token of it, one position
    further than the last.
    """

    pages: Pages
    table: jax.Array
    lengths: jax.Array
    group: int = field(default=1, metadata={"static": True})

    def past(self, layer: int, sight: Sight, marks: bool) -> PagedPast:
        """What a layer's new tokens, which see each other by `sight`, see here; `marks`: with the features."""
        pages = self.pages
        return PagedPast(
            pages.keys[layer],
            pages.values[layer],
            self.table,
            self.lengths,
            sight.q_positions,
            sight.q_segments,
            None if sight.readable is None else pages.roles,
            sight.readable,
            pages.features if marks else None,
            group=self.group,
        )

    def extended(
        self,
        kept: Sequence[tuple[jax.Array, jax.Array]],
        roles: jax.Array,
        features: jax.Array | None,
        starts: jax.Array,
        lengths: jax.Array,
    ) -> "PagedCache":
        """The rows with T more tokens from `starts[b]`: one token, or as many as there are from a page's beginning.

        kept: keys and values `[B, K, T, d]` a layer; roles `[B, T]`; features `[B, F, T]`; lengths `[B]`: the new ones.
        """
        old, table = self.pages, self.table
        features = None if old.features is None or features is None else put(old.features, features, table, starts, 2)
        pages = Pages(
            keys=tuple(put(x, k, table, starts, 2) for x, (k, _) in zip(old.keys, kept, strict=True)),
            values=tuple(put(x, v, table, starts, 2) for x, (_, v) in zip(old.values, kept, strict=True)),
            roles=put(old.roles, roles, table, starts, 1),
            features=features,
        )
        return PagedCache(pages, table, lengths, self.group)


def as_kept(x: jax.Array, pool: Any) -> Any:
    """What pages of `pool`, an array or codes, have of `x`."""
    return encode(_finite(x)) if isinstance(pool, Int8) else _finite(x.astype(pool.dtype))


def put(pool: Any, new: jax.Array, table: jax.Array, starts: jax.Array, axis: int) -> Any:
    """Writes `new` `[B, ...]` into the rows' pages along the token `axis`, row `b` from its token `starts[b]`.

    Page by page, in place, as `cache.write` does it. More than one token must begin where a page does. pool: an array,
    or codes, which `new` then becomes.
    """
    if isinstance(pool, Int8):
        made = as_kept(new, pool)
        codes = put(pool.codes, made.codes, table, starts, axis)
        return Int8(codes, put(pool.scales, made.scales, table, starts, axis))
    size = pool.shape[axis]
    for row in range(new.shape[0]):
        for at in range(0, new.shape[axis], size):
            piece = jax.lax.slice_in_dim(new[row : row + 1], at, min(at + size, new.shape[axis]), axis=axis)
            start = starts[row] + at
            index = [jnp.int32(0)] * pool.ndim
            index[0], index[axis] = table[row, start // size], start % size
            pool = jax.lax.dynamic_update_slice(pool, as_kept(piece, pool), index)
    return pool


def _finite(x: jax.Array) -> jax.Array:
    """A page is read whole, what is not yet or no more its row's with a weight of zero: it must be finite."""
    return jnp.nan_to_num(x)
