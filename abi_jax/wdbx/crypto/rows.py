"""Rows of an encrypted array, opened where they are looked at: a few stay open, a pass over all keeps nothing."""

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

KEPT = 0.25  # of all pages: a look at more of them at once is a pass over the array
PASSES = 4  # after so many the array stays open
Opener = Callable[[int, int, np.ndarray], None]  # opens pages first to last into uint8 [last - first, bytes]


class SealedRows:
    """Looks like an array `[n, ...]` to whoever takes rows of it, by number, as a slice or by an array of numbers.

    What is taken is a copy. Pages in which single rows were looked at stay open. Whoever makes his way through all rows
    in slices, or asks for a good part of them, opens pages for himself: until that has come to several passes.
    """

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...], page: int, pages: int, opener: Opener) -> None:
        """page: bytes of a page. pages: how many there are, of which the last one ends with zeros."""
        self.dtype = dtype
        self.shape = shape
        self.ndim = len(shape)
        self._width = dtype.itemsize * prod(shape[1:])
        self._page = page
        self._opener = opener
        self._passed = 0  # pages that were opened and not kept
        self._open = np.zeros(pages, bool)
        self._kept = np.empty((pages, page), np.uint8)  # memory that is not touched is not taken

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self._width

    def __getitem__(self, key: Any) -> np.ndarray:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._block(start, max(start, stop))[::step] if step > 0 else np.asarray(self)[key]
        if isinstance(key, int | np.integer):
            row = range(len(self))[int(key)]
            return self._rows(np.array([row]))[0]
        rows = np.asarray(key)
        if rows.dtype == bool:
            rows = np.flatnonzero(rows)
        if rows.size and not -len(self) <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of {len(self)}")
        return self._rows(rows % max(len(self), 1))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        made = self._block(0, len(self))
        return made if dtype is None else made.astype(dtype, copy=False)

    def _block(self, start: int, stop: int) -> np.ndarray:
        first, last = start * self._width // self._page, -(-stop * self._width // self._page)
        self._passed += last - first
        if self._passed > PASSES * len(self._open) and not self._open.all():
            self._opener(0, len(self._open), self._kept)
            self._open[:] = True
        pages = self._kept[first:last]
        if not self._open[first:last].all():
            pages = np.empty((last - first, self._page), np.uint8)
            if len(pages):
                self._opener(first, last, pages)
        begin = start * self._width - first * self._page
        data = pages.reshape(-1)[begin : begin + (stop - start) * self._width]
        made = data.view(self.dtype).reshape(stop - start, *self.shape[1:])
        return made.copy() if pages.base is self._kept else made

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        flat = rows.reshape(-1)
        first, last = flat * self._width // self._page, (flat * self._width + max(self._width, 1) - 1) // self._page
        wanted = np.unique(np.concatenate([first, last, *_between(first, last)]))
        closed = wanted[~self._open[wanted]]
        if len(closed) > KEPT * len(self._open) and len(closed) > 1:
            made = np.asarray(self)[flat]
        else:
            for page in closed.tolist():
                self._opener(page, page + 1, self._kept[page : page + 1])
            self._open[closed] = True
            whole = self._kept.reshape(-1)[: self.nbytes].view(self.dtype).reshape(self.shape)
            made = whole[flat]
        return made.reshape(*rows.shape, *self.shape[1:])


def _between(first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    """Pages that lie wholly in a row, where rows are that wide."""
    wide = np.flatnonzero(last - first > 1).tolist()
    return [np.arange(first[i] + 1, last[i]) for i in wide]
