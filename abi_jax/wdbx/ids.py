"""Looking ids up: in sorted columns of segments, by binary search, many at once."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import takewhile
from typing import Protocol

import numpy as np

WORD = 8  # bytes of a text that are compared as one number


class IdColumn(Protocol):
    """The ids of a segment's rows, sorted; an id that was born more than once is there as often."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> list[str] | np.ndarray:
        """The ids of rows."""

    def find(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """The last row of each id, int64 `[n]`; -1 where it is not there."""

    def run(self, id_: str | int) -> range:
        """All rows of an id, in the order of their birth."""


class IntIds:
    """Ids that are whole numbers: int64 `[n]`, ascending."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The ids of rows."""
        return np.asarray(self._values[rows])

    def find(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """The last row of each id; -1 where it is not there."""
        wanted = np.asarray(ids, np.int64)
        rows = np.searchsorted(self._values, wanted, "right").astype(np.int64) - 1
        there = rows >= 0
        there[there] = self._values[rows[there]] == wanted[there]
        return np.where(there, rows, -1)

    def run(self, id_: str | int) -> range:
        """All rows of an id."""
        return range(int(np.searchsorted(self._values, id_)), int(np.searchsorted(self._values, id_, "right")))


class TextIds:
    """Ids that are texts, ascending as UTF-8: the bytes of all one after the other, and where each ends.

    What all of them begin with is looked at once; then eight bytes of each decide, and only ids that share these are
    compared as a whole.
    """

    def __init__(self, ends: np.ndarray, data: np.ndarray) -> None:
        self._ends = ends
        self._data = np.ascontiguousarray(data).data
        self._prefix = _shared(self._at(0), self._at(len(ends) - 1)) if len(ends) else b""
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if len(ends) else np.zeros(0, np.int64)
        first = starts + len(self._prefix)
        words = np.zeros(len(ends), np.uint64)
        for byte in range(WORD if len(ends) else 0):
            at = first + byte
            inside = at < ends
            words = (words << np.uint64(8)) | np.where(inside, data[np.minimum(at, len(data) - 1)], 0).astype(np.uint64)
        self._words = words

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

    def find(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """The last row of each id; -1 where it is not there."""
        wanted = [id_.encode() for id_ in ids]
        skip = len(self._prefix)
        words = [int.from_bytes(each[skip : skip + WORD].ljust(WORD, b"\0"), "big") for each in wanted]
        low = np.searchsorted(self._words, np.array(words, np.uint64)).tolist()
        high = np.searchsorted(self._words, np.array(words, np.uint64), "right").tolist()
        rows = np.full(len(wanted), -1, np.int64)
        for i, (each, first, last) in enumerate(zip(wanted, low, high, strict=True)):
            if first < last and each.startswith(self._prefix):
                row = last - 1 if last - first == 1 else bisect_right(self, each, first, last) - 1
                if row >= first and self._at(row) == each:
                    rows[i] = row
        return rows

    def run(self, id_: str | int) -> range:
        """All rows of an id."""
        wanted = str(id_).encode()
        return range(bisect_left(self, wanted), bisect_right(self, wanted))


def _shared(a: bytes, b: bytes) -> bytes:
    """What both begin with."""
    return bytes(x for x, _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def text_arrays(ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`ends` (uint32, or uint64 where they need it) and `bytes` of sorted texts, as a segment stores them."""
    encoded = [each.encode() for each in ids]
    ends = np.cumsum([len(each) for each in encoded], dtype=np.uint64)
    kind = np.uint32 if not len(ends) or ends[-1] < 2**32 else np.uint64
    return ends.astype(kind), np.frombuffer(b"".join(encoded), np.uint8)
