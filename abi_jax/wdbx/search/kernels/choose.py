"""Lists that are chosen for each query by how many of their rows may be found. See `search.filtered`."""

import numpy as np

from abi_jax.wdbx.search.kernels.arrays import AT_ONCE, GROUP
from abi_jax.wdbx.search.kernels.compile import kernel, part
from abi_jax.wdbx.search.kernels.lists import score_lists

FLOAT = {"error_model": "numpy", "fastmath": {"nnan", "nsz"}}
NO_LIST = -1


@kernel(**FLOAT)
def choose(  # type: ignore[no-untyped-def]
    centroids,
    scale,
    penalty,
    queries,
    steps,
    first,
    last,
    ends,
    allowed,
    mean,
    neighbours,
    expected,
    middles,
    recall,
    top_k,
    chosen,
    counts,
):
    """Chooses lists for queries `first` to `last`: int32 `[B, L]`, of which the first `counts`, int64 `[B]`, are set.

    centroids, scale, penalty, queries, steps: see `nearest_lists`. ends: of lists. allowed: int64 `[L]`, how many of
    their rows may be found; mean: of all rows, the share. neighbours, expected, middles: of `Expected`.
    """
    lists = scale.size
    products = np.empty((GROUP, AT_ONCE), np.int32)
    scores = np.empty((GROUP, lists), np.float32)
    heap, sums = np.empty(lists, np.int32), np.empty((3, neighbours.size))
    order = np.arange(last)
    for group in range(first, last, GROUP):
        count = min(GROUP, last - group)
        score_lists(centroids, scale, penalty, queries, steps, order, group, count, products, scores)
        for lane in range(count):
            mine = chosen[group + lane]
            measured = (neighbours, expected, middles)
            made = _choose(scores[lane], heap, sums, ends, allowed, mean, *measured, recall, top_k, mine)
            if made < 0:
                made = _every(allowed, mine)
            counts[group + lane] = made


@part(**FLOAT)
def _choose(scores, heap, sums, ends, allowed, mean, neighbours, expected, middles, recall, top_k, mine):  # type: ignore[no-untyped-def]
    """The nearest lists that have any rows, as far as they are needed; how many, -1 where that is not known."""
    measured, reach = expected.shape
    size = scores.size
    for i in range(size):
        heap[i] = i
    for at in range(size // 2 - 1, -1, -1):
        _sink(scores, heap, at, size)
    all_told, found, near = sums
    sums[:] = 0
    which, made, rows = 0, 0, 0
    for rank in range(reach):
        number = heap[0]
        size -= 1
        heap[0] = heap[size]
        _sink(scores, heap, 0, size)
        rows += allowed[number]
        share = allowed[number] / max(1, ends[number + 1] - ends[number])
        for m in range(measured):
            all_told[m] += expected[m, rank]
            found[m] += expected[m, rank] * share
            if rank == middles[m]:
                near[m] = found[m]
        if share > 0:
            mine[made] = number
            made += 1
        while which < measured and rank >= middles[which]:
            total = found[which] + mean * (neighbours[which] - all_told[which])
            if near[which] >= top_k / 2 and total >= top_k:
                if found[which] >= recall * total and rows >= top_k:
                    return made
                break
            which += 1
        if which == measured:
            return -1
    return made if rows >= top_k else -1


@part()
def _every(allowed, mine):  # type: ignore[no-untyped-def]
    """All lists that have any rows, the one that was chosen first, if any, before the others; how many."""
    made = 1 if mine[0] >= 0 else 0
    nearest = mine[0]
    for number in range(allowed.size):
        if allowed[number] > 0 and number != nearest:
            mine[made] = number
            made += 1
    return made


@part(**FLOAT)
def _sink(scores, heap, at, size):  # type: ignore[no-untyped-def]
    """Lets a list sink in a heap of `size` whose first one scores best."""
    number = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and scores[heap[child + 1]] > scores[heap[child]]:
            child += 1
        if scores[heap[child]] <= scores[number]:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = number
