"""Numbers as int8, each row of them with a scale of its own: a quarter of the bytes of f32, half of those of bf16.

    x[i]  is about  scales * codes[i],    scales = max |x| / 127,    codes = round(x / scales)

Symmetric, so that zero is zero, and a product with x is that with the codes, scaled afterwards. A scale is that of
one output of a matrix, or of one token's key or value in one head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from abi_jax.model.weight import Tree, is_weight, path_name
from abi_jax.sharding.context import constrain

TOP = 127


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """What stands in the place of an array `[..., n]`: codes int8 `[..., n]`, scales f32 `[...]`."""

    codes: Any
    scales: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's."""
        shape: tuple[int, ...] = self.codes.shape
        return shape


def encode(x: jax.Array) -> Int8:
    """The codes of x `[..., n]`. A row that is not finite has a scale that is not."""
    x = x.astype(jnp.float32)
    scales = jnp.max(jnp.abs(x), axis=-1) / TOP
    # below that, what the compiler may make of a division is not finite
    divisors = jnp.where(scales < jnp.finfo(jnp.float32).tiny, 1, scales)
    return Int8(jnp.round(x / divisors[..., None]).astype(jnp.int8), scales)


def is_coded(path: str) -> bool:
    """Whether a decoder's weight becomes an `Int8`: the backbone's matrices; what personas own is small."""
    return path == "embedding" or (path.endswith(".kernel") and not path.startswith("persona."))


def encode_weights(params: Tree) -> Tree:
    """The weights of a decoder with `Int8` for those that `is_coded`, shard by shard where they are.

    Of a tree of descriptions: the tree that these would have.
    """

    def made(path: tuple[Any, ...], x: Any) -> Any:
        if not is_coded(path_name(path)):
            return x
        return Int8(x, x) if is_weight(x) else _encoder(jnp.asarray(x).sharding)(x)

    return jax.tree_util.tree_map_with_path(made, params, is_leaf=is_weight)


@cache
def _encoder(sharding: Sharding) -> Callable[[jax.Array], Int8]:
    """What makes an `Int8` of a matrix of this sharding: codes lie as it does, each scale with its row."""
    out = None
    if isinstance(sharding, NamedSharding):
        rows = sharding.spec[0] if len(sharding.spec) else None
        out = Int8(sharding, NamedSharding(sharding.mesh, PartitionSpec(rows)))
    return jax.jit(encode, out_shardings=out)


def look_up(table: jax.Array | Int8, ids: jax.Array) -> jax.Array:
    """Rows `[..., D]` of a table `[N, D]`."""
    # gathered along the features first: a lookup in a table that is split there is laid out as the table
    # is, and the compiler then copies all of it to every device
    if isinstance(table, Int8):
        codes = constrain(table.codes, ("vocab", None))[ids].astype(jnp.float32)
        return codes * table.scales[ids][..., None]
    return constrain(table, ("vocab", None))[ids]
