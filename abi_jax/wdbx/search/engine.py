"""Exact search, on a CPU: through codes where the compiled kernels are there and rows are many, else over all rows.

Either way the answer is that of `flat.search`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np

from abi_jax.wdbx.search import flat
from abi_jax.wdbx.search.flat import Found

if TYPE_CHECKING:
    from abi_jax.wdbx.search.codes import Codes

FEW_ROWS = 2048  # in all: a product over all of them takes no longer than looking for the best


@dataclass(frozen=True)
class Part:
    """Rows that are searched together: vectors `[n, D]`, and which of them may be found, bool `[n]`.

    norms, codes: called when they are needed.
    """

    vectors: np.ndarray
    allowed: np.ndarray
    norms: "Callable[[], np.ndarray]"
    codes: "Callable[[], Codes]"


@cache
def compiled() -> bool:
    """Whether the compiled kernels can be had."""
    return find_spec("numba") is not None


def search(parts: Sequence[Part], metric: str, queries: np.ndarray, top_k: int) -> list[Found]:
    """The best rows of each query `[B, D]`, float32; rows that tie with the last one are all there."""
    if sum(len(each.vectors) for each in parts) < FEW_ROWS or not compiled():
        return flat.search(
            [flat.Part(each.vectors, each.norms(), each.allowed) for each in parts], metric, queries, top_k
        )
    from abi_jax.wdbx.search import host

    coded = [host.CodedPart(each.vectors, each.codes(), _few(each.allowed)) for each in parts]
    return host.search(coded, metric, queries, top_k)


def _few(allowed: np.ndarray) -> np.ndarray | None:
    return None if allowed.all() else allowed
