"""What a search on a mesh is given. In a file of its own, so that a view knows it without what searches."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class MeshPart:
    """Rows that are searched together: vectors `[n, D]`, and which of them may be found, bool `[n]`.

    owner: whose they are. It may get more rows, and never changes those it has.
    """

    owner: object
    vectors: np.ndarray
    allowed: np.ndarray
