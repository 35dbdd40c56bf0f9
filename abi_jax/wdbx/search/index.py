"""An index of sealed rows: inverted lists, codes in their order, and how many lists which recall takes.

Codes are int8, or product codes: those of a process that is to have little memory.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock, Thread
from typing import Generic, TypeVar

import numpy as np

from abi_jax.wdbx.search.codes import Codes, CodesMaker
from abi_jax.wdbx.search.ivf import Lists, make_lists, num_lists
from abi_jax.wdbx.search.measure import ask, by_codes, measure, measure_products
from abi_jax.wdbx.search.products import ProductIndex, make_products
from abi_jax.wdbx.search.threads import behind_searches

TRIES = 3
T = TypeVar("T")

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
    asked = ask(lists, vectors, by_codes(metric, vectors, made.codes))
    return Index(made.codes, replace(lists, ranks=measure(lists, asked)))


def lists_alone(metric: str, vectors: np.ndarray) -> Lists:
    """Lists of `vectors` `[n, D]`, and what can be said of their recall; no codes are kept."""
    return make_index(metric, vectors, CodesMaker(metric, vectors.shape[1], vectors.dtype).of(vectors)).lists


def index_of(lists: Lists, vectors: np.ndarray) -> Index:
    """Lists, and codes of `vectors` `[n, D]` in their order."""
    return Index(CodesMaker(lists.metric, vectors.shape[1], vectors.dtype, named=True).of(vectors, lists.order), lists)


def make_product_index(metric: str, vectors: np.ndarray, codes: Codes, lists: Lists | None) -> ProductIndex:
    """Product codes of `vectors` `[n, D]`, and lists, where there are none. codes: int8, needed until it is made."""
    lists = make_index(metric, vectors, codes).lists if lists is None else lists
    made = make_products(lists, vectors)
    candidates = measure_products(made, ask(lists, vectors, by_codes(metric, vectors, codes)))
    return ProductIndex(lists, replace(made, candidates=candidates))


class _Maker(Generic[T]):
    """Makes something once, when it is first asked for: in the background, or while one waits."""

    def __init__(self, metric: str, vectors: np.ndarray) -> None:
        self._metric = metric
        self._vectors = vectors
        self._lock = Lock()
        self._thread: Thread | None = None
        self._tries = 0
        self.made: T | None = None

    def _ask(self, there: Callable[[], T] | None, begin: Callable[[], Callable[[], T]], wait: bool) -> T | None:
        """What is made, or can be had at once from what is `there`. begin: called for what makes it in a thread."""
        with self._lock:
            if self.made is None and there is not None:
                self.made = there()
            if self.made is None and not (self._thread is not None and self._thread.is_alive()) and self._tries < TRIES:
                self._tries += 1
                self._thread = Thread(target=self._make, args=(begin(),), name="wdbx-index", daemon=True)
                self._thread.start()
            thread = self._thread
        if wait and thread is not None:
            thread.join()
        return self.made

    def _make(self, make: Callable[[], T]) -> None:
        try:
            with behind_searches():
                self.made = make()
        except Exception as error:
            logger.warning("no lists could be made, so that all rows are scanned: %s", error)


class IndexMaker(_Maker[Index]):
    """Makes an index once."""

    def ask(self, codes: Callable[[], Codes], stored: Lists | None, wait: bool) -> Index | None:
        """The index, if its lists are made or `stored`, or one waits for it. codes: called to make lists of them."""
        there = None if stored is None else lambda: index_of(stored, np.asarray(self._vectors))

        def begin() -> Callable[[], Index]:
            coded = codes()
            return lambda: make_index(self._metric, np.asarray(self._vectors), coded)

        return self._ask(there, begin, wait)


class ListsMaker(_Maker[Lists]):
    """Makes lists alone, once: for who searches them elsewhere, with no codes of rows."""

    def ask(self, make: Callable[[np.ndarray], Lists], wait: bool) -> Lists | None:
        """The lists, if they are made, or one waits for them. make: makes those of vectors `[n, D]`."""
        return self._ask(None, lambda: lambda: make(np.asarray(self._vectors)), wait)


class ProductMaker(_Maker[ProductIndex]):
    """Makes lists with product codes once."""

    def ask(self, codes: Callable[[], Codes], lists: Lists | None, wait: bool) -> ProductIndex | None:
        """The index, if it is made, or one waits for it. codes: called to make it of them. lists: those there are."""

        def begin() -> Callable[[], ProductIndex]:
            coded = codes()
            return lambda: make_product_index(self._metric, np.asarray(self._vectors), coded, lists)

        return self._ask(None, begin, wait)
