"""Parts as a table of addresses: to hand their arrays over one by one takes longer than a short scan."""

from typing import Any, NamedTuple

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from abi_jax.wdbx.search.kernels.arrays import TILE, CodeArrays, ListArrays
from abi_jax.wdbx.search.kernels.compile import part
from abi_jax.wdbx.search.kernels.shuffle import BLOCK, HALF

# Columns of the table, int64 `[P, COLUMNS]`: addresses of arrays, 0 where there is none, and how long these are.
ROWS, WIDTH, BASE, CODES, SCALE, OFFSET, ERROR, NAMES, ALLOWED, VECTORS, IDS = range(11)
LISTS, NEAREST, CENTROIDS, CENTROID_SCALE, PENALTY, ENDS = range(11, 17)
MEASURED, REACH, IN_LISTS, NEIGHBOURS, EXPECTED, MIDDLES = range(17, 23)
PRODUCTS, SPACES, ORDER, BOOKS, SQUARES, WANTED = range(23, 29)
COLUMNS = 29
REALS = 3  # of the table, float64: the longest row, the share that may be found, the recall that lists are chosen for


class Measured(NamedTuple):
    """How many rows of each list may be found, int64 `[L]`, and what `Expected` has."""

    in_lists: np.ndarray
    neighbours: np.ndarray
    expected: np.ndarray
    middles: np.ndarray


class Products(NamedTuple):
    """Product codes uint8 `[blocks, M, 16]`, the rows that they are of, int32 `[n]`, centroids and their squares,
    float64 `[M, 16, 4]` and `[M, 16]`, or none.
    """

    codes: np.ndarray
    order: np.ndarray
    books: np.ndarray
    squares: np.ndarray


@intrinsic
def _pointer(context: Any, address: Any, dtype: Any) -> Any:
    kind = types.CPointer(dtype.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(kind))

    return kind(address, dtype), generate


@part(_nrt=True, inline="always")
def codes_at(row):  # type: ignore[no-untyped-def]
    """The `CodeArrays` of a part. row: its row of the table."""
    rows = row[ROWS]
    return CodeArrays(
        carray(_pointer(row[CODES], np.int8), (rows, row[WIDTH])),
        carray(_pointer(row[SCALE], np.float32), rows),
        carray(_pointer(row[OFFSET], np.float32), rows if row[OFFSET] != 0 else 0),
        carray(_pointer(row[ERROR], np.float32), -(-rows // TILE)),
        carray(_pointer(row[NAMES], np.int32), rows if row[NAMES] != 0 else 0),
    )


@part(_nrt=True, inline="always")
def lists_at(row):  # type: ignore[no-untyped-def]
    """Its `ListArrays`."""
    lists = row[LISTS]
    return ListArrays(
        carray(_pointer(row[CENTROIDS], np.int8), (lists, row[WIDTH])),
        carray(_pointer(row[CENTROID_SCALE], np.float32), lists),
        carray(_pointer(row[PENALTY], np.float32), lists),
        carray(_pointer(row[ENDS], np.int64), lists + 1),
    )


@part(_nrt=True, inline="always")
def products_at(row):  # type: ignore[no-untyped-def]
    """Its `Products`."""
    rows, spaces = row[ROWS], row[SPACES]
    return Products(
        carray(_pointer(row[PRODUCTS], np.uint8), (-(-rows // BLOCK), spaces, HALF)),
        carray(_pointer(row[ORDER], np.int32), rows),
        carray(_pointer(row[BOOKS], np.float64), (spaces, 16, 4)),
        carray(_pointer(row[SQUARES], np.float64), (spaces if row[SQUARES] != 0 else 0, 16)),
    )


@part(_nrt=True, inline="always")
def measured_at(row):  # type: ignore[no-untyped-def]
    """What `choose` is told of its lists."""
    return Measured(
        carray(_pointer(row[IN_LISTS], np.int64), row[LISTS]),
        carray(_pointer(row[NEIGHBOURS], np.float64), row[MEASURED]),
        carray(_pointer(row[EXPECTED], np.float64), (row[MEASURED], row[REACH])),
        carray(_pointer(row[MIDDLES], np.int64), row[MEASURED]),
    )


@part(_nrt=True, inline="always")
def allowed_at(row):  # type: ignore[no-untyped-def]
    """Which of its rows may be found, bool `[n]`; empty where all may be."""
    return carray(_pointer(row[ALLOWED], np.bool_), row[ROWS] if row[ALLOWED] != 0 else 0)


@part(_nrt=True, inline="always")
def vectors_at(row, dim):  # type: ignore[no-untyped-def]
    """Its vectors, float32 `[n, D]`."""
    return carray(_pointer(row[VECTORS], np.float32), (row[ROWS], dim))


@part(_nrt=True, inline="always")
def ids_at(row):  # type: ignore[no-untyped-def]
    """Its ids, int64 `[n]`."""
    return carray(_pointer(row[IDS], np.int64), row[ROWS])
