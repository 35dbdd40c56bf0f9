"""How alike two texts are, and which of many may be: shingles, Jaccard similarity, MinHash signatures, bands.

A text's shingles are its runs of three words; J = |A & B| / |A | B| of two texts' shingles is their similarity. The
share of places where two MinHash signatures agree estimates J, and texts that agree in a whole band of places are
candidates (Broder 1997; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, chapter 3).
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from abi_jax.data.hashing import mixed
from abi_jax.data.progress import watched

HASHES = 128
MISSED = 1e-6
WORDS = 3
_CHUNK = 1 << 14
# A word is a run of letters and digits; scripts without spaces have a word a character.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def plain(text: str) -> str:
    """Returns the text without what makes no difference: case, and the forms of one letter (NFKC)."""
    return unicodedata.normalize("NFKC", text).casefold()


def shingles(text: str) -> np.ndarray:
    """Returns the hashes of the runs of `WORDS` words in a text, uint64, sorted, each once; of fewer words, one."""
    return np.unique(_windows(text))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Returns |a & b| / |a | b| of two results of `shingles`."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Returns the MinHash signature of every text, uint32 `[N, HASHES]`; the same in every process."""
    factors = mixed(np.arange(1, HASHES + 1, dtype=np.uint64)) | np.uint64(1)
    offsets = mixed(np.arange(HASHES + 1, 2 * HASHES + 1, dtype=np.uint64))
    found = np.empty((len(texts), HASHES), np.uint32)
    held: list[np.ndarray] = []
    first = size = 0
    for at, text in enumerate(watched(texts, "hashing texts", len(texts))):
        held.append(_windows(text))
        size += len(held[-1])
        if size >= _CHUNK or at == len(texts) - 1:
            found[first : at + 1] = _least(held, factors, offsets)
            held, first, size = [], at + 1, 0
    return found


@dataclass(frozen=True)
class Bands:
    """How a signature is cut: `count` bands of `rows` hashes; texts that agree in any one band are candidates."""

    count: int
    rows: int

    def found(self, similarity: float) -> float:
        """The probability that a pair of this J becomes a candidate."""
        return 1 - (1 - similarity**self.rows) ** self.count


def bands_for(similarity: float) -> Bands:
    """Returns the widest bands, which make the fewest candidates, that overlook no more than `MISSED`.

    There are such bands for a similarity from 0.2 on.
    """
    cuts = [Bands(HASHES // rows, rows) for rows in range(1, HASHES + 1)]
    return max((b for b in cuts if 1 - b.found(similarity) <= MISSED), key=lambda b: b.rows)


def buckets(signed: np.ndarray, voices: Sequence[str], bands: Bands) -> list[np.ndarray]:
    """Returns the sets of two or more texts that agree in a band and have one voice, as indices in order."""
    of_voice = np.array([_hash(v) for v in voices], np.uint64)
    found: list[np.ndarray] = []
    for band in range(bands.count):
        key = of_voice
        for column in range(band * bands.rows, (band + 1) * bands.rows):
            key = mixed(key + signed[:, column])
        order = np.argsort(key, kind="stable")
        edges = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]])).tolist()
        runs = zip(edges, [*edges[1:], len(order)], strict=True)
        found += [order[start:stop] for start, stop in runs if stop - start > 1]
    return found


def _windows(text: str) -> np.ndarray:
    text = plain(text)
    words = np.array([_hash(w) for w in _WORD.findall(text)] or [_hash(text)], np.uint64)
    count = max(len(words) - WORDS + 1, 1)
    runs = np.zeros(count, np.uint64)
    for offset in range(min(WORDS, len(words))):
        runs = mixed(runs + words[offset : offset + count])
    return runs


def _least(hashes: Sequence[np.ndarray], factors: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The least of `factor * hash + offset` over each text's hashes, for each of K factors, uint32 `[texts, K]`."""
    joined = np.concatenate(hashes)
    starts = np.cumsum([0, *map(len, hashes[:-1])])
    scratch, least = np.empty_like(joined), np.empty((len(factors), len(hashes)), np.uint64)
    # One factor at a time: the numbers stay in the cache, which is nine times as fast as all at once.
    for factor, offset, row in zip(factors, offsets, least, strict=True):
        np.multiply(joined, factor, out=scratch)
        np.add(scratch, offset, out=scratch)
        np.minimum.reduceat(scratch, starts, out=row)
    return (least >> np.uint64(32)).astype(np.uint32).T


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
