"""Scans of product codes: of each query the rows are kept whose sums are the highest. See `search.products`."""

import numpy as np

from abi_jax.wdbx.search.kernels.compile import kernel, part
from abi_jax.wdbx.search.kernels.shuffle import BLOCK, HALF, block_sums
from abi_jax.wdbx.search.kernels.simd import first_bit

CHUNK = 2048  # rows that all queries look at before they go on: their codes stay in cache
PLACES = (1 << 31) - 1
SUM = 1 << 32  # a key is a sum times that, and more the earlier a row comes: no two are the same
LARGEST = (1 << 16) - 1


@kernel()
def scan_products(codes, order, allowed, first, last, tables, wanted, keys, numbers, least):  # type: ignore[no-untyped-def]
    """Looks at the rows in places `first` to `last` for every query.

    codes: uint8 `[blocks, M, 16]`; order: int32 `[n]`, the row in each place; allowed: bool `[n]`, by row, empty where
    all may be found. tables: uint8 `[B, M, 16]`. wanted: rows a query. keys: int64 `[B, room]`, of which `numbers`,
    int64 `[B]`, are there; `room` is more than `wanted`. least: int64 `[B]`, what keys must be more than.
    """
    sums = np.empty(BLOCK, np.uint16)
    for at in range(first, last, CHUNK):
        for query in range(numbers.size):
            _look(codes, order, allowed, at, min(last, at + CHUNK), tables, query, wanted, keys, numbers, least, sums)


@kernel()
def scan_product_lists(  # type: ignore[no-untyped-def]
    codes, order, allowed, ends, chosen, first, last, tables, wanted, keys, numbers, least
):
    """Looks at lists that were chosen for queries `first` to `last`: int32 `[B, W]`; what is negative is no list.

    ends: int64 `[L + 1]`, of lists. The other arguments: see `scan_products`.
    """
    sums = np.empty(BLOCK, np.uint16)
    for query in range(first, last):
        for number in chosen[query]:
            if number >= 0:
                begin, end = ends[number], ends[number + 1]
                _look(codes, order, allowed, begin, end, tables, query, wanted, keys, numbers, least, sums)


@kernel()
def best_keys(wanted, keys, numbers, least, made):  # type: ignore[no-untyped-def]
    """Puts the `wanted` highest keys of each query first in `made`, int64 `[B, wanted]`."""
    for query in range(numbers.size):
        if numbers[query] > wanted:
            leave(keys, numbers, least, query, wanted)
        for i in range(numbers[query]):
            made[query, i] = keys[query, i]


