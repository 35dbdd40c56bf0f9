"""Which users' adaptations are on the device: a table of a few rows, filled as users come."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from abi_jax.model.config import ModelConfig
from abi_jax.model.users import UserTerms, new_table

NOBODY = 0  # the row of zeros
_MOST_NAMES = 4096
# A user's adaptation and its digest, None where there is none.
Source = Callable[[str], tuple[UserTerms, str] | None]


class UserTable:
    """Row 0 is nobody's; `rows` more are of the users that came last, those that answer now among them."""

    def __init__(self, config: ModelConfig, rows: int, source: Source) -> None:
        self.terms = jax.jit(partial(new_table, config, rows + 1))()
        self._source = source
        self._free = list(range(rows, NOBODY, -1))
        self._rows: OrderedDict[str, int] = OrderedDict()  # the longest unused first
        self._digests: dict[int, str] = {}
        self._uses = [0] * (rows + 1)  # answers that are being made, by row
        self._lost: set[int] = set()  # in use, and nobody's once they are not
        self._wait: set[str] = set()  # who has one and waits for a row: asked for again once there is one
        self._fill = jax.jit(_fill, out_shardings=jax.tree.map(lambda x: x.sharding, self.terms))

    def warm_up(self) -> None:
        """Compiles what fills a row."""
        self.terms = self._fill(self.terms, self._nothing(), np.int32(NOBODY))

    def take(self, user: str) -> int | None:
        """The row of a user, with one answer more; 0 for who has no adaptation, None while all rows are in use."""
        if user not in self._rows:
            full = not self._free and all(self._uses[row] for row in self._rows.values())
            if full and user in self._wait:
                return None
            found = self._source(user)
            if found is None:
                return NOBODY
            if full:
                if len(self._wait) >= _MOST_NAMES:
                    self._wait.clear()
                self._wait.add(user)
                return None
            self._wait.discard(user)
            row = self._free.pop() if self._free else self._longest_unused()
            terms, self._digests[row] = found
            self.terms = self._fill(self.terms, terms, np.int32(row))
            self._rows[user] = row
        self._rows.move_to_end(user)
        self._uses[self._rows[user]] += 1
        return self._rows[user]

    def give(self, row: int) -> None:
        """One answer less of a row that was taken."""
        if row != NOBODY:
            self._uses[row] -= 1
            if not self._uses[row] and row in self._lost:
                self._lost.remove(row)
                self._empty(row)

    def digest(self, row: int) -> str | None:
        """The digest of the adaptation in a row, None for nobody's."""
        return self._digests.get(row)

    def forget(self, user: str) -> None:
        """Call it where an adaptation was changed or deleted: its row is zeroed once no answer is spoken with it."""
        self._wait.discard(user)
        row = self._rows.pop(user, None)
        if row is None:
            return
        if self._uses[row]:
            self._lost.add(row)
        else:
            self._empty(row)

    def _empty(self, row: int) -> None:
        self.terms = self._fill(self.terms, self._nothing(), np.int32(row))
        del self._digests[row]
        self._free.append(row)

    def _nothing(self) -> UserTerms:
        return jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), self.terms)

    def _longest_unused(self) -> int:
        user = next(user for user, row in self._rows.items() if not self._uses[row])
        return self._rows.pop(user)


def _fill(table: UserTerms, terms: UserTerms, row: Any) -> UserTerms:
    return jax.tree.map(lambda all_rows, one: all_rows.at[row].set(one), table, terms)
