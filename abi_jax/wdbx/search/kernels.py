"""Search of int8 codes on a CPU, compiled: a fused scan keeps the rows that may be among the best, then exact scores.

Scores are the higher the better (`codes`). A scan goes through ranges: rows, and up to four queries that look at them.
Of every query it keeps the `top_k` best lower bounds in a heap, whose least is a floor: a row whose upper bound is
below it can be left out.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from abi_jax.wdbx.search.simd import dots_2x2, dots_2x4, dots_4x1

TILE = 128  # rows whose error is bounded together, and that are multiplied before they are looked at
GROUP = 4  # queries that are multiplied together
OVERFLOW = -1
CLOSE = 2.0**-21  # scores that float32 may not tell apart: ties are broken by id


class CodeArrays(NamedTuple):
    """Rows as codes: int8 `[n, D]`, float32 `[n]` scale and offset (or empty), and the largest error of each tile.

    names: int32 `[n]`, the rows that codes are of; empty where codes stand in the order of rows.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    error: np.ndarray
    names: np.ndarray


class QueryArrays(NamedTuple):
    """Queries as codes: int16 `[Q + GROUP, D]`, int64 `[Q]` which query each is of; float32 `[B]` steps and lengths."""

    codes: np.ndarray
    order: np.ndarray
    steps: np.ndarray
    lengths: np.ndarray


class Ranges(NamedTuple):
    """What is looked at: of each range its codes (or those of `rows`, if any), its first query, and how many."""

    starts: np.ndarray
    ends: np.ndarray
    firsts: np.ndarray
    counts: np.ndarray
    rows: np.ndarray


class Kept(NamedTuple):
    """What is kept of each query: a heap of lower bounds, float32 `[B, k]`, and its size, int64 `[B]`; rows that may be
    among the best, int64 `[B, room]`, their upper bounds, float32, and how many, int64 `[B]`.
    """

    heaps: np.ndarray
    sizes: np.ndarray
    found: np.ndarray
    upper: np.ndarray
    numbers: np.ndarray


@njit(nogil=True, cache=True, boundscheck=False)
def multiply(codes, rows, first, last, queries, query, count, products):  # type: ignore[no-untyped-def]
    """Products of rows `first` to `last` (of `rows`, where it has any) with `count` queries, int32 `[count, TILE]`."""
    dim = codes.shape[1]
    if rows.size == 0:
        if count == 1:
            for r in range(first, last, 4):
                dots_4x1(
                    codes.ctypes,
                    r,
                    min(r + 1, last - 1),
                    min(r + 2, last - 1),
                    min(r + 3, last - 1),
                    queries.ctypes,
                    query,
                    dim,
                    products.ctypes,
                    r - first,
                    TILE,
                )
        elif count == 2:
            for r in range(first, last, 2):
                dots_2x2(
                    codes.ctypes,
                    r,
                    min(r + 1, last - 1),
                    r,
                    r,
                    queries.ctypes,
                    query,
                    dim,
                    products.ctypes,
                    r - first,
                    TILE,
                )
        else:
            for r in range(first, last, 2):
                dots_2x4(
                    codes.ctypes,
                    r,
                    min(r + 1, last - 1),
                    r,
                    r,
                    queries.ctypes,
                    query,
                    dim,
                    products.ctypes,
                    r - first,
                    TILE,
                )
    elif count == 1:
        for r in range(first, last, 4):
            dots_4x1(
                codes.ctypes,
                rows[r],
                rows[min(r + 1, last - 1)],
                rows[min(r + 2, last - 1)],
                rows[min(r + 3, last - 1)],
                queries.ctypes,
                query,
                dim,
                products.ctypes,
                r - first,
                TILE,
            )
    else:
        for r in range(first, last, 2):
            dots_2x4(
                codes.ctypes,
                rows[r],
                rows[min(r + 1, last - 1)],
                0,
                0,
                queries.ctypes,
                query,
                dim,
                products.ctypes,
                r - first,
                TILE,
            )