@part()
def _look(codes, order, allowed, at, end, tables, query, wanted, keys, numbers, least, sums):  # type: ignore[no-untyped-def]
    for block in range(at // BLOCK, (end + BLOCK - 1) // BLOCK):
        floor = max(0, least[query]) // SUM
        bits = block_sums(codes, block, tables, query, floor, sums)
        begin = block * BLOCK
        if begin < at:
            bits &= ~((1 << (at - begin)) - 1)
        if begin + BLOCK > end:
            bits &= (1 << (end - begin)) - 1
        while bits != 0:
            i = first_bit(bits)
            bits &= bits - 1
            key = np.int64(sums[i]) * SUM + (PLACES - (begin + i))
            if key > least[query] and (allowed.size == 0 or allowed[order[begin + i]]):
                if numbers[query] == keys.shape[1]:
                    leave(keys, numbers, least, query, wanted)
                    if key <= least[query]:
                        continue
                keys[query, numbers[query]] = key
                numbers[query] += 1


@part()
def leave(keys, numbers, least, query, wanted):  # type: ignore[no-untyped-def]
    """Leaves the `wanted` highest of more keys, the lowest of these last. Quickselect (Hoare, CACM 4, 1961)."""
    mine, low, high = keys[query], 0, numbers[query] - 1
    while low < high:
        pivot, i, j = mine[(low + high) // 2], low, high
        while i <= j:
            while mine[i] > pivot:
                i += 1
            while mine[j] < pivot:
                j -= 1
            if i <= j:
                mine[i], mine[j] = mine[j], mine[i]
                i += 1
                j -= 1
        if wanted - 1 <= j:
            high = j
        elif wanted - 1 >= i:
            low = i
        else:
            break
    numbers[query], least[query] = wanted, mine[wanted - 1]


@kernel()
def ranks_of(codes, tables, query, count, places, ranks):  # type: ignore[no-untyped-def]
    """How many of `count` rows have a sum as high as that of each of `places` or a higher one, int64."""
    sums = np.empty(BLOCK, np.uint16)
    histogram = np.zeros(LARGEST + 2, np.int64)
    for block in range((count + BLOCK - 1) // BLOCK):
        block_sums(codes, block, tables, query, 0, sums)
        for i in range(min(BLOCK, count - block * BLOCK)):
            histogram[sums[i]] += 1
    for value in range(LARGEST - 1, -1, -1):
        histogram[value] += histogram[value + 1]
    for i in range(places.size):
        block_sums(codes, places[i] // BLOCK, tables, query, 0, sums)
        ranks[i] = histogram[sums[places[i] % BLOCK]]


@kernel(error_model="numpy")
def make_tables(queries, books, squares, scores, tables):  # type: ignore[no-untyped-def]
    """What each of sixteen centroids adds to the sums of queries float64 `[B, D]`, uint8 `[B, M, 16]`.

    books: float64 `[M, 16, d]`; of a query, dimensions past D are zeros. squares: float64 `[M, 16]`, of the lengths of
    centroids under l2, else empty. scores: room for those of one query, float64 `[M, 16]`.
    """
    spaces, centroids, dim = books.shape
    for query in range(queries.shape[0]):
        widest, total = 0.0, 0.0
        for m in range(spaces):
            least, most = np.inf, -np.inf
            for k in range(centroids):
                score = 0.0
                for j in range(min(dim, queries.shape[1] - m * dim)):
                    score += queries[query, m * dim + j] * books[m, k, j]
                if squares.size != 0:
                    score = 2 * score - squares[m, k]
                scores[m, k] = score
                least, most = min(least, score), max(most, score)
            for k in range(centroids):
                scores[m, k] -= least
            widest, total = max(widest, most - least), total + (most - least)
        unit = max(widest / 255, total / (LARGEST - spaces))
        if unit <= 0:
            unit = 1.0
        for m in range(spaces):
            for k in range(centroids):
                tables[query, m, k] = np.uint8(min(255.0, np.rint(scores[m, k] / unit)))


@kernel(error_model="numpy")
def learn_books(sample, first, last, turns, books):  # type: ignore[no-untyped-def]
    """Sixteen centroids of each of sub-spaces `first` to `last`: k-means of rows float32 `[S, M * d]`.

    books: float32 `[M, 16, d]`, which hold where to begin.
    """
    count, centroids, dim = sample.shape[0], books.shape[1], books.shape[2]
    sums, counts = np.empty((centroids, dim)), np.empty(centroids, np.int64)
    for m in range(first, last):
        for _ in range(turns):
            sums[:], counts[:] = 0, 0
            worst, farthest = 0, np.float32(-1)
            for row in range(count):
                number, distance = _nearest(sample[row], m * dim, books[m])
                counts[number] += 1
                for j in range(dim):
                    sums[number, j] += sample[row, m * dim + j]
                if distance > farthest:
                    worst, farthest = row, distance
            for number in range(centroids):
                for j in range(dim):
                    if counts[number] > 0:
                        books[m, number, j] = sums[number, j] / counts[number]
                    else:
                        books[m, number, j] = sample[worst, m * dim + j]


@kernel(error_model="numpy")
def encode_products(rows, begin, books, codes):  # type: ignore[no-untyped-def]
    """Codes of rows float32 `[n, M * d]`, which stand in places from `begin` on; `codes` holds zeros there."""
    for i in range(rows.shape[0]):
        block, place = (begin + i) // BLOCK, (begin + i) % BLOCK
        for m in range(books.shape[0]):
            number, _ = _nearest(rows[i], m * books.shape[2], books[m])
            codes[block, m, place % HALF] |= np.uint8(number << 4 if place >= HALF else number)


@part(error_model="numpy", fastmath={"nnan", "nsz"})
def _nearest(row, at, book):  # type: ignore[no-untyped-def]
    number, least = 0, np.float32(np.inf)
    for k in range(book.shape[0]):
        distance = np.float32(0)
        for j in range(book.shape[1]):
            difference = row[at + j] - book[k, j]
            distance += difference * difference
        if distance < least:
            number, least = k, distance
    return number, least
