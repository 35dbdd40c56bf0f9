"""Rows as int8: a quarter of the bytes, with an error that is known, to find out which rows are worth a look.

A row x is s c + r with c int8; a query is q = t h + e with h int16. Scores are higher the better: q.x, q.x / |x|, or
2 q.x - |x|^2. Then |q.x - s t (c.h)| <= |q| |r| + |e| |x|: a row is left out for certain when `top_k` rows score more
than s t (c.h) + |q| |r| + |e| |x|. Where less than all is asked for, |q| |r| counts as it is likely to be.
"""

from dataclasses import dataclass
from functools import cached_property
from threading import Lock

import numpy as np

from abi_jax.wdbx.search.kernels.arrays import TILE, CodeArrays, QueryArrays
from abi_jax.wdbx.search.kernels.coding import code_queries, encode
from abi_jax.wdbx.search.threads import shares

ROWS_AT_ONCE = 1 << 14  # of a type that is turned into float32 first
PADDED = 32  # dimensions are padded to a multiple of so many, the same on every machine
INFLATED = np.float32(1.0001)  # errors are computed in float32 themselves
LARGEST = 32767
SMALLEST = np.float64(1e-300)
NAMELESS = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Codes:
    """Codes of rows, whose scale has in it what the metric makes of it. longest: the largest |x|, 1 under cosine."""

    arrays: CodeArrays
    longest: float

    def __len__(self) -> int:
        return len(self.arrays.scale)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where the codes of rows stand, int32."""
        return (self.inverse[rows] if len(self.arrays.names) else rows).astype(np.int32)

    @cached_property
    def inverse(self) -> np.ndarray:
        """Where the code of each row stands, int32 `[n]`."""
        made = np.empty(len(self), np.int32)
        made[self.arrays.names] = np.arange(len(self), dtype=np.int32)
        return made

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(each.nbytes for each in self.arrays)


class CodesMaker:
    """Codes of rows that are only ever added to: made when they are asked for, each row once."""

    def __init__(self, metric: str, dim: int, dtype: np.dtype, named: bool = False) -> None:
        """named: whether codes stand in another order than rows."""
        self._named = named
        self._metric = metric
        self._dim = dim
        self._as_they_are = dtype == np.int8 and dim % PADDED == 0
        self._lock = Lock()
        self._made = 0
        self._longest = 0.0
        self._codes = np.zeros((0, -(-dim // PADDED) * PADDED), np.int8)
        self._scale = np.zeros(0, np.float32)
        self._offset = np.zeros(0, np.float32)
        self._error = np.zeros(0, np.float32)

    def of(self, vectors: np.ndarray, names: np.ndarray = NAMELESS) -> Codes:
        """Codes of `vectors` `[n, D]`, which begin with those of every call before; in the order of `names`, if any."""
        count = len(vectors)
        with self._lock:
            if count > self._made:
                self._make_room(count)
                self._make(vectors, names, self._made, count)
                self._made = count
            codes = vectors if self._as_they_are and not len(names) else self._codes[:count]
            tiles = self._error[: -(-count // TILE)]
            offset = self._offset[:count]
            arrays = CodeArrays(np.asarray(codes), self._scale[:count], offset, tiles, names)
            return Codes(arrays, self._longest)

    def _make_room(self, count: int) -> None:
        """Arrays that are large enough; those in use stay as they are."""
        if count <= len(self._scale):
            return
        rows = max(count, 2 * len(self._scale) if self._made else 0)
        self._codes = _longer(self._codes, 0 if self._as_they_are and not self._named else rows)
        self._scale = _longer(self._scale, rows)
        self._error = _longer(self._error, -(-rows // TILE))
        self._offset = _longer(self._offset, rows if self._metric == "l2" else 0)

    def _make(self, vectors: np.ndarray, names: np.ndarray, begin: int, end: int) -> None:
        left, length = np.empty(end - begin, np.float32), np.empty(end - begin, np.float32)

        def fill(first: int, last: int) -> None:
            for start in range(begin + first, begin + last, ROWS_AT_ONCE):
                rows = slice(start, min(start + ROWS_AT_ONCE, begin + last))
                about = slice(rows.start - begin, rows.stop - begin)
                given = vectors[names[rows]] if len(names) else vectors[rows]
                block = np.ascontiguousarray(given, np.float32)
                if vectors.dtype == np.int8:
                    if len(self._codes):
                        self._codes[rows, : self._dim] = given
                    self._scale[rows], left[about] = 1, 0
                    length[about] = np.sqrt(np.square(block).sum(axis=1))
                else:
                    encode(block, self._codes[rows], self._scale[rows], left[about], length[about])

        shares(end - begin, fill)
        unit = length if self._metric == "cosine" else np.float32(1)
        double = np.float32(2 if self._metric == "l2" else 1)
        scaled = self._scale[begin:end].astype(np.float64) * double / np.maximum(unit, SMALLEST)
        self._scale[begin:end] = np.minimum(scaled, np.finfo(np.float32).max)
        if self._metric == "l2":
            self._offset[begin:end] = -np.square(length)
        error = np.zeros(-(-end // TILE) * TILE - begin // TILE * TILE, np.float32)
        error[begin % TILE :][: end - begin] = np.minimum(left / np.maximum(unit, SMALLEST), 1e30) * double * INFLATED
        tiles = self._error[begin // TILE : -(-end // TILE)]
        np.maximum(tiles, error.reshape(-1, TILE).max(axis=1, initial=0), out=tiles)
        self._longest = max(self._longest, 1.0 if self._metric == "cosine" else float(length.max(initial=0)))


def _longer(array: np.ndarray, rows: int) -> np.ndarray:
    made = np.zeros((rows, *array.shape[1:]), array.dtype)
    made[: len(array)] = array
    return made


@dataclass(frozen=True)
class QueryCodes:
    """Queries as codes, of length 1 under cosine; and as they are, float64 `[B, D]`."""

    metric: str
    arrays: QueryArrays
    exact: np.ndarray

    def __len__(self) -> int:
        return len(self.exact)


def largest_code(dim: int) -> int:
    """The largest code of queries: int32 holds the sum of as many products with int8."""
    return min(LARGEST, (2**31 - 1) // (128 * dim))


def make_query_codes(metric: str, queries: np.ndarray, share: float = 1.0) -> QueryCodes:
    """Codes of queries float32 `[B, D]`. share: of the largest error of codes, what counts."""
    count, dim = queries.shape
    padded = -(-dim // PADDED) * PADDED
    codes = np.empty((count, padded), np.int16) if padded == dim else np.zeros((count, padded), np.int16)
    steps, lengths = np.empty((2, count), np.float32)
    left, squares = np.empty((2, count))
    exact = np.empty((count, dim))
    given = np.ascontiguousarray(queries, np.float32)
    code_queries(given, metric == "cosine", largest_code(padded), share, codes, steps, lengths, left, squares, exact)
    return QueryCodes(metric, QueryArrays(codes, steps, lengths, left, squares), exact)
