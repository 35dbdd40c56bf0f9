"""Numbers as codes: rows as int8, queries as int16."""

import numpy as np

from abi_jax.wdbx.search.kernels.compile import kernel

TINIEST = 1e-35  # of a row's largest number: what is smaller has no code that float32 can scale


@kernel(error_model="numpy")
def code_queries(queries, unit, most, share, codes, steps, lengths, left, squares, exact):  # type: ignore[no-untyped-def]
    """Codes up to `most` of float32 queries `[B, D]`, made of length 1 first, if `unit`. See `QueryArrays`.

    share: of an error of codes, what counts. exact: float64 `[B, D]`, the queries themselves.
    """
    for query in range(queries.shape[0]):
        square, top = 0.0, 0.0
        for j in range(queries.shape[1]):
            square += np.float64(queries[query, j]) ** 2
        factor = 1 / np.sqrt(square) if unit else 1.0
        for j in range(queries.shape[1]):
            exact[query, j] = np.float64(queries[query, j])
            top = max(top, abs(exact[query, j]) * factor)
        steps[query] = top / most if top > 0 else 1
        rest, step = 0.0, np.float64(steps[query])
        for j in range(queries.shape[1]):
            value = exact[query, j] * factor
            code = np.rint(value / step)
            codes[query, j] = np.int16(code)
            rest += (value - code * step) ** 2
        left[query] = np.sqrt(rest)
        squares[query] = 1.0 if unit else square
        lengths[query] = share * np.sqrt(squares[query])


@kernel(error_model="numpy", fastmath={"reassoc", "nsz", "nnan", "contract"})
def encode(vectors, codes, scale, left, length):  # type: ignore[no-untyped-def]
    """Codes int8 `[n, D]` of float32 rows; of each its scale, the length of what is left, its own, float32 `[n]`."""
    rows, dim = vectors.shape
    for r in range(rows):
        top = np.float32(0)
        for j in range(dim):
            top = max(top, abs(vectors[r, j]))
        step = top / np.float32(127) if top > TINIEST else np.float32(1)  # what is smaller is all left
        inverse = np.float32(1) / step
        rest, square = 0.0, 0.0
        for j in range(dim):
            value = vectors[r, j]
            code = np.rint(value * inverse)
            codes[r, j] = np.int8(code)
            difference = value - code * step
            rest += np.float64(difference) * np.float64(difference)
            square += np.float64(value) * np.float64(value)
        scale[r] = step
        left[r] = np.sqrt(rest)
        length[r] = np.sqrt(square)
