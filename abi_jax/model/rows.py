"""Rows of the persona axis: more of them, or a few of them alone."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from abi_jax.errors import InputError
from abi_jax.model.bank import BANK
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import Tree, Weight, describe, initialize, map_weights
from abi_jax.sharding.rules import AxisRules


def widen(
    config: ModelConfig,
    params: Tree,
    capacity: int,
    key: jax.Array,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
) -> tuple[ModelConfig, Tree]:
    """Returns the model with `capacity` persona rows; the rows it has stay bit-identical."""
    if config.persona is None:
        raise InputError("the model has no personas to add rows to; expected one with a persona bank")
    if capacity < config.persona.capacity:
        raise InputError(f"capacity {capacity} is below the {config.persona.capacity} persona rows the model has")
    config = replace(config, persona=replace(config.persona, capacity=capacity))
    _, weights = describe(partial(Decoder, config))
    fresh = initialize({BANK: weights[BANK]}, key, mesh=mesh, rules=rules)

    def overlay(new: jax.Array, old: jax.Array) -> jax.Array:
        if new.shape == old.shape:
            return old
        return jax.lax.dynamic_update_slice(new, old.astype(new.dtype), [0] * new.ndim)

    return config, params | {BANK: jax.tree.map(overlay, fresh[BANK], params[BANK])}


def row_mask(weights: Tree, rows: list[int]) -> Tree:
    """Returns, per weight, f32 of broadcastable shape: 1 at the persona rows `rows`, 0 at all else.

    Multiplied into the updates it trains those personas alone, whatever they share with the others.
    """

    def mask(_: str, weight: Weight) -> jax.Array:
        if not weight.axes or weight.axes[0] != "persona":
            return jnp.zeros((1,) * len(weight.shape))
        picked = jnp.zeros(weight.shape[0]).at[jnp.asarray(rows)].set(1.0)
        return picked.reshape(-1, *(1,) * (len(weight.shape) - 1))

    return map_weights(mask, weights)
