"""An index of sealed rows: inverted lists, codes in their order, and how many lists which recall takes."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock, Thread

import numpy as np

from abi_jax.wdbx.search.codes import Codes, CodesMaker
from abi_jax.wdbx.search.ivf import Lists, make_lists, num_lists
from abi_jax.wdbx.search.measure import measure
from abi_jax.wdbx.search.threads import behind_searches

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
    made = index_of(lists, vectors)
    return Index(made.codes, replace(lists, ranks=measure(lists, vectors, made.codes)))


def index_of(lists: Lists, vectors: np.ndarray) -> Index:
    """Lists, and codes of `vectors` `[n, D]` in their order."""
    return Index(CodesMaker(lists.metric, vectors.shape[1], vectors.dtype, named=True).of(vectors, lists.order), lists)


class IndexMaker:
    """Makes an index once, when it is first asked for: in the background, or while one waits."""

    def __init__(self, metric: str, vectors: np.ndarray) -> None:
        self._metric = metric
        self._vectors = vectors
        self._lock = Lock()
        self._thread: Thread | None = None
        self._tries = 0
        self.made: Index | None = None

    def ask(self, codes: Callable[[], Codes], stored: Lists | None, wait: bool) -> Index | None:
        """The index, if its lists are made or `stored`, or one waits for it. codes: called to make lists of them."""
        with self._lock:
            if self.made is None and stored is not None:
                self.made = index_of(stored, np.asarray(self._vectors))
            if self.made is None and not (self._thread is not None and self._thread.is_alive()) and self._tries < TRIES:
                self._tries += 1
                self._thread = Thread(target=self._make, args=(codes(),), name="wdbx-index", daemon=True)
                self._thread.start()
            thread = self._thread
        if wait and thread is not None:
            thread.join()
        return self.made

    def _make(self, codes: Codes) -> None:
        try:
            with behind_searches():
                self.made = make_index(self._metric, np.asarray(self._vectors), codes)
        except Exception as error:
            logger.warning("no lists could be made, so that all rows are scanned: %s", error)
