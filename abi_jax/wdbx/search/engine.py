"""Search on a CPU: through codes where the compiled kernels are there and rows are many, else over all rows.

With a recall of 1 the answer is that of `flat.search`, either way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from abi_jax.wdbx.search import flat
from abi_jax.wdbx.search.found import Found

if TYPE_CHECKING:
    from abi_jax.wdbx.search.coded_part import CodedPart
    from abi_jax.wdbx.search.codes import Codes
    from abi_jax.wdbx.search.index import Index
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.plan import Plan
    from abi_jax.wdbx.search.product_part import ProductPart
    from abi_jax.wdbx.search.products import ProductIndex
    from abi_jax.wdbx.search.told import Told

FEW_ROWS = 2048  # in all: a product over all of them takes no longer than looking for the best


@dataclass(frozen=True)
class Part:
    """Rows that are searched together: vectors `[n, D]`, and which of them may be found, bool `[n]`; None: all.

    norms, codes, index: called when they are needed; `index` may have none. lists: those that are there already.
    products: product codes, where these are wanted; those that are there already, if it is not told to make any. ids:
    int64 `[n]`, where they are numbers.
    """

    vectors: np.ndarray
    allowed: np.ndarray | None
    norms: "Callable[[], np.ndarray]"
    codes: "Callable[[], Codes]"
    index: "Callable[[], Index | None]" = lambda: None
    lists: "Callable[[], Lists | None]" = lambda: None
    products: "Callable[[bool], ProductIndex | None] | None" = None
    ids: "Callable[[], np.ndarray] | None" = None

    @cached_property
    def _allowed(self) -> np.ndarray | None:
        return None if self.allowed is None or self.allowed.all() else self.allowed

    @property
    def num_allowed(self) -> int:
        """How many rows may be found."""
        return len(self.vectors) if self.allowed is None else int(np.count_nonzero(self.allowed))

    def by_products(self, recall: float, top_k: int, make: bool = True) -> "ProductPart | None":
        """The rows with product codes, where these are there and of use. make: whether they may be begun."""
        products = self.products(make) if self.products is not None and recall < 1 and len(self.vectors) else None
        if products is None:
            return None
        from abi_jax.wdbx.search.product_part import ProductPart

        made: ProductPart | None = self.__dict__.get("_by_products")
        if made is None or made.index is not products:
            ids = None if self.ids is None else self.ids()
            made = ProductPart(self.vectors, products, self._allowed, lambda: self.coded(1.0), ids=ids)
            self.__dict__["_by_products"] = made
            self.__dict__.pop("_coded", None)
        return made if made.useful(recall, top_k) else None

    def coded(self, recall: float) -> "CodedPart":
        """The rows with their codes; in the order of lists, where these are of use and there are some."""
        from abi_jax.wdbx.search.coded_part import NO_CODES, CodedPart

        if not len(self.vectors):
            return CodedPart(self.vectors, NO_CODES)
        index = self.index() if recall < 1 else None
        codes = self.codes() if index is None else index.codes
        made: CodedPart | None = self.__dict__.get("_coded")
        if made is None or made.codes is not codes or (made.lists is None) != (index is None):
            ids = None if self.ids is None else self.ids()
            made = CodedPart(self.vectors, codes, self._allowed, None if index is None else index.lists, ids)
            self.__dict__["_coded"] = made  # beside what `cached_property` keeps
        return made

    def settled(self, recall: float, top_k: int) -> bool:
        """Whether there will be no better codes and lists than those of the last search."""
        from abi_jax.wdbx.search.plan import WORTH_LISTS

        if len(self.vectors) < WORTH_LISTS:
            return True
        if self.products is not None:  # which stay, once they are made
            by_products: ProductPart | None = self.__dict__.get("_by_products")
            return by_products is not None and recall < 1 and by_products.useful(recall, top_k)
        made: CodedPart | None = self.__dict__.get("_coded")
        return made is not None and len(made.codes.arrays.names) > 0


@cache
def compiled() -> bool:
    """Whether the compiled kernels can be had."""
    return find_spec("numba") is not None


class Searcher:
    """A search of parts, again and again: what it takes is made ready once, where nothing better can come of a part."""

    def __init__(self, parts: Sequence[Part], metric: str) -> None:
        self.parts = parts
        self._metric = metric
        self._ready: dict[tuple[float, int], Callable[[np.ndarray], Found]] = {}

    def __call__(self, queries: np.ndarray, top_k: int, recall: float = 1.0, told: "Told | None" = None) -> Found:
        """The best rows of each query `[B, D]`, float32; rows that tie with the last one are all there.

        recall: of the best rows, how many are to be found on average; 1: all, for certain. told: what was done, if
        asked.
        """
        search = self._ready.get((recall, top_k)) if told is None else None
        return (search or self._search(top_k, recall, told, len(queries)))(queries)

    def _search(
        self, asked: int, recall: float, told: "Told | None", num_queries: int
    ) -> Callable[[np.ndarray], Found]:
        top_k = max(1, min(asked, sum(len(each.vectors) for each in self.parts)))
        if _few_rows(self.parts):
            if told is not None:
                told.add(enumerate(explain(self.parts, recall, top_k)), num_queries)
            every = [flat.Part(each.vectors, each.norms(), _mask(each)) for each in self.parts]
            return lambda queries: flat.search(every, self._metric, queries, top_k)
        from abi_jax.wdbx.search import host

        coded = [each.by_products(recall, top_k) or each.coded(recall) for each in self.parts]
        made = host.Search(coded, self._metric, top_k, recall, told)
        if told is None and all(each.settled(recall, top_k) for each in self.parts):
            self._ready[recall, asked] = made
        return made


def search(
    parts: Sequence[Part], metric: str, queries: np.ndarray, top_k: int, recall: float = 1.0, told: "Told | None" = None
) -> Found:
    """What `Searcher` finds for queries `[B, D]`, float32."""
    return Searcher(parts, metric)(queries, top_k, recall, told)


def explain(parts: Sequence[Part], recall: float, top_k: int) -> "list[Plan]":
    """How each part would be searched, and why, with what has been made already. Makes nothing."""
    from abi_jax.wdbx.search.plan import Plan

    if _few_rows(parts):
        why = f"fewer than {FEW_ROWS} rows in all" if compiled() else "numba is not installed"
        return [Plan("flat", each.num_allowed, len(each.vectors), 0, why) for each in parts]
    return [_plan(each, recall, top_k) for each in parts]


def _plan(part: Part, recall: float, top_k: int) -> "Plan":
    from abi_jax.wdbx.search.plan import choose

    by_products = part.by_products(recall, top_k, make=False)
    if by_products is not None:
        return by_products.plan(recall, top_k)
    lists = part.lists() if recall < 1 else None
    return choose(len(part.vectors), part.num_allowed, lists, recall, top_k)


def _few_rows(parts: Sequence[Part]) -> bool:
    return sum(len(each.vectors) for each in parts) < FEW_ROWS or not compiled()


def _mask(part: Part) -> np.ndarray:
    return np.ones(len(part.vectors), bool) if part.allowed is None else part.allowed
