"""Search on a CPU: through codes where the compiled kernels are there and rows are many, else over all rows.

With a recall of 1 the answer is that of `flat.search`, either way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from abi_jax.wdbx.search import flat
from abi_jax.wdbx.search.flat import Found

if TYPE_CHECKING:
    from abi_jax.wdbx.search.codes import Codes
    from abi_jax.wdbx.search.host import CodedPart
    from abi_jax.wdbx.search.index import Index
    from abi_jax.wdbx.search.plan import Plan

FEW_ROWS = 2048  # in all: a product over all of them takes no longer than looking for the best


@dataclass(frozen=True)
class Part:
    """Rows that are searched together: vectors `[n, D]`, and which of them may be found, bool `[n]`; None: all.

    norms, codes, index: called when they are needed; `index` may have none.
    """

    vectors: np.ndarray
    allowed: np.ndarray | None
    norms: "Callable[[], np.ndarray]"
    codes: "Callable[[], Codes]"
    index: "Callable[[], Index | None]" = lambda: None


@cache
def compiled() -> bool:
    """Whether the compiled kernels can be had."""
    return find_spec("numba") is not None


def search(parts: Sequence[Part], metric: str, queries: np.ndarray, top_k: int, recall: float = 1.0) -> list[Found]:
    """The best rows of each query `[B, D]`, float32; rows that tie with the last one are all there.

    recall: of the best rows, how many are to be found on average; 1: all, for certain.
    """
    top_k = max(1, min(top_k, sum(len(each.vectors) for each in parts)))
    if _few_rows(parts):
        every = [flat.Part(each.vectors, each.norms(), _mask(each)) for each in parts]
        return flat.search(every, metric, queries, top_k)
    from abi_jax.wdbx.search import host

    filled = [number for number, each in enumerate(parts) if len(each.vectors)]
    found = host.search([_coded(parts[number], recall) for number in filled], metric, queries, top_k, recall)
    if filled == list(range(len(filled))):
        return found
    numbers = np.array(filled)
    return [replace(each, parts=numbers[each.parts]) for each in found]


def explain(parts: Sequence[Part], recall: float, top_k: int) -> "list[Plan]":
    """How each part would be searched, and why."""
    from abi_jax.wdbx.search.plan import Plan, choose

    if _few_rows(parts):
        why = f"fewer than {FEW_ROWS} rows in all" if compiled() else "numba is not installed"
        return [Plan("flat", len(each.vectors), len(each.vectors), 0, why) for each in parts]
    return [choose(_coded(each, recall), recall, top_k) for each in parts]


def _few_rows(parts: Sequence[Part]) -> bool:
    return sum(len(each.vectors) for each in parts) < FEW_ROWS or not compiled()


def _mask(part: Part) -> np.ndarray:
    return np.ones(len(part.vectors), bool) if part.allowed is None else part.allowed


def _coded(part: Part, recall: float) -> "CodedPart":
    from abi_jax.wdbx.search.host import CodedPart

    index = part.index() if recall < 1 else None
    allowed = None if part.allowed is None or part.allowed.all() else part.allowed
    if index is not None:
        return CodedPart(part.vectors, index.codes, allowed, index.lists)
    return CodedPart(part.vectors, part.codes(), allowed)
