"""What a search found: rows and their exact scores, best first, of every query."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Best:
    """The best rows of one query: part, row in it, and exact score, best first."""

    parts: np.ndarray
    rows: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Found:
    """The best rows of each query, best first; those that tie with the last one are all there.

    rows: int64 `[B, W]`, counted through all parts, those of part p from `bases[p]` on. scores: `[B, W]`. counts: int64
    `[B]`, how many there are of a query. tied: bool `[B]`, whether two of them score the same. bases: int64 `[P + 1]`.
    ids: int64 `[B, W]`, where a search knows them.
    """

    rows: np.ndarray
    scores: np.ndarray
    counts: np.ndarray
    tied: np.ndarray
    bases: np.ndarray
    ids: np.ndarray | None = None

    def each(self) -> list[Best]:
        """What was found, one query after the other."""
        made = []
        for rows, scores, count in zip(self.rows, self.scores, self.counts.tolist(), strict=True):
            parts = np.searchsorted(self.bases, rows[:count], "right") - 1
            made.append(Best(parts, rows[:count] - self.bases[parts], scores[:count]))
        return made

    def replaced(self, which: np.ndarray, others: "Found") -> "Found":
        """The same with what another search of the same parts found for queries `which`, int64."""
        width = max(self.rows.shape[1], others.rows.shape[1])
        rows = np.zeros((len(self.rows), width), np.int64)
        scores = np.zeros(rows.shape, self.scores.dtype)
        counts, tied = self.counts.copy(), self.tied.copy()
        rows[:, : self.rows.shape[1]], scores[:, : self.rows.shape[1]] = self.rows, self.scores
        rows[which, : others.rows.shape[1]], scores[which, : others.rows.shape[1]] = others.rows, others.scores
        counts[which], tied[which] = others.counts, others.tied
        return Found(rows, scores, counts, tied, self.bases)

    @property
    def there(self) -> np.ndarray:
        """Which of them are rows, bool `[B, W]`."""
        return np.arange(self.rows.shape[1]) < self.counts[:, None]

    @property
    def only(self) -> int | None:
        """The part that has all rows, if there is one."""
        bases = self.bases.tolist()
        for part, base in enumerate(bases[1:]):
            if base:
                return part if base == bases[-1] else None
        return None


@lru_cache(64)
def bases_of(*sizes: int) -> np.ndarray:
    """Where the rows of parts of such sizes begin, and end, when they are counted through: int64 `[P + 1]`."""
    made = np.cumsum([0, *sizes], dtype=np.int64)
    made.setflags(write=False)
    return made


def found_of(every: Sequence[Best], sizes: Sequence[int]) -> Found:
    """The best of each query, together. sizes: of parts."""
    counts = np.array([len(each.rows) for each in every], np.int64)
    shape = (len(every), int(counts.max(initial=0)))
    bases, tied = bases_of(*sizes), np.zeros(len(every), bool)
    rows, scores = np.zeros(shape, np.int64), np.zeros(shape, every[0].scores.dtype if every else np.float32)
    for i, each in enumerate(every):
        rows[i, : len(each.rows)], scores[i, : len(each.rows)] = bases[each.parts] + each.rows, each.scores
        tied[i] = (each.scores[1:] == each.scores[:-1]).any()
    return Found(rows, scores, counts, tied, bases)


NONE_FOUND = found_of([], [])


def stacked(every: Sequence[Found]) -> Found:
    """What searches of the same parts found, one after the other."""
    if len(every) == 1:
        return every[0]
    counts, tied = (np.concatenate(each) for each in zip(*((each.counts, each.tied) for each in every), strict=True))
    named = [each.ids for each in every if each.ids is not None]
    ids = _beneath(named) if len(named) == len(every) else None
    return Found(
        _beneath([each.rows for each in every]),
        _beneath([each.scores for each in every]),
        counts,
        tied,
        every[0].bases,
        ids,
    )


def _beneath(every: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays `[b, w]` one beneath the other, as wide as the widest."""
    width = max(each.shape[1] for each in every)
    if all(each.shape[1] == width for each in every):
        return np.concatenate(every)
    made = np.zeros((sum(len(each) for each in every), width), every[0].dtype)
    at = 0
    for each in every:
        made[at : at + len(each), : each.shape[1]] = each
        at += len(each)
    return made
