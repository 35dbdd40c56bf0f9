"""Evaluation in training: held-out loss of every persona, how well the model knows what it knows, and every voice on
every data set.
"""

from collections.abc import Callable
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from abi_jax.errors import InputError
from abi_jax.model.weight import merge
from abi_jax.train.feed import feed, open_batches
from abi_jax.train.matrix import MatrixMeter
from abi_jax.train.objectives import Arrays, cross_entropy, group_means, group_sums, inputs_of
from abi_jax.train.selection import check_metric
from abi_jax.train.setup import Run
from abi_jax.train.step import Objective, summed
from abi_jax.train.trees import Tree, join

BINS = 15


class Validation:
    """Measures weights on the held-out data of a run, under its mesh; the data stay open until it is left."""

    def __init__(self, run: Run) -> None:
        """Raises `InputError` where there is no held-out data, or no such metric as the run is to follow."""
        self._run, self._config = run, run.config.evaluation
        self._batches = open_batches(run, "held_out")
        check_metric(self._config.metric, self._batches.groups)
        self._measure = make_measure(run.objective(len(self._batches.groups)), run.config.accumulate)
        self._matrix = MatrixMeter(run, limit=self._config.batches or None) if self._config.matrix else None

    @property
    def data(self) -> str:
        """A digest of what is measured on."""
        digest: str = self._batches.get_state()["data"]
        return f"{digest[:16]} {self._config.batches}"

    def __call__(self, trained: Tree, frozen: Tree) -> dict[str, Any]:
        """Returns loss (nats a token), perplexity, accuracy, calibration error, loss by group, and the matrix.

        Raises `InputError` where no held-out token counts.
        """
        run, batches = self._run, self._batches
        batches.restart()
        sums: Any = None
        for batch in islice(batches, self._config.batches or None):
            found = jax.device_get(self._measure(trained, frozen, feed(run, batch)))
            found = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
            sums = found if sums is None else jax.tree.map(np.add, sums, found)
        losses, counts, bins = sums
        if not counts.sum():
            raise InputError("no token of the held-out data counts; expected answers there that a row has room for")
        loss = float(losses.sum() / counts.sum())
        measured: dict[str, Any] = {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "accuracy": float(bins[:, 2].sum() / bins[:, 0].sum()),
            "calibration_error": calibration_error(bins),
            "loss_by_group": group_means(batches.groups, losses, counts),
        }
        if self._matrix is not None:
            measured["matrix"] = self._matrix(trained, frozen).to_dict()
        return measured

    def rehearse(self, trained: Tree, frozen: Tree) -> None:
        """Compiles and runs one batch: what fails in an evaluation then fails before a run has anything to lose."""
        self._batches.restart()
        jax.block_until_ready(self._measure(trained, frozen, feed(self._run, next(self._batches))))

    def __enter__(self) -> "Validation":
        return self

    def __exit__(self, *exception: object) -> None:
        self._batches.close()
        if self._matrix is not None:
            self._matrix.close()


def make_measure(
    objective: Objective, parts: int = 1
) -> Callable[[Tree, Tree, Arrays], tuple[jax.Array, jax.Array, jax.Array]]:
    """Returns compiled `(trained, frozen, batch) -> (loss sums [groups], token counts [groups], bins [BINS, 3])`."""

    def measure(trained: Tree, frozen: Tree, part: Arrays) -> tuple[jax.Array, jax.Array, jax.Array]:
        model = merge(objective.graphdef, join(trained, frozen))
        logits = model(inputs_of(part, objective.persona, objective.reads, objective.strict))
        losses = cross_entropy(logits, part["targets"])
        sums, counts = group_sums(losses, part["weights"], part["group"], objective.groups)
        confidence = jnp.exp(jnp.max(logits, axis=-1) - jax.nn.logsumexp(logits, axis=-1))
        correct = jnp.argmax(logits, axis=-1) == part["targets"]
        return sums, counts, calibration_bins(confidence, correct, part["weights"] > 0)

    return summed(measure, parts)


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
