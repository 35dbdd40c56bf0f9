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
    """Rows that have postings of their own. alive: which of them count, bool `[n]`."""

    postings: Postings
    alive: np.ndarray


def scores(pieces: Sequence[Piece], words: Sequence[str], settings: Bm25) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each piece the rows that are alive and have a word of the query (int64), and their scores (float64)."""
    lengths = [np.where(each.alive, each.postings.lengths, -1) for each in pieces]
    documents = sum(int(np.count_nonzero(each >= 0)) for each in lengths)
    mean = sum(int(each[each > 0].sum()) for each in lengths) / max(documents, 1)
    made = [np.zeros(len(each)) for each in lengths]
    for word, times in Counter(words).items():
        found = [_alive(each, word) for each in pieces]
        having = sum(len(rows) for rows, _ in found)
        if not having:
            continue
        weight = times * np.log(1 + (documents - having + 0.5) / (having + 0.5)) * (settings.k1 + 1)
        for into, length, (rows, counts) in zip(made, lengths, found, strict=True):
            penalty = settings.k1 * (1 - settings.b + settings.b * length[rows] / mean)
            into[rows] += weight * counts / (counts + penalty)
    hits = [np.flatnonzero(each) for each in made]
    return [(rows, each[rows]) for rows, each in zip(hits, made, strict=True)]


def _alive(piece: Piece, word: str) -> tuple[np.ndarray, np.ndarray]:
    rows, counts = piece.postings.of(word)
    kept = piece.alive[rows]
    return (rows, counts) if kept.all() else (rows[kept], counts[kept])
