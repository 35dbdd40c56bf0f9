"""BM25: what a row scores for the words of a query.

    score(d) = sum over words w of the query: idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b |d| / mean |d|))
    idf(w) = log(1 + (N - n + 0.5) / (n + 0.5))

Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, 3.4; with 1 added in the logarithm
as Lucene does, so that no word counts against a row. `N` rows have a text, `n` of them the word `w`; only rows are
counted that are alive at the version that is asked for, whatever a filter lets pass. A word that a query has twice
counts twice.
"""

from dataclasses import dataclass

import numpy as np

from abi_jax.errors import InputError


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

    def weight(self, documents: int, having: int) -> float:
        """What a word is worth at most: its idf times k1 + 1."""
        return float(np.log(1 + (documents - having + 0.5) / (having + 0.5)) * (self.k1 + 1))

    def penalties(self, lengths: np.ndarray, mean: float) -> np.ndarray:
        """What texts pay for their lengths, float64: one that has a word c times gets c / (c + this) of its worth."""
        return np.asarray(self.k1 * (1 - self.b + self.b * lengths / mean))
