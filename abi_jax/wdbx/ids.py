"""Looking ids up: in sorted columns of segments, by binary search, many at once."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

WORD = 8  # bytes of a text that are compared as one number


class IdColumn(Protocol):
    """The ids of a segment's rows, sorted; an id that was born more than once is there as often."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> list[str] | np.ndarray:
        """The ids of rows."""

    def column(self, start: int, stop: int) -> pa.Array | np.ndarray:
        """The ids of rows `start` to `stop`: texts as an Arrow array, or int64."""

    def find(self, ids: Sequence[str] | pa.Array | np.ndarray) -> np.ndarray:
        """The last row of each id, int64 `[n]`; -1 where it is not there."""

    def run(self, id_: str | int) -> range:
        """All rows of an id, in the order of their birth."""


class IntIds:
    """Ids that are whole numbers: int64 `[n]`, ascending."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The ids of rows."""
        return np.asarray(self.values[rows])

    def column(self, start: int, stop: int) -> np.ndarray:
        """The ids of rows `start` to `stop`."""
        return np.asarray(self.values[start:stop])

    def find(self, ids: Sequence[str] | pa.Array | np.ndarray) -> np.ndarray:
        """The last row of each id; -1 where it is not there."""
        wanted = np.asarray(ids, np.int64)
        rows = np.searchsorted(self.values, wanted, "right").astype(np.int64) - 1
        there = rows >= 0
        there[there] = self.values[rows[there]] == wanted[there]
        return np.where(there, rows, -1)

    def run(self, id_: str | int) -> range:
        """All rows of an id."""
        return range(int(np.searchsorted(self.values, id_)), int(np.searchsorted(self.values, id_, "right")))


