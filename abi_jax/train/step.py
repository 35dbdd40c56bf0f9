"""One training step: a pure function over parameter trees, compiled once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from abi_jax.errors import InputError
from abi_jax.model.weight import merge
from abi_jax.sharding.context import everywhere
from abi_jax.sharding.mesh import describe
from abi_jax.sharding.rules import AxisRules
from abi_jax.train.objectives import Arrays, group_sums, inputs_of, token_losses, weighted_mean
from abi_jax.train.trees import Tree, join

BATCH_AXES = ("batch", "length")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes: the trained weights, the optimizer's state, and the step number (int32)."""

    params: Tree
    optimizer: Any
    step: jax.Array


@dataclass(frozen=True)
class Objective:
    """What is trained on a batch. `groups`: how many values the batch's `group` index takes."""

    graphdef: nnx.GraphDef
    persona: bool
    groups: int
    reads: np.ndarray | None = None
    strict: np.ndarray | None = None

    def losses(self, trained: Tree, frozen: Tree, batch: Arrays) -> jax.Array:
        """Loss of every token, f32 `[B, T]`."""
        model = merge(self.graphdef, join(trained, frozen))
        return token_losses(model, inputs_of(batch, self.persona, self.reads, self.strict), batch["targets"])


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, allowed: Tree | None = None
) -> Callable[[TrainState, Tree, Arrays], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the compiled step `(state, frozen, batch) -> (state, metrics)`; `state` is donated.

    `allowed`, shaped to broadcast over the trained weights, is 0 where a weight must not move: its gradient does
    not count towards the norm either, and weight decay leaves it alone.
    """

    def step(state: TrainState, frozen: Tree, batch: Arrays) -> tuple[TrainState, dict[str, jax.Array]]:
        def loss_of(trained: Tree) -> tuple[jax.Array, jax.Array]:
            losses = objective.losses(trained, frozen, batch)
            return weighted_mean(losses, batch["weights"]), losses

        (loss, losses), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        if allowed is not None:
            gradients = jax.tree.map(lambda may, g: may * g, allowed, gradients)
        updates, inner = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        if allowed is not None:
            params = jax.tree.map(lambda may, new, old: jnp.where(may > 0, new, old), allowed, params, state.params)
        sums, counts = group_sums(losses, batch["weights"], batch["group"], objective.groups)
        metrics = {
            "loss": loss,
            # apart: shared with the optimizer's second moment, every squared gradient would be written to memory
            "gradient_norm": optax.tree.norm(jax.lax.optimization_barrier(gradients)),
            "group_loss": sums,
            "group_tokens": counts,
        }
        return TrainState(params, inner, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def make_evaluation(objective: Objective) -> Callable[[Tree, Tree, Arrays], tuple[jax.Array, jax.Array]]:
    """Returns compiled `(trained, frozen, batch) -> (loss sums, token counts)` by group, f32 `[groups]`."""

    def evaluate(trained: Tree, frozen: Tree, batch: Arrays) -> tuple[jax.Array, jax.Array]:
        losses = objective.losses(trained, frozen, batch)
        return group_sums(losses, batch["weights"], batch["group"], objective.groups)

    return jax.jit(evaluate)


def abstract_moments(params: Tree, optimizer: optax.GradientTransformation) -> tuple[Any, jax.sharding.Sharding]:
    """The optimizer's state as `jax.ShapeDtypeStruct`, moments laid out like their weights; and a scalar's sharding.

    `params` are arrays or `jax.ShapeDtypeStruct` with shardings.
    """
    whole = everywhere(jax.tree.leaves(params)[0])

    def like(moment: jax.ShapeDtypeStruct, param: jax.Array) -> jax.sharding.Sharding:
        return param.sharding if moment.shape == param.shape else whole

    state = jax.eval_shape(optimizer.init, params)
    places = optax.tree_utils.tree_map_params(optimizer, like, state, params, transform_non_params=lambda _: whole)
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), state, places), whole


def initial_state(params: Tree, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns step 0; the optimizer's moments are sharded like the weights they belong to."""
    moments, whole = abstract_moments(params, optimizer)
    out = jax.tree.map(lambda x: x.sharding, moments)
    return TrainState(params, jax.jit(optimizer.init, out_shardings=out)(params), jax.device_put(jnp.int32(0), whole))


def batch_share(batch_size: int, mesh: Mesh, rules: AxisRules) -> tuple[int, int]:
    """Which rows of a global batch this process feeds to its devices: part `index` of `count` equal parts.

    Processes that hold the same rows, because the mesh splits something else between them, have the same part.
    """
    rows = NamedSharding(mesh, rules.spec(BATCH_AXES[:1], mesh))
    held: dict[int, set[int]] = {}
    places: Any = rows.devices_indices_map((batch_size,))
    for device, (part,) in places.items():
        held.setdefault(device.process_index, set()).update(range(batch_size)[part])
    parts = sorted({tuple(sorted(mine)) for mine in held.values()})
    if sum(map(len, parts)) != batch_size:
        raise InputError(
            f"{len(held)} processes on {describe(mesh)}: their rows of a batch overlap in part; "
            "expected a mesh that gives two processes the same rows or no row in common"
        )
    return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def place_batch(batch: dict[str, np.ndarray], mesh: Mesh, rules: AxisRules, rows: int) -> Arrays:
    """Puts this process's share of a batch of `rows` on the mesh: rows over data axes, tokens over sequence."""

    def put(x: np.ndarray) -> jax.Array:
        axes = (*BATCH_AXES, *(None,) * (x.ndim - 2))
        placed = NamedSharding(mesh, rules.spec(axes, mesh))
        return jax.make_array_from_process_local_data(placed, x, (rows, *x.shape[1:]))

    return {name: put(x) for name, x in batch.items()}
