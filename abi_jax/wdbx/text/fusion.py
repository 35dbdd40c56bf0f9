"""Reciprocal rank fusion: one list of several, by ranks alone.

    score(d) = sum over lists that have d: 1 / (k + rank of d), ranks from 1

Cormack, Clarke and Buettcher, Reciprocal Rank Fusion Outperforms Condorcet and Individual Rank Learning Methods, 2009.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from abi_jax.errors import InputError
from abi_jax.wdbx.given import whole

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Fusion:
    """k: how little the first ranks are preferred. depth: how many of each list count, at least `top_k`."""

    k: float = 60.0
    depth: int = 100

    def __post_init__(self) -> None:
        if not 0 <= self.k < float("inf"):
            raise InputError(f"k {self.k!r}: expected a number from 0")
        if (whole(self.depth) or 0) < 1:
            raise InputError(f"depth {self.depth!r}: expected a whole number from 1")


def fuse(lists: Sequence[Sequence[Key]], k: float) -> dict[Key, float]:
    """The score of everything that is in a list; each list has its best first."""
    made: dict[Key, float] = {}
    for each in lists:
        for rank, key in enumerate(each, 1):
            made[key] = made.get(key, 0.0) + 1 / (k + rank)
    return made
