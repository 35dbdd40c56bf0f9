"""The rows that score best for some words, exactly, without looking at every row that has a frequent word.

Words are added up from the most telling one on. As soon as all that are left could not lift a row that has none of the
first ones among the best, only rows that can still be among them are looked up in the rest (MaxScore: Turtle and Flood,
Query Evaluation: Strategies and Optimizations, 1995). What a row is told to score is then added up anew in the order
of the words, so that it does not depend on where the row lies and what else is there.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from abi_jax.wdbx.search.found import Best, Found, found_of
from abi_jax.wdbx.text.bm25 import Bm25
from abi_jax.wdbx.text.postings import Postings

SLACK = 1e-9  # relative: sums of the same scores in another order differ by far less
FREQUENT = 64  # a word is that one row in so many has: before it, it is worth to see whether it can be spared
LOOK_UP = 8  # times longer than adding a row up takes looking one up


@dataclass(frozen=True)
class PartWords:
    """Words of a field in the rows of a segment or a tail.

    pieces: first row and postings of each; they may go beyond the rows. alive: which rows there are, bool `[n]`.
    """

    pieces: Sequence[tuple[int, Postings]]
    alive: np.ndarray

    @cached_property
    def lengths(self) -> np.ndarray:
        """Words of each text, int32 `[n]`; -1 where it is null."""
        listed = [postings.lengths for _, postings in self.pieces]
        whole = listed[0] if len(listed) == 1 else np.concatenate([np.zeros(0, np.int32), *listed])
        return whole[: len(self.alive)]

    def penalties(self, settings: Bm25, mean: float) -> np.ndarray:
        """What texts pay for their lengths, float64 `[n]`."""
        if len(self.pieces) == 1:
            return self.pieces[0][1].penalties(settings, mean)[: len(self.alive)]
        return settings.penalties(self.lengths, mean)

    @cached_property
    def all_alive(self) -> bool:
        """Whether all rows are there."""
        return bool(self.alive.all())

    def size(self) -> tuple[int, int]:
        """Texts and words of the rows that there are."""
        if self.all_alive and len(self.pieces) == 1 and len(self.pieces[0][1].lengths) == len(self.alive):
            return self.pieces[0][1].documents, self.pieces[0][1].words
        lengths = self.lengths[self.alive]
        return int(np.count_nonzero(lengths >= 0)), int(lengths[lengths > 0].sum(dtype=np.int64))

    def of(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have a word, ascending, alive or not, int32, and how often, int32."""
        found = [(start, *postings.of(word)) for start, postings in self.pieces]
        if len(found) == 1 and found[0][0] == 0:
            _, rows, counts = found[0]
        else:
            rows = np.concatenate([np.zeros(0, np.int32), *(rows + np.int32(start) for start, rows, _ in found)])
            counts = np.concatenate([np.zeros(0, np.int32), *(counts for _, _, counts in found)])
        if len(rows) and rows[-1] >= len(self.alive):
            end = int(np.searchsorted(rows, np.int32(len(self.alive))))
            return rows[:end], counts[:end]
        return rows, counts

    def alive_of(self, rows: np.ndarray) -> int:
        """How many of some rows there are."""
        return len(rows) if self.all_alive else int(np.count_nonzero(self.alive[rows]))


