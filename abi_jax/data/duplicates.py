"""Records that say again what another says: alike but for case and space, or nearly so.

Two records are compared by their turns, where the same personas speak. Near duplicates have a similarity J (see
`minhash`) no less than asked for; whatever MinHash proposes is checked with J itself, so nothing is called a
duplicate that is none.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from abi_jax.data.minhash import bands_for, buckets, jaccard, plain, shingles, signatures
from abi_jax.data.progress import watched
from abi_jax.data.records import Record

Reason = Literal["exact", "near", "leaked"]

# By how much a signature's estimate of J may be too low and J still be computed: over five standard deviations.
SLACK = 0.25
# Texts written from one template fill a bucket; beyond this size its members are looked up by their rare shingles.
CROWD = 64
_COUNTERS = 1 << 20


def find_duplicates(
    records: Sequence[Record], held_out: Sequence[Record] = (), similarity: float | None = None
) -> list[Reason | None]:
    """Returns for every record why it should be left out, or None; of a set of duplicates the first stays.

    "leaked": it repeats one of `held_out`; "exact", "near": it repeats an earlier one of `records` that stays. With
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
    said = [" ".join(plain(text).split()) for text in (record.rejected or "", *_contents(record))]
    return hashlib.sha256("\0".join([record.voice, *said]).encode()).digest()


def _repeats(records: Sequence[Record], kept: int, similarity: float) -> list[int | None]:
    """For every record from `kept` on, the first one before it that stays and that it nearly repeats, or None.

    The first `kept` stay whatever they are.
    """
    if not records:
        return []
    texts = ["\n".join(_contents(record)) for record in records]
    voices = [record.voice for record in records]
    signed = signatures(texts)
    of = lru_cache(maxsize=4096)(lambda at: shingles(texts[at]))
    # A key stands for a bucket, or for a shingle and a voice; records that have a key in common are candidates.
    keys: list[list[object]] = [[] for _ in records]
    crowded: set[int] = set()
    for number, members in enumerate(buckets(signed, voices, bands_for(similarity))):
        if len(members) > CROWD:
            crowded.update(members.tolist())
        else:
            for at in members.tolist():
                keys[at].append(number)
    rarest = _Rarest((of(at) for at in crowded), similarity)
    staying: dict[object, list[int]] = {}
    found: list[int | None] = []
    for at in watched(range(len(records)), "comparing", len(records)):
        mine = [*keys[at], *((voices[at], s) for s in rarest(of(at)))] if at in crowded else keys[at]
        first = None
        if at >= kept:
            candidates = sorted({other for key in mine for other in staying.get(key, ())})
            estimates = (signed[candidates] == signed[at]).mean(axis=1) if candidates else ()
            likely = (c for c, e in zip(candidates, estimates, strict=True) if e >= similarity - SLACK)
            first = next((c for c in likely if jaccard(of(c), of(at)) >= similarity), None)
            found.append(first)
        if first is None:
            for key in mine:
                staying.setdefault(key, []).append(at)
    return found


class _Rarest:
    """Chooses so many of a text's shingles, the rarest, that two texts as similar as asked for have one in common.

    |A & B| >= J max(|A|, |B|), so of A no more than |A| - ceil(J |A|) are missing in B; one more, chosen by one
    order for all texts, must be among those chosen of B (Bayardo, Ma & Srikant 2007, prefix filtering).
    """

    def __init__(self, texts: Iterable[np.ndarray], similarity: float) -> None:
        self._similarity = similarity
        # Hashed counts may be too high, which makes for more candidates, never for fewer.
        self._counts = np.zeros(_COUNTERS, np.int64)
        for text in texts:
            self._counts[self._places(text)] += 1

    def __call__(self, text: np.ndarray) -> list[int]:
        order = np.lexsort((text, self._counts[self._places(text)]))
        needed = len(text) - math.ceil(self._similarity * len(text) - 1e-9) + 1
        chosen: list[int] = text[order[:needed]].tolist()
        return chosen

    def _places(self, text: np.ndarray) -> np.ndarray:
        return text % np.uint64(_COUNTERS)


def _contents(record: Record) -> list[str]:
    return [turn["content"] for turn in record.turns]
