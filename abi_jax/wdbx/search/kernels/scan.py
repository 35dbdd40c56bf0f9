"""Scans: products of codes with queries, of which those rows are kept that may be among the best."""

import numpy as np

from abi_jax.wdbx.search.kernels.arrays import AT_ONCE, GROUP, OVERFLOW, ROUNDING, TILE, CodeArrays, Kept, QueryArrays
from abi_jax.wdbx.search.kernels.compile import kernel, part
from abi_jax.wdbx.search.kernels.heap import push, sift_down
from abi_jax.wdbx.search.kernels.lists import arrange
from abi_jax.wdbx.search.kernels.multiply import multiply
from abi_jax.wdbx.search.kernels.simd import BITS, PICKED, first_bit, floor_of, reaching

CAREFUL = np.float32(2.0**-22)  # of a floor less what it is off by: more than rounding takes from it
FLOAT = {"error_model": "numpy", "fastmath": {"nnan", "nsz"}}


@kernel(**FLOAT)
def scan_tiles(  # type: ignore[no-untyped-def]
    codes,
    scale,
    offset,
    error,
    names,
    longest,
    base,
    allowed,
    rows,
    first,
    last,
    queries,
    steps,
    lengths,
    left,
    squares,
    floors,
    heaps,
    sizes,
    found,
    upper,
    numbers,
):
    """Looks at rows `first` to `last` of all codes, or of `rows` where it has any, for every query.

    The arguments are those of `CodeArrays`, whose longest row is `longest` and row 0 is told as `base`, `QueryArrays`
    and `Kept`. allowed: bool `[n]`, empty where all rows may be found. floors: float32 `[B]`; threads may share it,
    since any floor ever written holds. Returns `OVERFLOW` where there is no room.
    """
    of = CodeArrays(codes, scale, offset, error, names)
    asked = QueryArrays(queries, steps, lengths, left, squares)
    kept = Kept(heaps, sizes, found, upper, numbers)
    slack = np.empty(steps.size, np.float32)
    slack_of(longest, offset.size != 0, asked, slack)
    products, scores = np.empty((GROUP, AT_ONCE), np.int32), np.empty(2 * AT_ONCE, np.float32)
    order = np.arange(steps.size)
    return look_in_tiles(of, base, allowed, rows, first, last, asked, slack, floors, kept, order, products, scores)


