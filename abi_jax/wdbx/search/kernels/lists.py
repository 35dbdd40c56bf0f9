"""Inverted lists: which are nearest to a query, in what order they are looked at, and how they are made."""

import numpy as np

from abi_jax.wdbx.search.kernels.arrays import AT_ONCE, GROUP
from abi_jax.wdbx.search.kernels.compile import kernel, part
from abi_jax.wdbx.search.kernels.heap import push, sift_down, sort_down
from abi_jax.wdbx.search.kernels.multiply import multiply

FLOAT = {"error_model": "numpy", "fastmath": {"nnan", "nsz"}}


@kernel(**FLOAT)
def nearest_lists(centroids, scale, penalty, queries, steps, first, last, chosen):  # type: ignore[no-untyped-def]
    """Of queries `first` to `last` the lists whose centroids score best, best first: int32 `[last - first, nearest]`.

    centroids: int8 `[L, D]` and their scale, float32 `[L]`; `penalty` is taken off. queries: int16 `[B, D]`.
    """
    lists, nearest = scale.size, chosen.shape[1]
    products = np.empty((GROUP, AT_ONCE), np.int32)
    scores = np.empty((GROUP, lists), np.float32)
    heap = np.empty(nearest, np.float32)
    order = np.arange(last)
    for group in range(first, last, GROUP):
        count = min(GROUP, last - group)
        score_lists(centroids, scale, penalty, queries, steps, order, group, count, products, scores)
        for lane in range(count):
            made, mine = scores[lane], chosen[group + lane - first]
            for i in range(nearest):
                push(heap, i, made[i])
            for i in range(nearest, lists):
                if made[i] > heap[0]:
                    sift_down(heap, nearest, made[i])
            taken, least = 0, heap[0]
            for i in range(lists):
                if made[i] > least:
                    mine[taken], heap[taken] = i, made[i]
                    taken += 1
            for i in range(lists):
                if taken == nearest:
                    break
                if made[i] == least:
                    mine[taken], heap[taken] = i, least
                    taken += 1
            sort_down(heap, mine, nearest)


@part(**FLOAT)
def score_lists(centroids, scale, penalty, queries, steps, order, group, count, products, scores):  # type: ignore[no-untyped-def]
    """Scores of all lists for `count` queries of `order` from `group` on, float32 `[GROUP, L]`; see `nearest_lists`."""
    for at in range(0, scale.size, AT_ONCE):
        width = min(AT_ONCE, scale.size - at)
        multiply(centroids, order[:0], at, at + width, queries, order, group, count, products)
        for lane in range(count):
            step = steps[group + lane]
            for i in range(width):
                scores[lane, at + i] = np.float32(products[lane, i]) * (scale[at + i] * step) - penalty[at + i]


@part(_nrt=True)
def arrange(chosen, first, num_lists):  # type: ignore[no-untyped-def]
    """Puts queries that look at a list side by side. The nearest lists come first: floors rise early.

    chosen: as `nearest_lists` leaves it, for queries from `first` on; what is negative is no list. Returns what is
    looked at one after the other: lists, where the queries of each begin in `order`, and how many they are, up to
    `GROUP`; and `order`.
    """
    queries, nearest = chosen.shape
    order = np.empty(queries * nearest, np.int64)
    lists, begins = np.empty(queries * nearest, np.int32), np.empty(queries * nearest, np.int64)
    counts = np.empty(queries * nearest, np.int64)
    made, done = 0, 0
    places = np.zeros(num_lists + 1, np.int64)
    for start, stop in ((0, 1), (1, nearest)):
        if queries == 1:
            order[0] = first
            for j in range(start, stop):
                if chosen[0, j] >= 0:
                    lists[made], begins[made], counts[made] = chosen[0, j], 0, 1
                    made += 1
            continue
        places[:] = 0
        for query in range(queries):
            for j in range(start, stop):
                if chosen[query, j] >= 0:
                    places[chosen[query, j] + 1] += 1
        for number in range(num_lists):
            for at in range(0, places[number + 1], GROUP):
                lists[made], begins[made] = number, done + places[number] + at
                counts[made] = min(GROUP, places[number + 1] - at)
                made += 1
            places[number + 1] += places[number]
        for query in range(queries):
            for j in range(start, stop):
                number = chosen[query, j]
                if number >= 0:
                    order[done + places[number]] = first + query
                    places[number] += 1
        done += places[num_lists]
    return lists[:made], begins[:made], counts[:made], order


@kernel()
def count_allowed(order, ends, allowed, counts):  # type: ignore[no-untyped-def]
    """How many rows of each list may be found, int64 `[L]`. order, ends: of lists. allowed: bool `[n]`."""
    for number in range(counts.size):
        count = 0
        for i in range(ends[number], ends[number + 1]):
            count += allowed[order[i]]
        counts[number] = count


@kernel(**FLOAT)
def assign(codes, scale, first, last, centroids, steps, penalty, lists, scores):  # type: ignore[no-untyped-def]
    """The centroid that scores best for each of rows `first` to `last`, int32, and its score, float32 `[n]`.

    codes, scale: of rows. centroids: int16 `[L, D]`, whose unit is `steps`; `penalty`, float32 `[L]`, is taken off.
    """
    products = np.empty((GROUP, AT_ONCE), np.int32)
    rows = np.empty(0, np.int32)
    order = np.arange(steps.size)
    best, chosen = np.empty(AT_ONCE, np.float32), np.empty(AT_ONCE, np.int32)
    for at in range(first, last, AT_ONCE):
        width = min(AT_ONCE, last - at)
        for i in range(width):
            best[i] = -np.inf
        for group in range(0, steps.size, GROUP):
            count = min(GROUP, steps.size - group)
            multiply(codes, rows, at, at + width, centroids, order, group, count, products)
            for lane in range(count):
                number = np.int32(group + lane)
                step, less = steps[number], penalty[number]
                for i in range(width):
                    value = np.float32(products[lane, i]) * (scale[at + i] * step) - less
                    chosen[i] = number if value > best[i] else chosen[i]
                    best[i] = max(best[i], value)
        for i in range(width):
            lists[at + i], scores[at + i] = chosen[i], best[i]


@kernel()
def add_up(codes, scale, lists, sums, counts):  # type: ignore[no-untyped-def]
    """Adds every row to the sum of its list, float32 `[L, D]`, and counts it."""
    for row in range(lists.size):
        number = lists[row]
        counts[number] += 1
        for j in range(sums.shape[1]):
            sums[number, j] += np.float32(codes[row, j]) * scale[row]
