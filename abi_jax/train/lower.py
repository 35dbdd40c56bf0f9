"""The training step of a model too large for this machine: traced and lowered, with nothing allocated."""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder, Remat
from abi_jax.model.weight import abstract, describe
from abi_jax.sharding.context import lowering_for, use
from abi_jax.sharding.mesh import MeshConfig, abstract_mesh
from abi_jax.sharding.rules import AxisRules
from abi_jax.train.objectives import BATCH_AXES
from abi_jax.train.step import Objective, TrainState, abstract_moments, make_step

Platform = Literal["cpu", "cuda", "tpu"]


@dataclass(frozen=True)
class LoweredStep:
    """A lowered step, and the bytes each device holds of its arguments.

    state_bytes: f32 weights and moments; batch_bytes: the token rows of one step.
    """

    lowered: jax.stages.Lowered
    state_bytes: int
    batch_bytes: int


def lower_step(
    config: ModelConfig,
    mesh: MeshConfig,
    devices: int,
    rows: int,
    length: int,
    *,
    platform: Platform = "tpu",
    remat: Remat = "full",
) -> LoweredStep:
    """Lowers a bf16 AdamW step on `rows` rows of `length` tokens for `devices` devices nobody has to have.

    With personas in `config`, their terms are part of the step. Raises `InputError` where the mesh does not
    divide the model.
    """
    grid, rules = abstract_mesh(mesh, devices), AxisRules()
    graphdef, weights = describe(partial(Decoder, config, dtype=jnp.bfloat16, remat=remat))
    params = abstract(weights, jnp.float32, grid, rules)
    optimizer = optax.adamw(1e-4)
    moments, whole = abstract_moments(params, optimizer)
    count: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
    state = TrainState(params, moments, count)

    def row(dtype: Any, *inner: int) -> jax.ShapeDtypeStruct:
        axes = (*BATCH_AXES, *(None,) * len(inner))
        return jax.ShapeDtypeStruct((rows, length, *inner), dtype, sharding=NamedSharding(grid, rules.spec(axes, grid)))

    batch = {name: row(jnp.int32) for name in ("tokens", "targets", "positions", "segments", "roles", "group")}
    batch["weights"] = row(jnp.float32)
    if config.persona is not None:
        batch["mixture"] = row(jnp.float32, config.persona.capacity)
    with use(grid, rules), lowering_for("gpu" if platform == "cuda" else platform):
        step: Any = make_step(Objective(graphdef, config.persona is not None, 1), optimizer)
        lowered = step.trace(state, None, batch).lower(lowering_platforms=(platform,))
    return LoweredStep(lowered, _bytes_per_device(state), _bytes_per_device(batch))


def _bytes_per_device(tree: Any) -> int:
    def held(x: Any) -> int:
        return int(x.dtype.itemsize * prod(x.sharding.shard_shape(x.shape)))

    return sum(held(x) for x in jax.tree.leaves(tree))
