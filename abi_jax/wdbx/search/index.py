"""An index of sealed rows: inverted lists, codes in their order, and how many lists which recall takes."""

import logging
from dataclasses import dataclass, replace
from threading import Lock, Thread

import numpy as np

from abi_jax.wdbx.search.codes import Codes, CodesMaker, make_query_codes
from abi_jax.wdbx.search.host import CodedPart, search
from abi_jax.wdbx.search.ivf import Lists, make_lists, num_lists

NEIGHBOURS = (10, 100)
ASKING_AT_ONCE = 16  # many rows that are alike would take much memory
ASKING = 256  # rows that ask for their neighbours

TRIES = 3

logger = logging.getLogger("abi_jax.wdbx")


@dataclass(frozen=True)
class Index:
    """Lists, and codes in their order."""

    codes: Codes
    lists: Lists


def make_index(metric: str, vectors: np.ndarray, codes: Codes) -> Index:
    """Lists of `vectors` `[n, D]`, and what can be said of their recall."""
    lists = make_lists(metric, vectors, codes, num_lists(len(vectors)))
    ordered = CodesMaker(metric, vectors.shape[1], vectors.dtype, named=True).of(vectors, lists.order)
    return Index(ordered, replace(lists, ranks=_ranks(lists, vectors, ordered)))


def _ranks(lists: Lists, vectors: np.ndarray, codes: Codes) -> dict[int, np.ndarray]:
    """Of neighbours of some rows, how many lists were nearer to the row than the neighbour's; see `Lists.ranks`."""
    count = len(lists.centroids)
    asking = np.unique(np.linspace(0, len(vectors) - 1, ASKING).astype(np.int64))
    queries = np.asarray(vectors[asking]).astype(np.float32)
    list_of = np.empty(len(vectors), np.int32)
    list_of[lists.order] = np.repeat(np.arange(count, dtype=np.int32), np.diff(lists.ends))
    nearest = lists.nearest(make_query_codes(lists.metric, queries), count)
    rank = np.empty_like(nearest)
    np.put_along_axis(rank, nearest, np.arange(count)[None], axis=1)
    ranks: dict[int, list[np.ndarray]] = {count: [] for count in NEIGHBOURS}
    for start in range(0, len(asking), ASKING_AT_ONCE):
        some = queries[start : start + ASKING_AT_ONCE]
        found = search([CodedPart(vectors, codes)], lists.metric, some, NEIGHBOURS[-1] + 1)
        for i, each in enumerate(found, start):
            others = rank[i, list_of[each.rows[each.rows != asking[i]]]].astype(np.float64)
            for count, made in ranks.items():
                made.append(others[:count])
    return {count: np.sort(np.concatenate(made)) for count, made in ranks.items()}


class IndexMaker:
    """Makes an index once, when it is first asked for: in the background, or while one waits."""

    def __init__(self, metric: str, vectors: np.ndarray) -> None:
        self._metric = metric
        self._vectors = vectors
        self._lock = Lock()
        self._thread: Thread | None = None
        self._tries = 0
        self.made: Index | None = None

    def ask(self, codes: Codes, wait: bool) -> Index | None:
        """The index, if it is made already, or one waits for it."""
        with self._lock:
            if self.made is None and not (self._thread is not None and self._thread.is_alive()) and self._tries < TRIES:
                self._tries += 1
                self._thread = Thread(target=self._make, args=(codes,), name="wdbx-index", daemon=True)
                self._thread.start()
        if wait and self._thread is not None:
            self._thread.join()
        return self.made

    def _make(self, codes: Codes) -> None:
        try:
            self.made = make_index(self._metric, np.asarray(self._vectors), codes)
        except Exception as error:
            logger.warning("no lists could be made, so that all rows are scanned: %s", error)
