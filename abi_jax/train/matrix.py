"""The persona x data-set perplexity matrix: how well each voice predicts each kind of answer."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import jax
import numpy as np

from abi_jax.persona import mixture_name, mixture_vector
from abi_jax.train.feed import feed, open_batches
from abi_jax.train.setup import Run
from abi_jax.train.step import make_evaluation
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
        first = max(10, *(len(name) + 1 for name in self.voices))
        lines = ["".ljust(first) + "".join(name.rjust(width) for name in self.datasets)]
        best = np.argmin(self.values, axis=0)
        for i, voice in enumerate(self.voices):
            cells = (f"{self.values[i, j]:.2f}{'*' if best[j] == i else ' '}" for j in range(len(self.datasets)))
            lines.append(voice.ljust(first) + "".join(cell.rjust(width) for cell in cells))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Voice -> data set -> perplexity."""
        rows = zip(self.voices, self.values.tolist(), strict=True)
        return {voice: dict(zip(self.datasets, row, strict=True)) for voice, row in rows}


class MatrixMeter:
    """Measures the base model, every persona and every mixture in the data on the responses of every data set.

    On those held out, on `limit` batches if given; with `seen`, on those of training, as many as `SEEN_BATCHES` hold. A
    voice speaks exactly where the record's own persona would. Used under the run's mesh; the data stay open until
    `close`.
    """

    def __init__(self, run: Run, seen: bool = False, limit: int | None = None) -> None:
        self._run, self._limit = run, SEEN_BATCHES if seen else limit
        self._batches = open_batches(run, "train" if seen else "held_out", group_by="dataset")
        names = [p.name for p in run.personas]
        spoken: list[Mapping[str, float]] = [{}, *({name: 1.0} for name in names), *self._batches.mixtures]
        self._voices = {mixture_name(mixture): mixture_vector(mixture, names) for mixture in spoken}
        self._base: np.ndarray | None = None
        self._evaluate = make_evaluation(run.objective(len(self._batches.groups)), run.config.accumulate)

    def __call__(self, trained: Tree, frozen: Tree) -> Matrix:
        """Measures these weights. A frozen backbone's own row is measured at the first call only."""
        self._batches.restart()
        sums = np.zeros((len(self._voices), len(self._batches.groups)))
        counts = np.zeros(len(self._batches.groups))
        voices = list(enumerate(self._voices.values()))
        if self._base is not None:
            sums[0], voices = self._base, voices[1:]
        for batch in islice(self._batches, self._limit):
            for i, w in voices:
                loss, tokens = self._evaluate(trained, frozen, _spoken_by(self._run, batch, w))
                sums[i] += np.asarray(loss)
            counts += np.asarray(tokens)
        if self._run.persona_mode and self._run.config.freeze_backbone:
            self._base = sums[0]
        measured = counts > 0
        datasets = tuple(name for name, any_tokens in zip(self._batches.groups, measured, strict=True) if any_tokens)
        return Matrix(tuple(self._voices), datasets, np.exp(sums[:, measured] / counts[measured]))

    def close(self) -> None:
        """Closes the data."""
        self._batches.close()


def perplexity_matrix(run: Run, trained: Tree, frozen: Tree, seen: bool = False) -> Matrix:
    """Measures once; see `MatrixMeter`."""
    with closing(MatrixMeter(run, seen)) as measure:
        return measure(trained, frozen)


def _spoken_by(run: Run, batch: dict[str, np.ndarray], w: np.ndarray) -> dict[str, jax.Array]:
    mixture = w * batch["active"][..., None]
    return feed(run, {**batch, "mixture": mixture.astype(np.float32)})
