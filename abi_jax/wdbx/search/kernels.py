"""Search of int8 codes on a CPU, compiled: a fused scan keeps the rows that may be among the best, then exact scores.

Scores are the higher the better (`codes`). A scan goes through ranges: rows, and up to four queries that look at them.
Of every query it keeps the `top_k` best lower bounds in a heap, whose least is a floor: a row whose upper bound is
below it can be left out.
"""

from typing import NamedTuple

import numpy as np

from abi_jax.wdbx.search.compile import njit
from abi_jax.wdbx.search.simd import dots_2x2, dots_2x4, dots_4x1

TILE = 128  # rows whose error is bounded together, and that are multiplied before they are looked at
GROUP = 4  # queries that are multiplied together
OVERFLOW = -1
TINIEST = 1e-35  # of a row's largest number: what is smaller has no code that float32 can scale
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
def scan(  # type: ignore[no-untyped-def]
    codes,
    scale,
    offset,
    error,
    names,
    base,
    allowed,
    starts,
    ends,
    firsts,
    counts,
    rows,
    first,
    last,
    queries,
    order,
    steps,
    lengths,
    slack,
    floors,
    heaps,
    sizes,
    found,
    upper,
    numbers,
):
    """Looks at ranges `first` to `last`, and keeps of each query the rows that may be among the best.

    The arguments are those of `CodeArrays`, whose row 0 is told as `base`, `Ranges`, `QueryArrays` and `Kept`, one by
    one: a tuple takes longer to hand over than a short scan. allowed: bool `[n]`, empty where all rows may be found.
    slack: float32 `[B]`, see `codes`. floors: float32 `[B]`; threads may share it, since any floor ever written holds.
    Returns `OVERFLOW` where there is no room.
    """
    products = np.empty((GROUP, TILE), np.int32)
    scores = np.empty(TILE, np.float32)
    top_k, room = heaps.shape[1], found.shape[1]
    for number in range(first, last):
        at, end = starts[number], ends[number]
        while at < end:
            stop = min(end, (at // TILE + 1) * TILE)
            width = stop - at
            multiply(codes, rows, at, stop, queries, firsts[number], counts[number], products)
            for lane in range(counts[number]):
                query = order[firsts[number] + lane]
                step, length = steps[query], lengths[query]
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
def gather(found, upper, numbers, floors, rows, bounds, counts):  # type: ignore[no-untyped-def]
    """Adds what a thread kept, and the last floors leave of it, to rows and bounds `[B, room]`."""
    for query in range(counts.size):
        count = keep(found[query], upper[query], numbers[query], floors[query])
        begin = counts[query]
        for i in range(count):
            rows[query, begin + i], bounds[query, begin + i] = found[query, i], upper[query, i]
        counts[query] = begin + count


@njit(nogil=True, cache=True, boundscheck=False)
def sort_down(keys, names, count):  # type: ignore[no-untyped-def]
    """Sorts the first `count` of float32 keys from the highest to the lowest, and names with them. Heapsort."""
    for begin in range(count // 2 - 1, -1, -1):
        _settle(keys, names, begin, count)
    for end in range(count - 1, 0, -1):
        keys[0], keys[end] = keys[end], keys[0]
        names[0], names[end] = names[end], names[0]
        _settle(keys, names, 0, end)


@njit(nogil=True, cache=True, boundscheck=False)
def _settle(keys, names, at, size):  # type: ignore[no-untyped-def]
    key, name = keys[at], names[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[at], names[at] = keys[child], names[child]
        at = child
    keys[at], names[at] = key, name


@njit(nogil=True, cache=True, boundscheck=False)
def rank(first, last, rows, bounds, counts):  # type: ignore[no-untyped-def]
    """Sorts rows of queries `first` to `last` by their bounds, the highest first."""
    for query in range(first, last):
        sort_down(bounds[query], rows[query], counts[query])


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "nsz", "contract"})
def similarity(metric, vector, query):  # type: ignore[no-untyped-def]
    """Exact score, float64: q.x, q.x / |x|, or -|q - x|^2 (`metric` 0, 1, 2)."""
    made = 0.0
    if metric == 2:
        for j in range(query.size):
            difference = np.float64(vector[j]) - query[j]
            made += difference * difference
        return -made
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
    metric, vectors, wanted, base, first, last, queries, squares, rows, bounds, counts, heaps, sizes, exact
):
    """Exact scores of the kept rows in `vectors` `[n, D]`: numbers from `base` on, or those `wanted`.

    Queries `first` to `last` of `queries` float64 `[B, D]`. rows, bounds, counts: as `rank` leaves them. heaps: float64
    `[B, k]`, sizes `[B]`: the best exact scores. exact: float64 `[B, room]`, left as it is where a bound is too low.
    """
    top_k = heaps.shape[1]
    for query in range(first, last):
        for i in range(counts[query]):
            row = rows[query, i] - base
            if wanted.size != 0:
                row = np.searchsorted(wanted, rows[query, i])
                if row < wanted.size and wanted[row] != rows[query, i]:
                    continue
            if row < 0 or row >= vectors.shape[0]:
                continue
            if sizes[query] == top_k:
                least = heaps[query, 0] + (squares[query] if metric == 2 else 0.0)
                if bounds[query, i] < least - CLOSE * (abs(least) + squares[query]):
                    break
            score = similarity(metric, vectors[row], queries[query])
            exact[query, i] = score
            if sizes[query] < top_k:
                push(heaps[query], sizes[query], score)
                sizes[query] += 1
            elif score > heaps[query, 0]:
                sift_down(heaps[query], top_k, score)


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
def best(metric, top_k, first, last, rows, exact, counts, scores):  # type: ignore[no-untyped-def]
    """Leaves of each query's rows the best `top_k`, best first, and those that tie with the last; scores: float32.

    exact: as `rescore` leaves it, NaN where there is no score.
    """
    for query in range(first, last):
        scored = 0
        for i in range(counts[query]):
            if not np.isnan(exact[query, i]):
                score = -exact[query, i] if metric == 2 else exact[query, i]
                rows[query, scored] = rows[query, i]
                scores[query, scored] = -score if metric == 2 else score
                scored += 1
        sort_down(scores[query], rows[query], scored)
        if metric == 2:
            for i in range(scored):
                scores[query, i] = -scores[query, i]
        while scored > top_k and scores[query, scored - 1] != scores[query, top_k - 1]:
            scored -= 1
        counts[query] = scored


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy")
def code_queries(queries, unit, most, codes, steps, lengths, left, exact, squares):  # type: ignore[no-untyped-def]
    """Codes up to `most` of float32 queries `[B, D]`, made of length 1 first, if `unit`. See `QueryCodes`."""
    for query in range(queries.shape[0]):
        square, top = 0.0, 0.0
        for j in range(queries.shape[1]):
            square += np.float64(queries[query, j]) ** 2
        factor = 1 / np.sqrt(square) if unit else 1.0
        for j in range(queries.shape[1]):
            exact[query, j] = np.float64(queries[query, j]) * factor
            top = max(top, abs(exact[query, j]))
        steps[query] = top / most if top > 0 else 1
        rest, step = 0.0, np.float64(steps[query])
        for j in range(queries.shape[1]):
            code = np.rint(exact[query, j] / step)
            codes[query, j] = np.int16(code)
            rest += (exact[query, j] - code * step) ** 2
        left[query] = np.sqrt(rest)
        squares[query] = 1.0 if unit else square
        lengths[query] = np.sqrt(squares[query])


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "nsz"})
def assign(codes, scale, first, last, centroids, steps, penalty, lists, scores):  # type: ignore[no-untyped-def]
    """The centroid that scores best for each of rows `first` to `last`, int32, and its score, float32 `[n]`.

    codes, scale: of rows. centroids: int16 `[L + GROUP, D]`, whose unit is `steps`; `penalty`, float32 `[L]`, is
    taken off.
    """
    products = np.empty((GROUP, TILE), np.int32)
    rows = np.empty(0, np.int32)
    best, chosen = np.empty(TILE, np.float32), np.empty(TILE, np.int32)
    for at in range(first, last, TILE):
        width = min(TILE, last - at)
        for i in range(width):
            best[i] = -np.inf
        for group in range(0, steps.size, GROUP):
            multiply(codes, rows, at, at + width, centroids, group, GROUP, products)
            for lane in range(min(GROUP, steps.size - group)):
                number = np.int32(group + lane)
                step, less = steps[number], penalty[number]
                for i in range(width):
                    value = np.float32(products[lane, i]) * (scale[at + i] * step) - less
                    chosen[i] = number if value > best[i] else chosen[i]
                    best[i] = max(best[i], value)
        for i in range(width):
            lists[at + i], scores[at + i] = chosen[i], best[i]


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"nnan", "nsz"})
def nearest_lists(centroids, scale, penalty, queries, steps, first, last, chosen):  # type: ignore[no-untyped-def]
    """Of queries `first` to `last` the lists whose centroids score best, best first: int64 `[B, nearest]`.

    centroids: int8 `[L, D]` and their scale, float32 `[L]`; `penalty` is taken off. queries: int16 `[B + GROUP, D]`.
    """
    lists, nearest = scale.size, chosen.shape[1]
    products = np.empty((GROUP, TILE), np.int32)
    rows = np.empty(0, np.int32)
    scores = np.empty((GROUP, lists), np.float32)
    heap = np.empty(nearest, np.float32)
    for group in range(first, last, GROUP):
        count = min(GROUP, last - group)
        for at in range(0, lists, TILE):
            width = min(TILE, lists - at)
            multiply(centroids, rows, at, at + width, queries, group, count, products)
            for lane in range(count):
                step = steps[group + lane]
                for i in range(width):
                    scores[lane, at + i] = np.float32(products[lane, i]) * (scale[at + i] * step) - penalty[at + i]
        for lane in range(count):
            made = scores[lane]
            for i in range(nearest):
                push(heap, i, made[i])
            for i in range(nearest, lists):
                if made[i] > heap[0]:
                    sift_down(heap, nearest, made[i])
            taken, least = 0, heap[0]
            for i in range(lists):
                if made[i] >= least and taken < nearest:
                    chosen[group + lane, taken], heap[taken] = i, made[i]
                    taken += 1
            sort_down(heap, chosen[group + lane], nearest)


@njit(nogil=True, cache=True, boundscheck=False)
def add_up(codes, scale, lists, sums, counts):  # type: ignore[no-untyped-def]
    """Adds every row to the sum of its list, float32 `[L, D]`, and counts it."""
    for row in range(lists.size):
        number = lists[row]
        counts[number] += 1
        for j in range(sums.shape[1]):
            sums[number, j] += np.float32(codes[row, j]) * scale[row]


@njit(nogil=True, cache=True, boundscheck=False, error_model="numpy", fastmath={"reassoc", "nsz", "nnan", "contract"})
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
