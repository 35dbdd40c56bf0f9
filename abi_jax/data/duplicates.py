"""Records that say again what another says: alike but for case and space, or nearly so.

Two records are compared by their turns and by the answer they reject, where the same personas speak. Near duplicates
have a similarity J (see `minhash`) no less than asked for in both; whatever MinHash proposes is checked with J itself,
so nothing is called a duplicate that is none.
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
    records: Sequence[Record],
    held_out: Sequence[Record] = (),
    similarity: float | None = None,
    by_voice: bool = True,
) -> list[Reason | None]:
    """Returns for every record why it should be left out, or None; of a set of duplicates the first stays.

    "leaked": it repeats one of `held_out`; "exact", "near": it repeats an earlier one of `records` that stays. With
    `similarity` None only exact duplicates are looked for. Without `by_voice` it makes no difference who speaks, as it
    makes none to a backbone.
    """
    known: dict[bytes, Reason] = {exact_key(r, by_voice): "leaked" for r in held_out}
    reasons: list[Reason | None] = []
    for record in records:
        key = exact_key(record, by_voice)
        reasons.append(known.get(key))
        known.setdefault(key, "exact")
    if similarity is not None:
        rest = [at for at, reason in enumerate(reasons) if reason is None]
        repeats = _repeats([*held_out, *(records[at] for at in rest)], len(held_out), similarity, by_voice)
        for at, first in zip(rest, repeats, strict=True):
            reasons[at] = None if first is None else "leaked" if first < len(held_out) else "near"
    return reasons


def exact_key(record: Record, by_voice: bool = True) -> bytes:
    """Returns a hash of what is said, by whom: case, white space and forms of one letter make no difference."""
    voice = record.voice if by_voice else ""
    said = [" ".join(plain(text).split()) for text in (record.rejected or "", *_contents(record))]
    return hashlib.sha256("\0".join([voice, *said]).encode()).digest()


def _repeats(records: Sequence[Record], kept: int, similarity: float, by_voice: bool) -> list[int | None]:
    """For every record from `kept` on, the first one before it that stays and that it nearly repeats, or None.

    The first `kept` stay whatever they are.
    """
    if not records:
        return []
    texts = ["\n".join(_contents(record)) for record in records]
    voices = [record.voice if by_voice else "" for record in records]
    signed = signatures(texts)
    of = lru_cache(maxsize=4096)(lambda at: shingles(texts[at]))

    def alike(one: int, two: int) -> bool:
        rejected = [records[at].rejected or "" for at in (one, two)]
        return jaccard(of(one), of(two)) >= similarity and (
            rejected[0] == rejected[1] or jaccard(*map(shingles, rejected)) >= similarity
        )

    # A key stands for a bucket, or for a shingle, a voice and a length of prefix; records that have a key in common
    # are candidates.
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
        asked, given = keys[at], keys[at]
        if at in crowded:
            long, short = rarest(of(at))
            asked = [*asked, *((voices[at], "short", s) for s in long), *((voices[at], "long", s) for s in short)]
            given = [*given, *((voices[at], "long", s) for s in long), *((voices[at], "short", s) for s in short)]
        first = None
        if at >= kept:
            candidates = sorted({other for key in asked for other in staying.get(key, ())})
            estimates = (signed[candidates] == signed[at]).mean(axis=1) if candidates else ()
            likely = (c for c, e in zip(candidates, estimates, strict=True) if e >= similarity - SLACK)
            first = next((c for c in likely if alike(c, at)), None)
            found.append(first)
        if first is None:
            for key in given:
                staying.setdefault(key, []).append(at)
    return found


class _Rarest:
    """Chooses so many of a text's shingles, the rarest, that two texts as similar as asked for have one in common.

    With J of A and B as asked for, |A & B| >= o = J (|A| + |B|) / (1 + J); of the rarest |A| - o + 1 shingles of A and
    |B| - o + 1 of B, by one order for all texts, one must be the same (Bayardo, Ma & Srikant 2007, prefix filtering).
    Nobody knows the other's length yet: o >= J |A| makes the long prefix of A; where A is the larger, o >= 2 J |B| /
    (1 + J) makes the short one of B (Xiao, Wang, Lin & Yu 2008). So one's long prefix meets the other's short one.
    """

    def __init__(self, texts: Iterable[np.ndarray], similarity: float) -> None:
        self._similarity = similarity
        # Hashed counts may be too high, which makes for more candidates, never for fewer.
        self._counts = np.zeros(_COUNTERS, np.int64)
        for text in texts:
            self._counts[self._places(text)] += 1

    def __call__(self, text: np.ndarray) -> tuple[list[int], list[int]]:
        """Returns the long and the short prefix."""
        order = np.lexsort((text, self._counts[self._places(text)]))
        common = (self._similarity, 2 * self._similarity / (1 + self._similarity))
        long, short = (text[order[: len(text) - math.ceil(c * len(text) - 1e-9) + 1]].tolist() for c in common)
        return long, short

    def _places(self, text: np.ndarray) -> np.ndarray:
        return text % np.uint64(_COUNTERS)


def _contents(record: Record) -> list[str]:
    return [turn["content"] for turn in record.turns]
