"""What scans kept is ranked by the most it can score; the exact scores of the first decide."""

import numpy as np

from abi_jax.wdbx.search.kernels.compile import kernel, part
from abi_jax.wdbx.search.kernels.heap import push, sift_down, sort_down
from abi_jax.wdbx.search.kernels.scan import leave_out
from abi_jax.wdbx.search.kernels.simd import fetch

FETCHED = 16  # rows of which most are scored
LINE = 16  # float32 of a cache line
CLOSE = 2.0**-21  # scores that float32 may not tell apart: ties are broken by id


@kernel()
def gather(found, upper, numbers, floors, rows, bounds, counts):  # type: ignore[no-untyped-def]
    """Adds what a thread kept, and the last floors leave of it, to rows and bounds `[B, room]`."""
    for query in range(counts.size):
        count = leave_out(found[query], upper[query], numbers[query], floors[query])
        begin = counts[query]
        for i in range(count):
            rows[query, begin + i], bounds[query, begin + i] = found[query, i], upper[query, i]
        counts[query] = begin + count


@kernel()
def decide(  # type: ignore[no-untyped-def]
    metric,
    vectors,
    wanted,
    base,
    begins,
    ends,
    first,
    last,
    queries,
    squares,
    floors,
    rows,
    bounds,
    counts,
    heaps,
    sizes,
    exact,
    scores,
    tied,
):
    """Looks at the vectors `[n, D]` of one part after the other, for queries `first` to `last` of `[B, D]`, float64.

    vectors: rows from number `base` on, or those that `wanted` numbers, if any. begins, ends: whether the part is the
    first, the last. rows int64, bounds float32 `[B, room]`, counts int64 `[B]`: what scans kept; at the end, the best
    rows, best first, and those that tie with the last of them. heaps float64 `[B, k]`, sizes int64 `[B]`, exact float64
    `[B, room]`: what is handed from part to part. scores: float32 `[B, room]`. tied: bool `[B]`, whether two rows score
    the same.
    """
    for query in range(first, last):
        if begins:
            counts[query] = leave_out(rows[query], bounds[query], counts[query], floors[query])
            sort_down(bounds[query], rows[query], counts[query])
            exact[query, : counts[query]] = np.nan
            sizes[query] = 0
        mine = (rows[query], bounds[query], counts[query], heaps[query], exact[query])
        sizes[query] = _rescore(metric, vectors, wanted, base, queries[query], squares[query], mine, sizes[query])
        if ends:
            top_k = heaps.shape[1]
            counts[query] = _best(metric, top_k, rows[query], exact[query], counts[query], scores[query])
            tied[query] = False
            for i in range(1, counts[query]):
                tied[query] |= scores[query, i] == scores[query, i - 1]


@part(error_model="numpy", fastmath={"reassoc", "nsz", "contract"})
def _similarity(metric, vector, query, length):  # type: ignore[no-untyped-def]
    """Exact score, float64: q.x, q.x / (|q| |x|), or -|q - x|^2 (`metric` 0, 1, 2). length: |q|.

    As `exact_scores` has it: a query of length 1 would be rounded first, and what is orthogonal would not score 0.
    """
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
        return made / (np.sqrt(norm) * length)
    return made


@part(error_model="numpy", fastmath={"reassoc", "nsz", "contract"})
def _length(query):  # type: ignore[no-untyped-def]
    made = 0.0
    for j in range(query.size):
        made += query[j] * query[j]
    return np.sqrt(made)


@part()
def _fetch(vectors, rows, base, count):  # type: ignore[no-untyped-def]
    """Has the vectors of `count` rows brought near, all at once: they lie anywhere."""
    for i in range(count):
        row = rows[i] - base
        if row >= 0 and row < vectors.shape[0]:
            for at in range(0, vectors.shape[1], LINE):
                fetch(vectors.ctypes, np.int64(row * vectors.shape[1] + at))


@part(error_model="numpy")
def _rescore(metric, vectors, wanted, base, query, square, kept, size):  # type: ignore[no-untyped-def]
    """Exact scores of rows that are in `vectors`, until bounds are too low; how many the heap then has."""
    rows, bounds, count, heap, exact = kept
    length = _length(query) if metric == 1 else 1.0
    if wanted.size == 0:
        _fetch(vectors, rows, base, min(count, FETCHED))
    for i in range(count):
        row = rows[i] - base
        if wanted.size != 0:
            row = np.searchsorted(wanted, rows[i])
            if row < wanted.size and wanted[row] != rows[i]:
                continue
        if row < 0 or row >= vectors.shape[0]:
            continue
        if size == heap.size:
            least = heap[0] + (square if metric == 2 else 0.0)
            if bounds[i] < least - CLOSE * (abs(least) + square):
                break
        score = _similarity(metric, vectors[row], query, length)
        exact[i] = score
        if size < heap.size:
            push(heap, size, score)
            size += 1
        elif score > heap[0]:
            sift_down(heap, heap.size, score)
    return size


@part(error_model="numpy")
def _best(metric, top_k, rows, exact, count, scores):  # type: ignore[no-untyped-def]
    """Leaves the best `top_k` of rows that have a score, best first, and those that tie with the last; how many."""
    scored = 0
    for i in range(count):
        if not np.isnan(exact[i]):
            rows[scored], scores[scored] = rows[i], exact[i]
            scored += 1
    sort_down(scores, rows, scored)
    while scored > top_k and scores[scored - 1] != scores[top_k - 1]:
        scored -= 1
    if metric == 2:
        for i in range(scored):
            scores[i] = -scores[i]
    return scored
