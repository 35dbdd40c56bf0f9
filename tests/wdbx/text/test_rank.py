"""Frequent words are spared where they cannot matter, and the answer is that of scoring every row."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from abi_jax.wdbx.text import rank as rank_module
from abi_jax.wdbx.text.bm25 import Bm25
from abi_jax.wdbx.text.postings import GrowingPostings, make_postings
from abi_jax.wdbx.text.rank import PartWords, rank

ROWS, VOCABULARY = 4000, 400


@pytest.fixture(scope="module")
def texts() -> list[list[str]]:
    """Words by Zipf's law, so that the first ones are in most texts; every 50th text is one that was there before."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, VOCABULARY + 1)
    made = [
        [f"w{i}" for i in rng.choice(VOCABULARY, rng.integers(0, 30), p=weights / weights.sum())] for _ in range(ROWS)
    ]
    for i in range(50, ROWS, 50):
        made[i] = made[i - 49]
    return made


def everywhere(texts: list[list[str]], alive: np.ndarray, words: list[str], settings: Bm25) -> np.ndarray:
    """The score of every row that is alive."""
    counts = [Counter(text) for text in texts]
    lengths = np.array([len(text) for text in texts])
    mean, documents = lengths[alive].mean(), int(alive.sum())
    made = np.zeros(len(texts))
    for word, times in Counter(words).items():
        has = np.array([count[word] for count in counts])
        weight = times * settings.weight(documents, int(np.count_nonzero(has[alive])))
        made += np.where(
            has > 0, weight * (has / (has + settings.k1 * (1 - settings.b + settings.b * lengths / mean))), 0
        )
    return np.where(alive, made, 0)


@pytest.mark.parametrize("top_k", [1, 10, 200])
def test_as_scoring_every_row(texts: list[list[str]], top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    added_up: list[int] = []
    real = rank_module._Term.scores

    def noted(self: Any, part: int, rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
        added_up.append(len(rows))
        return real(self, part, rows, counts)

    monkeypatch.setattr(rank_module._Term, "scores", noted)
    column = pa.chunked_array([[" ".join(text) for text in texts]])
    grown = GrowingPostings()
    grown.up_to(column.slice(1500, 900))
    tail = grown.up_to(column.slice(1500))
    rng = np.random.default_rng(1)
    alive = rng.random(ROWS) < 0.9
    passed = alive & (rng.random(ROWS) < 0.3)
    pieces = [[(0, make_postings(column.slice(0, 1500)))], tail]
    parts = [PartWords(piece, each) for piece, each in zip(pieces, np.split(alive, [1500]), strict=True)]
    settings = Bm25(1.4, 0.6)
    for allowed in (alive, passed):
        for number in range(0, ROWS, 400):
            words = texts[number] + ["w0", "w1"]
            found = rank([parts], words, settings, np.split(allowed, [1500]), top_k)
            rows = found.rows[0]
            expected = np.where(allowed, everywhere(texts, alive, words, settings), 0)
            floor = np.sort(expected)[-top_k]
            assert sorted(rows.tolist()) == np.flatnonzero((expected >= floor) & (expected > 0)).tolist()
            np.testing.assert_allclose(found.scores[0], expected[rows], rtol=1e-12)
    asked = [{*texts[number], "w0", "w1"} for number in range(0, ROWS, 400)]
    every = 2 * sum(word in text for words in asked for word in words for text in texts)
    assert sum(added_up) < (0.7 if top_k < 200 else 2) * every