class TextIds:
    """Ids that are texts, ascending as UTF-8: the bytes of all one after the other, and where each ends.

    What all of them begin with is looked at once; then eight bytes of each decide, and only ids that share these are
    compared as a whole.
    """

    def __init__(self, ends: np.ndarray, data: np.ndarray) -> None:
        self._ends = ends
        self._bytes = np.ascontiguousarray(data)
        self._data = self._bytes.data
        self._prefix = _shared(self._at(0), self._at(len(ends) - 1)) if len(ends) else b""

    @cached_property
    def _words(self) -> np.ndarray:
        """What decides between ids, ascending, uint64 `[n]`."""
        ends = self._ends.astype(np.int64)
        return _words(self._bytes, np.concatenate([[0], ends])[:-1] + len(self._prefix), ends)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, row: int) -> bytes:
        return self._at(row)

    def _at(self, row: int) -> bytes:
        start = int(self._ends[row - 1]) if row else 0
        return bytes(self._data[start : int(self._ends[row])])

    def take(self, rows: np.ndarray) -> list[str]:
        """The ids of rows."""
        return [self._at(row).decode() for row in rows.tolist()]

    def column(self, start: int, stop: int) -> pa.Array:
        """The ids of rows `start` to `stop`."""
        first = int(self._ends[start - 1]) if start else 0
        offsets = np.concatenate([[first], self._ends[start:stop]]).astype(np.int64) - first
        data = pa.py_buffer(self._bytes[first : int(self._ends[stop - 1]) if stop > start else first])
        return pa.Array.from_buffers(pa.large_string(), stop - start, [None, pa.py_buffer(offsets), data])

    def find(self, ids: Sequence[str] | pa.Array | np.ndarray) -> np.ndarray:
        """The last row of each id; -1 where it is not there."""
        texts = text_column(ids)
        if not len(self) or not len(texts):
            return np.full(len(texts), -1)
        ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
        data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
        starts, ends = ends[:-1], ends[1:]
        inside = self._with_prefix(data, starts, ends)
        words = _words(data, starts + len(self._prefix), ends)
        low = np.searchsorted(self._words, words)
        at, last = np.minimum(low, len(self) - 1), len(self) - 1
        there = inside & (self._words[at] == words)
        several = there & (at < last) & (self._words[np.minimum(at + 1, last)] == words)
        rows = np.where(there & ~several, low, -1)
        found = np.flatnonzero(rows >= 0)
        rows[found[~self._equal(rows[found], data, starts[found], ends[found])]] = -1
        several = np.flatnonzero(several)
        high = np.searchsorted(self._words, words[several], "right")
        for i, end in zip(several.tolist(), high.tolist(), strict=True):
            each = data[starts[i] : ends[i]].tobytes()
            row = bisect_right(self, each, int(low[i]), end) - 1
            if row >= low[i] and self._at(row) == each:
                rows[i] = row
        return rows

    def _with_prefix(self, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether texts of `data` begin as all ids do, bool `[n]`."""
        inside = ends - starts >= len(self._prefix)
        for at in range(0, len(self._prefix), WORD):
            part = self._prefix[at : at + WORD]
            word = np.uint64(int.from_bytes(part.ljust(WORD, b"\0"), "big"))
            inside &= _words(data, starts + at, np.minimum(starts + at + len(part), ends)) == word
        return inside

    def _equal(self, rows: np.ndarray, data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Whether rows are texts of `data` with which they share prefix and word, bool `[n]`."""
        own_ends = self._ends[rows].astype(np.int64)
        own_starts = np.where(rows > 0, self._ends[rows - 1], 0).astype(np.int64)
        same = own_ends - own_starts == ends - starts
        at = len(self._prefix) + WORD
        while len(left := np.flatnonzero(same & (ends - starts > at))):
            own = _words(self._bytes, own_starts[left] + at, own_ends[left])
            same[left] = own == _words(data, starts[left] + at, ends[left])
            at += WORD
        return same

    def run(self, id_: str | int) -> range:
        """All rows of an id."""
        wanted = str(id_).encode()
        return range(bisect_left(self, wanted), bisect_right(self, wanted))


def _words(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Eight bytes from `starts` on as one number, uint64 `[n]`; zeros stand behind `ends`. Both are int64."""
    if len(data) < WORD:
        data = np.concatenate([data, np.zeros(WORD - len(data), np.uint8)])
    last = len(data) - WORD
    every = np.ndarray(last + 1, ">u8", data, strides=(1,))  # the number at each byte
    made = every[np.minimum(starts, last)].astype(np.uint64)
    if len(starts) and starts.max() > last:
        made <<= (8 * np.clip(starts - last, 0, WORD - 1)).astype(np.uint64)
    sizes = ends - starts
    if len(starts) and sizes.min() < WORD:
        behind = (8 * (WORD - np.clip(sizes, 1, WORD))).astype(np.uint64)
        made = np.where(sizes > 0, made >> behind << behind, 0)
    return made


def _shared(a: bytes, b: bytes) -> bytes:
    """What both begin with."""
    return bytes(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def text_column(ids: Sequence[str] | pa.Array | np.ndarray) -> pa.Array:
    """Texts as one Arrow array, large string `[n]`."""
    if isinstance(ids, pa.Array):
        return ids if ids.type == pa.large_string() else ids.cast(pa.large_string())
    return pa.array(ids, pa.large_string())


def order_of_ids(ids: Sequence[str] | pa.Array | np.ndarray, born: np.ndarray) -> np.ndarray:
    """The order of rows by id (whole numbers, or UTF-8 bytes), and by birth where an id is there more than once."""
    by_birth = np.arange(len(born)) if (born[1:] >= born[:-1]).all() else np.argsort(born, kind="stable")
    if isinstance(ids, np.ndarray):
        return by_birth[np.argsort(ids[by_birth], kind="stable")]
    texts = text_column(ids)
    in_order = texts if by_birth[0] == 0 and (by_birth[1:] > by_birth[:-1]).all() else texts.take(pa.array(by_birth))
    if pc.all(pc.less_equal(in_order[:-1], in_order[1:])).as_py() is not False:
        return by_birth
    return by_birth[np.asarray(pc.array_sort_indices(in_order)).astype(np.int64)]


def text_arrays(ids: Sequence[str] | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """`ends` (uint32, or uint64 where they need it) and `bytes` of sorted texts, as a segment stores them."""
    texts = text_column(ids)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    ends = offsets[1:] - offsets[0]
    return ends.astype(np.uint32 if not len(ends) or ends[-1] < 2**32 else np.uint64), data