@njit(nogil=True, cache=True, boundscheck=False)
def sift_down(heap, size, value):  # type: ignore[no-untyped-def]
    """Puts `value` in the place of the least of a heap of `size`."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value


@njit(nogil=True, cache=True, boundscheck=False)
def push(heap, size, value):  # type: ignore[no-untyped-def]
    """Adds `value` to a heap of `size`, least first."""
    at = size
    while at > 0 and heap[(at - 1) // 2] > value:
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = value


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "nsz"})
def scan(part, base, allowed, ranges, first, last, queries, slack, floors, kept):  # type: ignore[no-untyped-def]
    """Looks at ranges `first` to `last`, and keeps of each query the rows that may be among the best.

    part: `CodeArrays`, whose row 0 is told as `base`. allowed: bool `[n]`, empty where all rows may be found. slack:
    float32 `[B]`, see `codes`. floors: float32 `[B]`; threads may share it, since any floor ever written holds. Returns
    `OVERFLOW` where there is no room.
    """
    codes, scale, offset, error, names = part
    starts, ends, firsts, counts, rows = ranges
    heaps, sizes, found, upper, numbers = kept
    products = np.empty((GROUP, TILE), np.int32)
    scores = np.empty(TILE, np.float32)
    top_k, room = heaps.shape[1], found.shape[1]
    for number in range(first, last):
        at, end = starts[number], ends[number]
        while at < end:
            stop = min(end, (at // TILE + 1) * TILE)
            width = stop - at
            multiply(codes, rows, at, stop, queries.codes, firsts[number], counts[number], products)
            for lane in range(counts[number]):
                query = queries.order[firsts[number] + lane]
                step, length = queries.steps[query], queries.lengths[query]
                margin = np.float32(0)
                if rows.size == 0:
                    margin = length * error[at // TILE] + slack[query]
                    best = np.float32(-np.inf)
                    if offset.size == 0:
                        for i in range(width):
                            value = np.float32(products[lane, i]) * (scale[at + i] * step)
                            scores[i] = value
                            best = max(best, value)
                    else:
                        for i in range(width):
                            value = np.float32(products[lane, i]) * (scale[at + i] * step) + offset[at + i]
                            scores[i] = value
                            best = max(best, value)
                    if best + margin < floors[query]:
                        continue
                for i in range(width):
                    place = at + i
                    value = scores[i]
                    if rows.size != 0:
                        place = np.int64(rows[at + i])
                        margin = length * error[place // TILE] + slack[query]
                        value = np.float32(products[lane, i]) * (scale[place] * step)
                        if offset.size != 0:
                            value += offset[place]
                    if value + margin < floors[query]:
                        continue
                    row = np.int64(names[place]) if names.size != 0 else place
                    if allowed.size != 0 and not allowed[row]:
                        continue
                    low, size = value - margin, sizes[query]
                    if size < top_k:
                        push(heaps[query], size, low)
                        sizes[query] = size + 1
                    elif low > heaps[query, 0]:
                        sift_down(heaps[query], top_k, low)
                    if sizes[query] == top_k and heaps[query, 0] > floors[query]:
                        floors[query] = heaps[query, 0]
                    count = numbers[query]
                    if count == room:
                        count = keep(found[query], upper[query], count, floors[query])
                        numbers[query] = count
                        if count > room - room // 4:
                            return OVERFLOW
                    found[query, count] = base + row
                    upper[query, count] = value + margin
                    numbers[query] = count + 1
            at = stop
    return 0


@njit(nogil=True, cache=True, boundscheck=False)
def keep(found, upper, count, floor):  # type: ignore[no-untyped-def]
    """Moves to the front the rows whose upper bound reaches `floor`; how many there are."""
    kept = 0
    for i in range(count):
        if upper[i] >= floor:
            found[kept], upper[kept] = found[i], upper[i]
            kept += 1
    return kept


@njit(nogil=True, cache=True, boundscheck=False)
def gather(kept, floors, rows, bounds, counts):  # type: ignore[no-untyped-def]
    """Adds what a thread kept, and the last floors leave of it, to rows and bounds `[B, room]`."""
    for query in range(counts.size):
        count = keep(kept.found[query], kept.upper[query], kept.numbers[query], floors[query])
        begin = counts[query]
        rows[query, begin : begin + count] = kept.found[query, :count]
        bounds[query, begin : begin + count] = kept.upper[query, :count]
        counts[query] = begin + count


@njit(nogil=True, cache=True, boundscheck=False)
def rank(rows, bounds, counts):  # type: ignore[no-untyped-def]
    """Sorts rows by their bounds, the highest first."""
    for query in range(counts.size):
        count = counts[query]
        order = np.argsort(-bounds[query, :count])
        rows[query, :count] = rows[query, :count][order]
        bounds[query, :count] = bounds[query, :count][order]


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})
def similarity(metric, vector, query, square):  # type: ignore[no-untyped-def]
    """Exact score, float64: q.x, q.x / |x|, or |q|^2 - |q - x|^2 (`metric` 0, 1, 2; `square` is |q|^2)."""
    made = 0.0
    if metric == 2:
        for j in range(query.size):
            difference = np.float64(vector[j]) - query[j]
            made += difference * difference
        return square - made
    for j in range(query.size):
        made += np.float64(vector[j]) * query[j]
    if metric == 1:
        norm = 0.0
        for j in range(query.size):
            norm += np.float64(vector[j]) * np.float64(vector[j])
        return made / np.sqrt(norm)
    return made


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
def rescore(  # type: ignore[no-untyped-def]
    metric, vectors, base, first, last, queries, squares, rows, bounds, counts, heaps, sizes, exact
):
    """Exact scores of those of the kept rows that are in `vectors` `[n, D]`, whose first has number `base`.

    Queries `first` to `last` of `queries` float64 `[B, D]`. rows, bounds, counts: as `rank` leaves them. heaps: float64
    `[B, k]`, sizes `[B]`: the best exact scores. exact: float64 `[B, room]`, left as it is where a bound is too low.
    """
    top_k = heaps.shape[1]
    for query in range(first, last):
        for i in range(counts[query]):
            row = rows[query, i] - base
            if row < 0 or row >= vectors.shape[0]:
                continue
            if sizes[query] == top_k:
                least = heaps[query, 0]
                if bounds[query, i] < least - CLOSE * (abs(least) + squares[query]):
                    break
            score = similarity(metric, vectors[row], queries[query], squares[query])
            exact[query, i] = score
            if sizes[query] < top_k:
                push(heaps[query], sizes[query], score)
                sizes[query] += 1
            elif score > heaps[query, 0]:
                sift_down(heaps[query], top_k, score)


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "nsz", "nnan", "contract"})
def encode(vectors, codes, scale, left, length):  # type: ignore[no-untyped-def]
    """Codes int8 `[n, D]` of float32 rows; of each its scale, the length of what is left, its own, float32 `[n]`."""
    rows, dim = vectors.shape
    for r in range(rows):
        top = np.float32(0)
        for j in range(dim):
            top = max(top, abs(vectors[r, j]))
        step = top / np.float32(127) if top > 0 else np.float32(1)
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
