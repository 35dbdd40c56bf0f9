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
    from abi_jax.wdbx.search.codes import Codes
    from abi_jax.wdbx.search.host import CodedPart
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
    products: product codes, where these are wanted; those that are there already, if it is not told to make any.
    """

    vectors: np.ndarray
    allowed: np.ndarray | None
    norms: "Callable[[], np.ndarray]"
    codes: "Callable[[], Codes]"
    index: "Callable[[], Index | None]" = lambda: None
    lists: "Callable[[], Lists | None]" = lambda: None
    products: "Callable[[bool], ProductIndex | None]" = lambda make: None

    @cached_property
    def _allowed(self) -> np.ndarray | None:
        return None if self.allowed is None or self.allowed.all() else self.allowed

    @property
    def num_allowed(self) -> int:
        """How many rows may be found."""
        return len(self.vectors) if self.allowed is None else int(np.count_nonzero(self.allowed))

    def by_products(self, recall: float, top_k: int, make: bool = True) -> "ProductPart | None":
        """The rows with product codes, where these are there and of use. make: whether they may be begun."""
        products = self.products(make) if recall < 1 and len(self.vectors) else None
        if products is None:
            return None
        from abi_jax.wdbx.search.product_part import ProductPart

        made: ProductPart | None = self.__dict__.get("_by_products")
        if made is None or made.index is not products:
            made = ProductPart(self.vectors, products, self._allowed, lambda: self.coded(1.0))
            self.__dict__["_by_products"] = made
            self.__dict__.pop("_coded", None)
        return made if made.useful(recall, top_k) else None

    def coded(self, recall: float) -> "CodedPart":
        """The rows with their codes; in the order of lists, where these are of use and there are some."""
        from abi_jax.wdbx.search.host import NO_CODES, CodedPart

        if not len(self.vectors):
            return CodedPart(self.vectors, NO_CODES)
        index = self.index() if recall < 1 else None
        codes = self.codes() if index is None else index.codes
        made: CodedPart | None = self.__dict__.get("_coded")
        if made is None or made.codes is not codes or (made.lists is None) != (index is None):
            made = CodedPart(self.vectors, codes, self._allowed, None if index is None else index.lists)
            self.__dict__["_coded"] = made  # beside what `cached_property` keeps
        return made


@cache
def compiled() -> bool:
    """Whether the compiled kernels can be had."""
    return find_spec("numba") is not None


def search(
    parts: Sequence[Part],
    metric: str,
    queries: np.ndarray,
    top_k: int,
    recall: float = 1.0,
    told: "Told | None" = None,
) -> Found:
    """The best rows of each query `[B, D]`, float32; rows that tie with the last one are all there.

    recall: of the best rows, how many are to be found on average; 1: all, for certain. told: what was done, if asked.
    """
    top_k = max(1, min(top_k, sum(len(each.vectors) for each in parts)))
    if _few_rows(parts):
        if told is not None:
            told.add(enumerate(explain(parts, recall, top_k)), len(queries))
        every = [flat.Part(each.vectors, each.norms(), _mask(each)) for each in parts]
        return flat.search(every, metric, queries, top_k)
    from abi_jax.wdbx.search import host

    coded = [each.by_products(recall, top_k) or each.coded(recall) for each in parts]
    return host.search(coded, metric, queries, top_k, recall, told)


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
