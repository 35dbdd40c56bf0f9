"""Which lists a query looks at where a filter leaves some rows: as many as hold the neighbours among these.

Of the K nearest rows, all told, so many are expected in the nearest list, the second, and so on (`Expected`). A filter
that leaves a share of a list leaves as much of what is expected there. K is the least that was measured of which
`top_k` rows may be found, half of them where half of the K are. Where no K is enough, the query is far from all that
may be found, nothing is known of such queries, and every list is looked at that has some of it.
"""

import numpy as np

from abi_jax.wdbx.search.codes import QueryCodes
from abi_jax.wdbx.search.ivf import QUERIES_OF_A_SHARE, Lists, careful
from abi_jax.wdbx.search.kernels.choose import NO_LIST, choose
from abi_jax.wdbx.search.threads import shares


def choose_lists(lists: Lists, allowed: np.ndarray, queries: QueryCodes, top_k: int, recall: float) -> np.ndarray:
    """The lists that each query looks at, the nearest first, int32 `[B, W]`, and behind the last one `NO_LIST`.

    allowed: int64 `[L]`, how many rows of each list may be found.
    """
    mean = float(allowed.sum() / max(len(lists.order), 1))
    chosen = np.full((len(queries), len(lists.centroids)), NO_LIST, np.int32)
    counts = np.empty(len(queries), np.int64)
    about = (*lists.arrays[:3], queries.arrays.codes, queries.arrays.steps)

    def work(first: int, last: int) -> None:
        choose(*about, first, last, lists.ends, allowed, mean, *lists.expected, careful(recall), top_k, chosen, counts)

    shares(len(queries), work, QUERIES_OF_A_SHARE)
    return np.ascontiguousarray(chosen[:, : max(1, int(counts.max(initial=0)))])