@part(**FLOAT)
def look_in_tiles(of, base, allowed, rows, first, last, asked, slack, floors, kept, order, products, scores):  # type: ignore[no-untyped-def]
    """What `scan_tiles` does. order: int64 `[B]`, the numbers of queries. products, scores: room for those of a block,
    scores twice."""
    at = first
    while at < last:
        stop = min(last, (at // AT_ONCE + 1) * AT_ONCE)
        for group in range(0, order.size, GROUP):
            count = min(GROUP, order.size - group)
            multiply(of.codes, rows, at, stop, asked.codes, order, group, count, products)
            for lane in range(count):
                query = group + lane
                if rows.size != 0:
                    full = _look_at(
                        of, base, allowed, rows, at, stop, asked, slack, floors, kept, query, products, lane
                    )
                else:
                    full = _look(of, base, allowed, at, stop, asked, slack, floors, kept, query, products, lane, scores)
                if full:
                    return OVERFLOW
        at = stop
    return 0


@kernel(**FLOAT)
def scan_lists(  # type: ignore[no-untyped-def]
    ends,
    chosen,
    codes,
    scale,
    offset,
    error,
    names,
    longest,
    base,
    allowed,
    first,
    last,
    queries,
    steps,
    lengths,
    left,
    squares,
    floors,
    heaps,
    sizes,
    found,
    upper,
    numbers,
):
    """Looks at lists that were chosen for queries `first` to `last`.

    ends: of lists. chosen: int32 `[B, W]`, as `arrange` is given it. The other arguments: see `scan_tiles`.
    """
    of = CodeArrays(codes, scale, offset, error, names)
    asked = QueryArrays(queries, steps, lengths, left, squares)
    kept = Kept(heaps, sizes, found, upper, numbers)
    slack = np.empty(steps.size, np.float32)
    slack_of(longest, offset.size != 0, asked, slack)
    lists, begins, counts, order = arrange(chosen[first:last], first, ends.size - 1)
    products, scores = np.empty((GROUP, AT_ONCE), np.int32), np.empty(2 * AT_ONCE, np.float32)
    return look_in_lists(
        of, base, allowed, ends, lists, begins, counts, asked, slack, floors, kept, order, products, scores
    )


@part(**FLOAT)
def look_in_lists(of, base, allowed, ends, lists, begins, counts, asked, slack, floors, kept, order, products, scores):  # type: ignore[no-untyped-def]
    """What `scan_lists` does, with what `arrange` makes of the lists that were chosen."""
    for number in range(lists.size):
        at, end = ends[lists[number]], ends[lists[number] + 1]
        while at < end:
            stop = min(end, (at // AT_ONCE + 1) * AT_ONCE)
            multiply(of.codes, order[:0], at, stop, asked.codes, order, begins[number], counts[number], products)
            for lane in range(counts[number]):
                query = order[begins[number] + lane]
                if _look(of, base, allowed, at, stop, asked, slack, floors, kept, query, products, lane, scores):
                    return OVERFLOW
            at = stop
    return 0


@part()
def slack_of(longest, squared, asked, made):  # type: ignore[no-untyped-def]
    """What scores may be off besides the error of the rows, float32 `[B]`; see `search.codes`."""
    for query in range(made.size):
        off = longest * (asked.left[query] + ROUNDING * asked.lengths[query])
        if squared:
            off = 2 * off + ROUNDING * (longest**2 + asked.squares[query])
        made[query] = off


@part(**FLOAT)
def _look(of, base, allowed, at, stop, asked, slack, floors, kept, query, products, lane, scores):  # type: ignore[no-untyped-def]
    """Keeps rows `at` to `stop`, which are of one block, that reach the floor; whether there is no room.

    products: of which those of `query` are in row `lane`.
    """
    step = asked.steps[query]
    begin, count = np.uint64(at), np.uint64(stop - at)  # what may be negative is not looked at many at once
    if of.offset.size == 0:
        for i in range(count):
            scores[i] = np.float32(products[lane, i]) * (of.scale[begin + i] * step)
    else:
        for i in range(count):
            scores[i] = np.float32(products[lane, i]) * (of.scale[begin + i] * step) + of.offset[begin + i]
    length, left, top_k = asked.lengths[query], slack[query], kept.heaps.shape[1]
    if floors[query] == -np.inf and top_k <= PICKED and count >= 2 * PICKED:
        _begin(of, allowed, at, stop, length, left, floors, query, top_k, scores)
    first = np.int64(0)
    while at + first < stop:
        tile = (at + first) // TILE
        end = min(stop, (tile + 1) * TILE) - at
        margin = length * of.error[tile] + left
        least = floors[query] - margin
        least -= abs(least) * CAREFUL
        while first < end:
            bits = reaching(scores.ctypes, first, np.float32(least))
            if first + BITS > end:
                bits &= (1 << (end - first)) - 1
            while bits != 0:
                i = first + first_bit(bits)
                bits &= bits - 1
                value = scores[i]
                if value + margin >= floors[query]:
                    row = np.int64(of.names[at + i]) if of.names.size != 0 else at + i
                    if (allowed.size == 0 or allowed[row]) and _keep(kept, floors, query, base + row, value, margin):
                        return True
            first += BITS
        first = end
    return False


@part(**FLOAT)
def _begin(of, allowed, at, stop, length, left, floors, query, top_k, scores):  # type: ignore[no-untyped-def]
    """Gives a query its first floor, if `top_k` of the rows `at` to `stop` give it one; their scores are there.

    Without it nearly all of these rows would be kept, each by a branch that nothing foretells.
    """
    first = at
    while first < stop:
        tile = first // TILE
        end = min(stop, (tile + 1) * TILE)
        margin = length * of.error[tile] + left
        for i in range(np.uint64(first - at), np.uint64(end - at)):
            scores[AT_ONCE + i] = scores[i] - margin
        first = end
    if allowed.size != 0:
        for i in range(stop - at):
            row = np.int64(of.names[at + i]) if of.names.size != 0 else at + i
            if not allowed[row]:
                scores[AT_ONCE + i] = -np.inf
    found = floor_of(scores.ctypes, AT_ONCE, stop - at, top_k)
    if found > floors[query] and found < np.inf:
        floors[query] = found


@part(**FLOAT)
def _look_at(of, base, allowed, rows, at, stop, asked, slack, floors, kept, query, products, lane):  # type: ignore[no-untyped-def]
    """Keeps those of `rows` `at` to `stop` that reach the floor; whether there is no room."""
    step, length = asked.steps[query], asked.lengths[query]
    for i in range(stop - at):
        place = np.int64(rows[at + i])
        margin = length * of.error[place // TILE] + slack[query]
        value = np.float32(products[lane, i]) * (of.scale[place] * step)
        if of.offset.size != 0:
            value += of.offset[place]
        if value + margin >= floors[query]:
            row = np.int64(of.names[place]) if of.names.size != 0 else place
            if (allowed.size == 0 or allowed[row]) and _keep(kept, floors, query, base + row, value, margin):
                return True
    return False


@part(**FLOAT)
def _keep(kept, floors, query, row, value, margin):  # type: ignore[no-untyped-def]
    """Keeps a row, and raises the floor where it can; whether there is no room."""
    heap, top_k, room = kept.heaps[query], kept.heaps.shape[1], kept.found.shape[1]
    low, size = value - margin, kept.sizes[query]
    if size < top_k:
        push(heap, size, low)
        kept.sizes[query] = size + 1
    elif low > heap[0]:
        sift_down(heap, top_k, low)
    if kept.sizes[query] == top_k and heap[0] > floors[query]:
        floors[query] = heap[0]
    count = kept.numbers[query]
    if count == room:
        count = leave_out(kept.found[query], kept.upper[query], count, floors[query])
        kept.numbers[query] = count
        if count > room - room // 4:
            return True
    kept.found[query, count], kept.upper[query, count] = row, value + margin
    kept.numbers[query] = count + 1
    return False


@part()
def leave_out(found, upper, count, floor):  # type: ignore[no-untyped-def]
    """Moves to the front the rows whose upper bound reaches `floor`; how many there are."""
    kept = 0
    for i in range(count):
        if upper[i] >= floor:
            found[kept], upper[kept] = found[i], upper[i]
            kept += 1
    return kept
