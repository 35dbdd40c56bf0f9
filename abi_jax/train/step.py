"""One training step: a pure function over parameter trees, compiled once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from abi_jax.model.weight import merge
from abi_jax.sharding.context import constrain, everywhere
from abi_jax.train.objectives import BATCH_AXES, Arrays, group_sums, inputs_of, loss_gap, token_losses, weighted_mean
from abi_jax.train.trees import Tree, join

Sums = TypeVar("Sums")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """What a step changes: the trained weights, the optimizer's state, and the step number (int32)."""

    params: Tree
    optimizer: Any
    step: jax.Array


@dataclass(frozen=True)
class Objective:
    """What is trained on a batch: `L_prediction + bias_weight L_bias`.

    groups: how many values the batch's `group` index takes. attributes: how many groups the bias term compares, by the
    batch's `attribute` index.
    """

    graphdef: nnx.GraphDef
    persona: bool
    groups: int
    reads: np.ndarray | None = None
    strict: np.ndarray | None = None
    bias_weight: float = 0.0
    attributes: int = 0

    def losses(self, trained: Tree, frozen: Tree, batch: Arrays) -> jax.Array:
        """Loss of every token, f32 `[B, T]`."""
        model = merge(self.graphdef, join(trained, frozen))
        return token_losses(model, inputs_of(batch, self.persona, self.reads, self.strict), batch["targets"])

    def total(self, losses: jax.Array, batch: Arrays) -> jax.Array:
        """What is minimised, from the losses of all tokens."""
        loss = weighted_mean(losses, batch["weights"])
        if self.bias_weight:
            gap = loss_gap(losses, batch["weights"], batch["attribute"], self.attributes)
            loss += self.bias_weight * gap
        return loss

    def gradient(self, trained: Tree, frozen: Tree, batch: Arrays, parts: int = 1) -> tuple[jax.Array, Tree]:
        """Losses of all tokens `[B, T]` and the gradient of their total, computed in `parts` passes over rows.

        The gradient of the total by each token's loss is taken first, over the whole batch: with it the parts'
        gradients sum to that of the batch, whatever the total is. Where it depends on the losses themselves
        (`bias_weight`), they cost a forward pass of their own.
        """
        if parts == 1:

            def total_of(trained: Tree) -> tuple[jax.Array, jax.Array]:
                losses = self.losses(trained, frozen, batch)
                return self.total(losses, batch), losses

            gradient, losses = jax.grad(total_of, has_aux=True)(trained)
            return losses, gradient

        cut = {name: _parts(x, parts) for name, x in batch.items()}
        shape = cut["targets"].shape
        losses = jnp.zeros(shape)
        if self.bias_weight:
            losses = jax.lax.map(lambda part: self.losses(trained, frozen, part), cut)
        shares = _parts(jax.grad(self.total)(_whole(losses), batch), parts)

        def pass_over(sum_of: Tree, part: tuple[Arrays, jax.Array]) -> tuple[Tree, jax.Array]:
            def share_of(trained: Tree) -> tuple[jax.Array, jax.Array]:
                losses = self.losses(trained, frozen, part[0])
                return jnp.sum(losses * part[1]), losses

            gradient, losses = jax.grad(share_of, has_aux=True)(trained)
            return jax.tree.map(jnp.add, sum_of, gradient), losses

        gradient, losses = jax.lax.scan(pass_over, jax.tree.map(jnp.zeros_like, trained), (cut, shares))
        return _whole(losses), gradient


def _parts(x: jax.Array, parts: int) -> jax.Array:
    """`[B, ...]` to `[parts, B / parts, ...]`: row r goes to part r mod parts, so that every device keeps its rows."""
    cut = x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)
    return constrain(cut, (None, *BATCH_AXES, *(None,) * (x.ndim - 2)))


def _whole(x: jax.Array) -> jax.Array:
    """Undoes `_parts`."""
    whole = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
    return constrain(whole, (*BATCH_AXES, *(None,) * (x.ndim - 3)))


def make_step(
    objective: Objective, optimizer: optax.GradientTransformation, allowed: Tree | None = None, accumulate: int = 1
) -> Callable[[TrainState, Tree, Arrays], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the compiled step `(state, frozen, batch) -> (state, metrics)`; `state` is donated.

    `allowed`, shaped to broadcast over the trained weights, is 0 where a weight must not move: its gradient does
    not count towards the norm either, and weight decay leaves it alone. accumulate: passes that a batch is cut into,
    for memory; the gradient is the batch's.
    """

    def step(state: TrainState, frozen: Tree, batch: Arrays) -> tuple[TrainState, dict[str, jax.Array]]:
        losses, gradients = objective.gradient(state.params, frozen, batch, accumulate)
        if allowed is not None:
            gradients = jax.tree.map(lambda may, g: may * g, allowed, gradients)
        updates, inner = optimizer.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        if allowed is not None:
            params = jax.tree.map(lambda may, new, old: jnp.where(may > 0, new, old), allowed, params, state.params)
        sums, counts = group_sums(losses, batch["weights"], batch["group"], objective.groups)
        metrics = {
            "loss": weighted_mean(losses, batch["weights"]),
            # apart: shared with the optimizer's second moment, every squared gradient would be written to memory
            "gradient_norm": optax.tree.norm(jax.lax.optimization_barrier(gradients)),
            "group_loss": sums,
            "group_tokens": counts,
        }
        if objective.attributes:
            attribute = batch["attribute"]
            metrics["bias"] = loss_gap(losses, batch["weights"], attribute, objective.attributes)
            metrics["attribute_loss"], metrics["attribute_tokens"] = group_sums(
                losses, batch["weights"], attribute, objective.attributes + 1
            )
        return TrainState(params, inner, state.step + 1), metrics

    return jax.jit(step, donate_argnums=0)


def make_evaluation(
    objective: Objective, parts: int = 1
) -> Callable[[Tree, Tree, Arrays], tuple[jax.Array, jax.Array]]:
    """Returns compiled `(trained, frozen, batch) -> (loss sums, token counts)` by group, f32 `[groups]`."""

    def evaluate(trained: Tree, frozen: Tree, part: Arrays) -> tuple[jax.Array, jax.Array]:
        losses = objective.losses(trained, frozen, part)
        return group_sums(losses, part["weights"], part["group"], objective.groups)

    return summed(evaluate, parts)


def summed(measure: Callable[[Tree, Tree, Arrays], Sums], parts: int) -> Callable[[Tree, Tree, Arrays], Sums]:
    """Compiles a function of a batch whose results are sums over its rows, computed in `parts` passes, for memory."""

    def run(trained: Tree, frozen: Tree, batch: Arrays) -> Sums:
        if parts == 1:
            return measure(trained, frozen, batch)
        cut = {name: _parts(x, parts) for name, x in batch.items()}
        each = jax.lax.map(lambda part: measure(trained, frozen, part), cut)
        total: Sums = jax.tree.map(lambda x: jnp.sum(x, axis=0), each)
        return total

    return jax.jit(run)


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
