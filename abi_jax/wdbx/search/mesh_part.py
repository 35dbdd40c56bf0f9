"""What a search on a mesh is given. In a file of its own, so that a view knows it without what searches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.products import ProductIndex


@dataclass(frozen=True)
class MeshPart:
    """Rows that are searched together: vectors `[n, D]`, and which of them may be found, bool `[n]`.

    owner: whose they are. It may get more rows, and never changes those it has. allowed: not to be written to. lists:
    called where less than all is asked for; rows with lists never become more. products: product codes, likewise, where
    these are wanted.
    """

    owner: object
    vectors: np.ndarray
    allowed: np.ndarray
    lists: "Callable[[], Lists | None]" = lambda: None
    products: "Callable[[], ProductIndex | None] | None" = None