@dataclass(frozen=True)
class _Term:
    """A word in a field: its worth, where it is in every part, what texts pay there, and the most that it adds."""

    weight: float
    found: Sequence[tuple[np.ndarray, np.ndarray]]
    penalties: Sequence[np.ndarray]
    bound: float

    @property
    def rows(self) -> int:
        return sum(len(rows) for rows, _ in self.found)

    def scores(self, part: int, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """What it adds to rows of a part that have it so often."""
        return np.asarray(self.weight * (counts / (counts + self.penalties[part][rows])))

    def look_up(self, part: int, rows: np.ndarray) -> np.ndarray:
        """What it adds to rows of a part that may have it or not, float64; rows: int32."""
        having, counts = self.found[part]
        made = np.zeros(len(rows))
        if len(having):
            at = np.minimum(np.searchsorted(having, rows), len(having) - 1)
            has = having[at] == rows
            made[has] = self.scores(part, rows[has], counts[at[has]])
        return made


def _terms(fields: Sequence[Sequence[PartWords]], words: Sequence[str], settings: Bm25) -> Iterator[_Term]:
    for parts in fields:
        sizes = [each.size() for each in parts]
        documents = sum(texts for texts, _ in sizes)
        mean = sum(length for _, length in sizes) / max(documents, 1)
        penalties = [each.penalties(settings, mean) for each in parts] if mean else []
        for word, times in Counter(words).items():
            found = [each.of(word) for each in parts]
            having = sum(each.alive_of(rows) for each, (rows, _) in zip(parts, found, strict=True))
            if having:
                weight = times * settings.weight(documents, having)
                most = max(int(counts.max(initial=0)) for _, counts in found)
                bound = weight * most / (most + float(settings.penalties(np.array(most), mean)))
                yield _Term(weight, found, penalties, bound)


@dataclass(frozen=True)
class _Near:
    """Rows of a part that may still be among the best, int32, and what they score so far."""

    rows: np.ndarray
    scores: np.ndarray


def rank(
    fields: Sequence[Sequence[PartWords]],
    words: Sequence[str],
    settings: Bm25,
    allowed: Sequence[np.ndarray],
    top_k: int,
) -> Found:
    """The best rows for words, and those that tie with the last of them.

    fields: of each its words in every part; scores of several fields are added. allowed: of every part the rows that
    may be found, bool `[n]`: among those that are alive.
    """
    terms = list(_terms(fields, words, settings))
    found = []
    for part, near in enumerate(_nearest(terms, allowed, top_k)):
        added = np.array([term.look_up(part, near.rows) for term in terms]).reshape(len(terms), len(near.rows))
        exact = np.sort(added, axis=0).sum(axis=0)  # the same parts make the same sum, whichever words they are of
        found.append((np.full(len(near.rows), part), near.rows.astype(np.int64), exact))
    parts, rows, scores = (np.concatenate(each) for each in zip(*found, strict=True))
    best = scores >= _floor([scores], top_k)
    order = np.argsort(-scores[best], kind="stable")
    kept = Best(*(each[best][order] for each in (parts, rows, scores)))
    return found_of([kept], [len(each) for each in allowed])


def _nearest(terms: Sequence[_Term], allowed: Sequence[np.ndarray], top_k: int) -> list[_Near]:
    """Of every part the rows that are among the best, and few others."""
    rest = sum(term.bound for term in terms)
    added = 0.0
    totals = [np.zeros(len(each)) for each in allowed]
    near: list[_Near] | None = None
    for term in sorted(terms, key=lambda each: -each.bound):
        if near is None and added > rest and term.rows > sum(map(len, totals)) / FREQUENT:
            touched = [_touched(*each) for each in zip(totals, allowed, strict=True)]
            floor = _floor([each.scores for each in touched], top_k)
            pruned = _prune(touched, floor - rest * (1 + SLACK))
            if floor > rest * (1 + SLACK) and LOOK_UP * sum(len(each.rows) for each in pruned) < term.rows:
                near = pruned
        rest, added = max(rest - term.bound, 0.0), added + term.bound
        if near is None:
            for part, (rows, counts) in enumerate(term.found):
                totals[part][rows] += term.scores(part, rows, counts)
        else:
            near = [_Near(each.rows, each.scores + term.look_up(i, each.rows)) for i, each in enumerate(near)]
            near = _prune(near, _floor([each.scores for each in near], top_k) - rest * (1 + SLACK))
    if near is None:
        near = [_touched(*each) for each in zip(totals, allowed, strict=True)]
    return _prune(near, _floor([each.scores for each in near], top_k))


def _touched(total: np.ndarray, allowed: np.ndarray) -> _Near:
    rows = np.flatnonzero((total > 0) & allowed).astype(np.int32)
    return _Near(rows, total[rows])


def _prune(near: Sequence[_Near], floor: float) -> list[_Near]:
    """Without rows that score less, by more than sums in another order differ."""
    kept = [each.scores >= floor - SLACK * abs(floor) for each in near]
    return [_Near(each.rows[some], each.scores[some]) for each, some in zip(near, kept, strict=True)]


def _floor(values: Sequence[np.ndarray], top_k: int) -> float:
    """The score of the `top_k`th, 0 where there are fewer."""
    joined = np.concatenate(values)
    return float(np.partition(joined, len(joined) - top_k)[len(joined) - top_k]) if len(joined) >= top_k else 0.0
