"""Rows of an encrypted array, opened where they are looked at: a few stay open, a pass over all keeps nothing."""

from collections.abc import Callable
from math import prod
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

MOST_OPEN = 1 << 30  # bytes of pages that stay open, of all arrays of a process
KEPT = 0.25  # of all pages: a look at more of them at once is a pass over the array
PASSES = 4  # after so many the array stays open
Opener = Callable[[int, int, np.ndarray], None]  # opens pages first to last into uint8 [last - first, bytes]


class _Pages(NamedTuple):
    """Pages uint8 `[pages, bytes]`, of which those hold something that are open, bool `[pages]`."""

    kept: np.ndarray
    open: np.ndarray


class _Budget:
    """How many bytes of arrays are open; of those that were longest not added to, all pages are given up in time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._held: WeakKeyDictionary[SealedRows, int] = WeakKeyDictionary()

    def add(self, rows: "SealedRows", nbytes: int) -> None:
        """Tells that so many more are open."""
        with self._lock:
            self._held[rows] = self._held.pop(rows, 0) + nbytes
            total = sum(self._held.values())
            for each in list(self._held):
                if total <= MOST_OPEN:
                    break
                total -= self._held.pop(each)
                each.close()


_budget = _Budget()


class SealedRows:
    """Looks like an array `[n, ...]` to whoever takes rows of it, by number, as a slice or by an array of numbers.

    What is taken is a copy. Pages in which single rows were looked at stay open, as long as those of all arrays are not
    too many. Whoever makes his way through all rows in slices, or asks for a good part of them, opens pages for
    himself: until that has come to several passes over an array that is not too large.
    """

    def __init__(self, dtype: np.dtype, shape: tuple[int, ...], page: int, pages: int, opener: Opener) -> None:
        """page: bytes of a page. pages: how many there are, of which the last one ends with zeros."""
        self.dtype = dtype
        self.shape = shape
        self.ndim = len(shape)
        self._width = dtype.itemsize * prod(shape[1:])
        self._page = page
        self._opener = opener
        self._num_pages = pages
        self.close()

    def close(self) -> None:
        """Keeps no page open; who looks at some now goes on with those he has."""
        self._passed = 0  # pages that were opened and not kept
        # memory that is not touched is not taken
        pages = np.empty((self._num_pages, self._page), np.uint8)
        self._pages = _Pages(pages, np.zeros(self._num_pages, bool))

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
        kept, is_open = self._pages
        self._passed += last - first
        if self._passed > PASSES * len(is_open) and kept.nbytes <= MOST_OPEN / 4 and not is_open.all():
            self._opener(0, len(is_open), kept)
            more = int(np.count_nonzero(~is_open))
            is_open[:] = True
            _budget.add(self, more * self._page)
        pages = kept[first:last]
        if not is_open[first:last].all():
            pages = np.empty((last - first, self._page), np.uint8)
            if len(pages):
                self._opener(first, last, pages)
        begin = start * self._width - first * self._page
        data = pages.reshape(-1)[begin : begin + (stop - start) * self._width]
        made = data.view(self.dtype).reshape(stop - start, *self.shape[1:])
        return made.copy() if pages.base is kept else made

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        flat = rows.reshape(-1)
        first, last = flat * self._width // self._page, (flat * self._width + max(self._width, 1) - 1) // self._page
        wanted = np.unique(np.concatenate([first, last, *_between(first, last)]))
        kept, is_open = self._pages
        closed = wanted[~is_open[wanted]]
        if len(closed) > KEPT * len(is_open) and len(closed) > 1:
            made = np.asarray(self)[flat]
        else:
            for page in closed.tolist():
                self._opener(page, page + 1, kept[page : page + 1])
            is_open[closed] = True
            whole = kept.reshape(-1)[: self.nbytes].view(self.dtype).reshape(self.shape)
            made = whole[flat]
            if len(closed):
                _budget.add(self, len(closed) * self._page)
        return made.reshape(*rows.shape, *self.shape[1:])


def _between(first: np.ndarray, last: np.ndarray) -> list[np.ndarray]:
    """Pages that lie wholly in a row, where rows are that wide."""
    wide = np.flatnonzero(last - first > 1).tolist()
    return [np.arange(first[i] + 1, last[i]) for i in wide]
