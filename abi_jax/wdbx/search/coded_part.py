"""Rows that are searched together on a CPU, by their codes."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from abi_jax.wdbx.search.codes import Codes, CodesMaker, QueryCodes
from abi_jax.wdbx.search.filtered import choose_lists
from abi_jax.wdbx.search.ivf import Lists
from abi_jax.wdbx.search.kernels.lists import count_allowed
from abi_jax.wdbx.search.plan import Plan, choose

NO_CODES = CodesMaker("ip", 1, np.dtype(np.float32)).of(np.zeros((0, 1), np.float32))


@dataclass(frozen=True)
class CodedPart:
    """Rows that are searched together: vectors `[n, D]`, their codes, and which may be found, bool `[n]`; None: all.

    lists: those in whose order the codes stand, if any. ids: of the rows, int64 `[n]`, where these are numbers.
    """

    vectors: np.ndarray
    codes: Codes
    allowed: np.ndarray | None = None
    lists: Lists | None = None
    ids: np.ndarray | None = None

    @cached_property
    def plans(self) -> dict[tuple[float, int], Plan]:
        """Plans that were made, by recall and `top_k`."""
        return {}

    def plan(self, recall: float, top_k: int) -> Plan:
        """How the part is searched."""
        made = self.plans.get((recall, top_k))
        if made is None:
            made = choose(len(self.codes), self.num_allowed, self.lists, recall, top_k)
            self.plans[recall, top_k] = made
        return made

    @property
    def mask(self) -> np.ndarray:
        """Which rows may be found, bool `[n]`."""
        return np.ones(len(self.codes), bool) if self.allowed is None else self.allowed

    @cached_property
    def num_allowed(self) -> int:
        """How many rows may be found."""
        return len(self.codes) if self.allowed is None else int(np.count_nonzero(self.allowed))

    @cached_property
    def allowed_in_lists(self) -> np.ndarray | None:
        """How many rows of each list may be found, int64 `[L]`; None where all may be."""
        if self.lists is None or self.allowed is None:
            return None
        made = np.empty(len(self.lists.centroids), np.int64)
        count_allowed(self.lists.order, self.lists.ends, self.allowed, made)
        return made

    def chosen(self, queries: QueryCodes, plan: Plan, top_k: int, recall: float) -> np.ndarray:
        """The lists that each query looks at, nearest first, int32 `[B, W]`; what is negative is no list."""
        assert self.lists is not None
        if self.allowed_in_lists is None:
            return self.lists.nearest(queries, plan.nearest)
        return choose_lists(self.lists, self.allowed_in_lists, queries, top_k, recall)
