"""Products of codes with queries, a tile of rows and a few queries at once."""

import numpy as np

from abi_jax.wdbx.search.kernels.arrays import AT_ONCE
from abi_jax.wdbx.search.kernels.compile import part
from abi_jax.wdbx.search.kernels.simd import dots_1, dots_2, dots_4


@part()
def multiply(codes, rows, first, last, queries, order, query, count, products):  # type: ignore[no-untyped-def]
    """Products of rows `first` to `last` (of `rows`, where it has any) with `count` queries, int32 `[count, AT_ONCE]`.

    The queries are those of `order` from `query` on.
    """
    dim, top = np.int64(codes.shape[1]), count - 1
    which = (
        np.int64(order[query]),
        np.int64(order[query + min(1, top)]),
        np.int64(order[query + min(2, top)]),
        np.int64(order[query + min(3, top)]),
    )
    for r in range(first, last, 4):
        b, c, d = min(r + 1, last - 1), min(r + 2, last - 1), min(r + 3, last - 1)
        four = (np.int64(r), np.int64(b), np.int64(c), np.int64(d))
        if rows.size != 0:
            four = (np.int64(rows[r]), np.int64(rows[b]), np.int64(rows[c]), np.int64(rows[d]))
        at = np.int64(r - first)
        if count == 1:
            dots_1(codes.ctypes, four, queries.ctypes, which, dim, products.ctypes, at, AT_ONCE)
        elif count == 2:
            dots_2(codes.ctypes, four, queries.ctypes, which, dim, products.ctypes, at, AT_ONCE)
        else:
            dots_4(codes.ctypes, four, queries.ctypes, which, dim, products.ctypes, at, AT_ONCE)
