"""The persona x data-set perplexity matrix: how well each voice predicts each kind of answer."""

from dataclasses import dataclass
from itertools import islice

import jax
import numpy as np

from abi_jax.persona import BASE
from abi_jax.train.loop import open_batches, pad_personas
from abi_jax.train.setup import Run
from abi_jax.train.step import make_evaluation, place_batch
from abi_jax.train.trees import Tree

SEEN_BATCHES = 24


@dataclass(frozen=True)
class Matrix:
    """Perplexities `[voices, data sets]`: `values[i, j]` of data set j's responses, spoken by voice i."""

    voices: tuple[str, ...]
    datasets: tuple[str, ...]
    values: np.ndarray

    def table(self) -> str:
        """The matrix as text; a star marks the best voice for each data set."""
        width = max(10, *(len(name) + 2 for name in self.datasets))
        lines = ["".ljust(10) + "".join(name.rjust(width) for name in self.datasets)]
        best = np.argmin(self.values, axis=0)
        for i, voice in enumerate(self.voices):
            cells = (f"{self.values[i, j]:.2f}{'*' if best[j] == i else ' '}" for j in range(len(self.datasets)))
            lines.append(voice.ljust(10) + "".join(cell.rjust(width) for cell in cells))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Voice -> data set -> perplexity."""
        rows = zip(self.voices, self.values.tolist(), strict=True)
        return {voice: dict(zip(self.datasets, row, strict=True)) for voice, row in rows}


def perplexity_matrix(run: Run, trained: Tree, frozen: Tree, seen: bool = False) -> Matrix:
    """Measures the base model and every persona on the responses of every data set of a persona run.

    On those held out; with `seen`, on those of training, as many as `SEEN_BATCHES` hold. A voice speaks exactly
    where the record's own persona would. Runs under the run's mesh.
    """
    voices = (BASE, *(p.name for p in run.personas))
    with open_batches(run, "train" if seen else "held_out", group_by="dataset") as batches:
        evaluate = make_evaluation(run.objective(len(batches.groups)))
        sums = np.zeros((len(voices), len(batches.groups)))
        counts = np.zeros(len(batches.groups))
        for batch in islice(batches, SEEN_BATCHES if seen else None):
            for i, _ in enumerate(voices):
                loss, tokens = evaluate(trained, frozen, _spoken_by(run, batch, i - 1))
                sums[i] += np.asarray(loss)
            counts += np.asarray(tokens)
        measured = counts > 0
        names = tuple(name for name, any_tokens in zip(batches.groups, measured, strict=True) if any_tokens)
    return Matrix(voices, names, np.exp(sums[:, measured] / counts[measured]))


def _spoken_by(run: Run, batch: dict[str, np.ndarray], persona: int) -> dict[str, jax.Array]:
    assert run.model.persona is not None
    padded = pad_personas(batch, run.model.persona.capacity)
    acts = padded["active"]
    mixture = np.zeros_like(padded["mixture"])
    if persona >= 0:
        mixture[..., persona] = acts
    return place_batch({**padded, "mixture": mixture}, run.mesh, run.rules, run.config.data.batch_size)
