"""Examples of rare groups more often: re-sampling by repetition, the same for every process and after every stop.

D_balanced = D x alpha: a group of n examples, the largest having N, takes round(n * (N / n) ** alpha) places of an
epoch. Each of its examples is there as often as that goes whole; the places left go to examples drawn anew in
every epoch, none of them twice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import grain
import numpy as np

from abi_jax.data.config import ATTRIBUTES, BalanceConfig
from abi_jax.data.hashing import permutation
from abi_jax.data.records import Record
from abi_jax.errors import InputError

NONE = "none"


def value_of(record: Record, key: str) -> str | None:
    """Returns what a record has under a key of `BalanceConfig.by`, as text; None if nothing."""
    if key == "persona":
        return record.voice if record.mixture else None
    if key.startswith(ATTRIBUTES):
        found = record.attributes.get(key.removeprefix(ATTRIBUTES))
        return None if found is None else str(found)
    found = getattr(record, key)
    return None if found is None else str(found)


def group_names(records: Sequence[Record], by: Sequence[str]) -> list[str]:
    """Returns every record's group, `persona=abbey, attributes.age=none`.

    Raises `InputError` for a key that no record has a value for.
    """
    columns = [[value_of(record, key) for record in records] for key in by]
    for key, column in zip(by, columns, strict=True):
        if all(value is None for value in column):
            raise InputError(f"balance.by names {key!r}, but none of {len(records)} records has it{_known(records)}")
    parts = [[f"{key}={NONE if v is None else v}" for v in c] for key, c in zip(by, columns, strict=True)]
    return [", ".join(values) for values in zip(*parts, strict=True)]


def balanced_counts(counts: Mapping[str, int], alpha: float) -> dict[str, int]:
    """Returns how many places each group takes in an epoch, for the examples it has."""
    most = max(counts.values(), default=0)
    return {name: round(n * (most / n) ** alpha) for name, n in counts.items()}


class Balanced(grain.MapDataset[Any]):
    """A random-access data set whose epoch holds the examples of every group as often as `balanced_counts` says.

    An index beyond the first epoch is one of a later epoch, as in grain's own repeated data sets. before, after:
    group -> examples, places in an epoch.
    """

    def __init__(
        self, source: "grain.MapDataset[Any]", groups: Sequence[str], config: BalanceConfig, seed: int
    ) -> None:
        """`groups` has one group for every example of `source`."""
        super().__init__(source)
        self.before: dict[str, int] = dict(sorted(Counter(groups).items()))
        self.after = balanced_counts(self.before, config.alpha)
        number = {name: at for at, name in enumerate(self.before)}
        of = np.array([number[name] for name in groups], np.int64)
        self._members = np.split(np.argsort(of, kind="stable"), np.cumsum(list(self.before.values()))[:-1])
        self._ends = np.cumsum([0, *self.after.values()])
        # Neighbouring epochs are all that open rows reach.
        self._drawn = lru_cache(maxsize=2 * len(number))(
            lambda epoch, group: permutation(len(self._members[group]), seed, epoch, group)
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        epoch, at = divmod(int(index), len(self))
        group = int(np.searchsorted(self._ends, at, side="right")) - 1
        members, place = self._members[group], at - int(self._ends[group])
        whole, left = divmod(int(self._ends[group + 1] - self._ends[group]), len(members))
        times, which = divmod(place, len(members))
        chosen = which if times < whole else int(self._drawn(epoch, group)[:left][which])
        return self._parent[int(members[chosen])]


def _known(records: Sequence[Record]) -> str:
    names = sorted({name for record in records for name in record.attributes})
    return f"; attributes there are: {', '.join(names)}" if names else ""
