"""How rows with inverted lists stand in pages: list by list, in blocks that are dealt out to all pages in turn.

Blocks that follow each other lie far apart, `STEP` of all pages, so that the blocks of a list are spread over whatever
devices hold the pages. A list begins where the one before ends, in the midst of a block: nothing is padded.
"""

from dataclasses import dataclass
from functools import cached_property
from math import gcd

import numpy as np

from abi_jax.wdbx.search.ivf import Lists
from abi_jax.wdbx.search.kernels.lists import count_allowed
from abi_jax.wdbx.search.mesh_select import BLOCK

STEP = 0.618  # of all pages: multiples of the golden ratio are spread as evenly as can be
NO_ROW = NO_BLOCK = -1


@dataclass(eq=False)
class Layout:
    """The pages of rows with `lists`, `rows_per_page` a multiple of `BLOCK`."""

    lists: Lists
    rows_per_page: int
    _placed: tuple[np.ndarray, np.ndarray] | None = None
    _counted: tuple[np.ndarray, np.ndarray | None] | None = None

    @property
    def blocks(self) -> int:
        """How many blocks have rows."""
        return -(-len(self.lists.order) // BLOCK)

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return -(-self.blocks * BLOCK // self.rows_per_page)

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each block the page, and the number of the block there, int64."""
        step = max(1, round(STEP * self.pages))
        while gcd(step, self.pages) > 1:
            step += 1
        number = np.arange(self.blocks)
        return number * step % self.pages, number // self.pages

    @cached_property
    def blocks_at(self) -> np.ndarray:
        """The block at each place of the pages, int32 `[pages, rows_per_page / BLOCK]`; `NO_BLOCK` where is none."""
        made = np.full((self.pages, self.rows_per_page // BLOCK), NO_BLOCK, np.int32)
        made[self.places] = np.arange(self.blocks)
        return made

    @cached_property
    def rows(self) -> np.ndarray:
        """The row at each place of the pages, int32 `[pages rows_per_page]`; `NO_ROW` where there is none."""
        padded = np.full(self.blocks * BLOCK, NO_ROW, np.int32)
        padded[: len(self.lists.order)] = self.lists.order
        made = np.full((self.pages, self.rows_per_page // BLOCK, BLOCK), NO_ROW, np.int32)
        made[self.places] = padded.reshape(-1, BLOCK)
        return made.reshape(-1)

    def page_rows(self, vectors: np.ndarray, page: int) -> np.ndarray:
        """The vectors of a page; where it has no row, another one of it."""
        rows = self.rows[page * self.rows_per_page : (page + 1) * self.rows_per_page]
        return np.asarray(vectors[np.where(rows == NO_ROW, rows.max(), rows)])

    def placed(self, allowed: np.ndarray) -> np.ndarray:
        """Which places have a row that may be found. The last one is remembered."""
        if self._placed is None or self._placed[0] is not allowed:
            self._placed = allowed, allowed[self.rows] & (self.rows != NO_ROW)
        return self._placed[1]

    def counted(self, allowed: np.ndarray) -> np.ndarray | None:
        """How many rows of each list may be found, int64 `[L]`; None where all may be. The last is remembered."""
        if self._counted is None or self._counted[0] is not allowed:
            made = None
            if not allowed.all():
                made = np.empty(len(self.lists.centroids), np.int64)
                count_allowed(self.lists.order, self.lists.ends, allowed, made)
            self._counted = allowed, made
        return self._counted[1]

    def blocks_of(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of chosen lists `[B, W]`, negative where there is none: query and block, each pair once."""
        query, at = np.nonzero(chosen >= 0)
        number = chosen[query, at]
        begin, end = self.lists.ends[number], self.lists.ends[number + 1]
        first, counts = begin // BLOCK, np.where(end > begin, -(-end // BLOCK) - begin // BLOCK, 0)
        query = np.repeat(query, counts)
        inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        pairs = np.unique(query * self.blocks + np.repeat(first, counts) + inside)
        return pairs // max(1, self.blocks), pairs % max(1, self.blocks)
