"""Evaluation in training: held-out loss of every persona, how well the model knows what it knows, and every voice on
every data set.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.model.weight import merge
from abi_jax.train.feed import open_batches, pad_personas, place_batch
from abi_jax.train.matrix import MatrixMeter
from abi_jax.train.objectives import Arrays, cross_entropy, group_sums, inputs_of
from abi_jax.train.setup import Run
from abi_jax.train.step import Objective
from abi_jax.train.trees import Tree, join

BINS = 15


class Validation:
    """Measures weights on the held-out data of a run, under its mesh; the data stay open until it is left."""

    def __init__(self, run: Run) -> None:
        self._run, self._config = run, run.config.evaluation
        self._batches = open_batches(run, "held_out")
        self._measure = make_measure(run.objective(len(self._batches.groups)))
        self._matrix = MatrixMeter(run) if self._config.matrix and run.persona_mode else None

    def __call__(self, trained: Tree, frozen: Tree) -> dict[str, Any]:
        """Returns loss (nats a token), perplexity, accuracy, calibration error, loss by group, and the matrix."""
        run, batches = self._run, self._batches
        batches.restart()
        capacity = run.model.persona.capacity if run.model.persona and run.persona_mode else len(run.personas)
        sums: Any = None
        for batch in islice(batches, self._config.batches or None):
            placed = place_batch(pad_personas(batch, capacity), run.mesh, run.rules, run.config.data.batch_size)
            found = jax.device_get(self._measure(trained, frozen, placed))
            found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        losses, counts, bins = sums
        loss = float(losses.sum() / counts.sum())
        by_group = zip(batches.groups, losses, counts, strict=True)
        measured: dict[str, Any] = {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "accuracy": float(bins[:, 2].sum() / bins[:, 0].sum()),
            "calibration_error": calibration_error(bins),
            "loss_by_group": {name: float(total / count) for name, total, count in by_group if count},
        }
        if self._matrix is not None:
            measured["matrix"] = self._matrix(trained, frozen).to_dict()
        return measured

    def __enter__(self) -> "Validation":
        return self

    def __exit__(self, *exception: object) -> None:
        self._batches.close()
        if self._matrix is not None:
            self._matrix.close()


def make_measure(objective: Objective) -> Callable[[Tree, Tree, Arrays], tuple[jax.Array, jax.Array, jax.Array]]:
    """Returns compiled `(trained, frozen, batch) -> (loss sums [groups], token counts [groups], bins [BINS, 3])`."""

    def measure(trained: Tree, frozen: Tree, batch: Arrays) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = merge(objective.graphdef, join(trained, frozen))
        logits = model(inputs_of(batch, objective.persona, objective.reads, objective.strict))
        losses = cross_entropy(logits, batch["targets"])
        sums, counts = group_sums(losses, batch["weights"], batch["group"], objective.groups)
        confidence = jnp.exp(jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1))
        correct = jnp.argmax(logits, axis=-1) == batch["targets"]
        return sums, counts, calibration_bins(confidence, correct, batch["weights"] > 0)

    return jax.jit(measure)


def calibration_bins(confidence: jax.Array, correct: jax.Array, counted: jax.Array) -> jax.Array:
    """Number of tokens, summed confidence and number right, in equal bins of confidence: f32 `[BINS, 3]`.

    All `[B, T]`: the probability of the likeliest token, whether it is the target, and whether the token counts.
    """
    bins = jnp.clip((confidence * BINS).astype(jnp.int32), 0, BINS - 1)
    member = jax.nn.one_hot(bins, BINS) * counted[..., None]
    values = jnp.stack([jnp.ones_like(confidence), confidence, correct.astype(jnp.float32)], axis=-1)
    return jnp.einsum("btn,btv->nv", member, values)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error (arXiv:1706.04599, equation 3) of `calibration_bins` summed over batches."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / max(bins[:, 0].sum(), 1.0))
