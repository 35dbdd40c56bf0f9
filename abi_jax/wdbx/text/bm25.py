"""BM25: what a row scores for the words of a query.

    score(d) = sum over words w of the query: idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / mean |d|))
    idf(w) = log(1 + (N - n + 0.5) / (n + 0.5))

Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, 3.4; with 1 added in the logarithm
as Lucene does, so that no word counts against a row. `N` rows have a text, `n` of them the word `w`; only rows are
counted that are alive at the version that is asked for, whatever a filter lets pass. A word that a query has twice
counts twice.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.text.postings import Postings


@dataclass(frozen=True)
class Bm25:
    """k1: how soon a word that is there more often stops to count, 0: at once. b: how much long texts pay, 0 to 1."""

    k1: float = 1.2
    b: float = 0.75

    def __post_init__(self) -> None:
        if not 0 <= self.k1 < float("inf"):
            raise InputError(f"k1 {self.k1!r}: expected a number from 0")
        if not 0 <= self.b <= 1:
            raise InputError(f"b {self.b!r}: expected a number from 0 to 1")


@dataclass(frozen=True)
class Piece:
    """Rows that have postings of their own. alive: which of them count, bool `[n]`; scores: added to, float64 `[n]`."""

    postings: Postings
    alive: np.ndarray
    scores: np.ndarray

    @cached_property
    def whole(self) -> bool:
        """Whether all rows count."""
        return bool(self.alive.all())

    def size(self) -> tuple[int, int]:
        """Texts and words of the rows that count."""
        if self.whole:
            return self.postings.documents, self.postings.words
        lengths = self.postings.lengths[self.alive]
        return int(np.count_nonzero(lengths >= 0)), int(lengths[lengths > 0].sum(dtype=np.int64))

    def of(self, word: str) -> tuple[np.ndarray, np.ndarray]:
        """Rows that count and have a word, and how often."""
        rows, counts = self.postings.of(word)
        if self.whole:
            return rows, counts
        kept = self.alive[rows]
        return rows[kept], counts[kept]


def add_scores(pieces: Sequence[Piece], words: Sequence[str], settings: Bm25) -> None:
    """Adds to the rows of pieces what they score for the words of a query."""
    sizes = [each.size() for each in pieces]
    documents = sum(texts for texts, _ in sizes)
    mean = sum(length for _, length in sizes) / max(documents, 1)
    for word, times in Counter(words).items():
        found = [each.of(word) for each in pieces]
        having = sum(len(rows) for rows, _ in found)
        if not having:
            continue
        weight = times * np.log(1 + (documents - having + 0.5) / (having + 0.5)) * (settings.k1 + 1)
        for piece, (rows, counts) in zip(pieces, found, strict=True):
            penalty = settings.k1 * (1 - settings.b + settings.b * piece.postings.lengths[rows] / mean)
            piece.scores[rows] += weight * counts / (counts + penalty)
