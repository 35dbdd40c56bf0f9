"""Records that say again what another says: alike but for case and space, or nearly so.

Two records are compared by their turns where the same personas speak. Near duplicates share most of their
shingles, runs of three words: J = |A & B| / |A | B| >= the similarity asked for (Jaccard). Candidates come from
MinHash signatures cut into bands (Broder 1997; Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, 3.4),
and every one is checked with J itself: nothing is called a duplicate that is none, and a pair at the threshold
is overlooked with a probability of `MISSED`. Nothing depends on the order of a dict or on the process.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

from abi_jax.data.hashing import mixed
from abi_jax.data.progress import watched
from abi_jax.data.records import Record
from abi_jax.persona import mixture_name

Reason = Literal["exact", "near", "leaked"]

HASHES = 128
MISSED = 1e-6
WORDS = 3
# By how much a signature's estimate of J may be too low and J still be computed: over five standard deviations.
SLACK = 0.25
_CHUNK = 1 << 14
# A word is a run of letters and digits; scripts without spaces have a word a character.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def find_duplicates(
    records: Sequence[Record], held_out: Sequence[Record] = (), similarity: float | None = None
) -> list[Reason | None]:
    """Returns for every record why it should be left out, or None; of a set of duplicates the first stays.

    "leaked": it repeats one of `held_out`; "exact", "near": it repeats an earlier one of `records`. With
    `similarity` None only exact duplicates are looked for.
    """
    known: dict[bytes, Reason] = {exact_key(r): "leaked" for r in held_out}
    reasons: list[Reason | None] = []
    for record in records:
        key = exact_key(record)
        reasons.append(known.get(key))
        known.setdefault(key, "exact")
    if similarity is not None:
        rest = [at for at, reason in enumerate(reasons) if reason is None]
        repeats = _repeats([*held_out, *(records[at] for at in rest)], len(held_out), similarity)
        for at, first in zip(rest, repeats, strict=True):
            reasons[at] = None if first is None else "leaked" if first < len(held_out) else "near"
    return reasons


def exact_key(record: Record) -> bytes:
    """Returns a hash of what is said, by whom: case, white space and forms of one letter make no difference."""
    said = [" ".join(_plain(turn["content"]).split()) for turn in record.turns]
    rejected = " ".join(_plain(record.rejected or "").split())
    return hashlib.sha256("\0".join([_voice(record), rejected, *said]).encode()).digest()


def shingles(text: str) -> np.ndarray:
    """Returns the hashes of the runs of `WORDS` words in a text, uint64, sorted, each once; of fewer words, one."""
    return np.unique(_windows(text))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Returns |a & b| / |a | b| of two results of `shingles`."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def signatures(texts: Sequence[str]) -> np.ndarray:
    """Returns the MinHash signature of every text, uint32 `[N, HASHES]`.

    The share of places where two signatures agree estimates their J.
    """
    factors = mixed(np.arange(1, HASHES + 1, dtype=np.uint64)) | np.uint64(1)
    offsets = mixed(np.arange(HASHES + 1, 2 * HASHES + 1, dtype=np.uint64))
    found = np.empty((len(texts), HASHES), np.uint32)
    held: list[np.ndarray] = []
    first = size = 0
    for at, text in enumerate(watched(texts, "comparing", len(texts))):
        held.append(_windows(text))
        size += len(held[-1])
        if size >= _CHUNK or at == len(texts) - 1:
            found[first : at + 1] = _least(held, factors, offsets)
            held, first, size = [], at + 1, 0
    return found


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


def _repeats(records: Sequence[Record], kept: int, similarity: float) -> list[int | None]:
    """For every record from `kept` on, the first one before it that stays and that it nearly repeats, or None.

    The first `kept` stay whatever they are.
    """
    if not records:
        return []
    texts = ["\n".join(turn["content"] for turn in record.turns) for record in records]
    signed = signatures(texts)
    groups = _buckets(signed, [_voice(r) for r in records], bands_for(similarity))
    members: dict[int, list[int]] = {}

    @lru_cache(maxsize=4096)
    def of(at: int) -> np.ndarray:
        return shingles(texts[at])

    def first_alike(at: int) -> int | None:
        near = np.array(sorted({m for g in groups[at] for m in members.get(g, ())}), np.int64)
        estimate = (signed[near] == signed[at]).mean(axis=1)
        likely = near[estimate >= similarity - SLACK].tolist()
        return next((m for m in likely if jaccard(of(m), of(at)) >= similarity), None)

    found: list[int | None] = []
    for at in watched(range(len(records)), "comparing", len(records)):
        first = None if at < kept or not groups[at] else first_alike(at)
        if at >= kept:
            found.append(first)
        if first is None:
            for group in groups[at]:
                members.setdefault(group, []).append(at)
    return found


def _buckets(signed: np.ndarray, voices: Sequence[str], bands: Bands) -> list[list[int]]:
    """Returns for every text the buckets that it shares with another."""
    of_voice = np.array([_hash(v) for v in voices], np.uint64)
    buckets: list[list[int]] = [[] for _ in voices]
    number = 0
    for band in range(bands.count):
        key = of_voice
        for column in range(band * bands.rows, (band + 1) * bands.rows):
            key = mixed(key + signed[:, column])
        _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
        for at in np.flatnonzero(counts[inverse] > 1).tolist():
            buckets[at].append(number + int(inverse[at]))
        number += len(counts)
    return buckets


def _voice(record: Record) -> str:
    return mixture_name(dict(sorted(record.mixture.items())))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _windows(text: str) -> np.ndarray:
    plain = _plain(text)
    words = np.array([_hash(w) for w in _WORD.findall(plain)] or [_hash(plain)], np.uint64)
    count = max(len(words) - WORDS + 1, 1)
    runs = np.zeros(count, np.uint64)
    for offset in range(min(WORDS, len(words))):
        runs = mixed(runs + words[offset : offset + count])
    return runs


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
