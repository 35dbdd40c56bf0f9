"""Heaps whose least is first, and sorting by them."""

from abi_jax.wdbx.search.kernels.compile import part


@part()
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


@part()
def push(heap, size, value):  # type: ignore[no-untyped-def]
    """Adds `value` to a heap of `size`, least first."""
    at = size
    while at > 0 and heap[(at - 1) // 2] > value:
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = value


@part()
def sort_down(keys, names, count):  # type: ignore[no-untyped-def]
    """Sorts the first `count` of float32 keys from the highest to the lowest, and names with them. Heapsort."""
    for begin in range(count // 2 - 1, -1, -1):
        _settle(keys, names, begin, count)
    for end in range(count - 1, 0, -1):
        keys[0], keys[end] = keys[end], keys[0]
        names[0], names[end] = names[end], names[0]
        _settle(keys, names, 0, end)


@part()
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
