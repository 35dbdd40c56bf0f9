"""Codes of encrypted rows, stored beside them: a first search opens these, a quarter of the bytes, and a few rows.

Of rows that are not encrypted, codes are made when they are first needed: that takes no longer than reading them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from abi_jax.wdbx.search.engine import compiled
from abi_jax.wdbx.spec import CollectionSpec

if TYPE_CHECKING:
    from abi_jax.wdbx.search.codes import Codes

PREFIX = "codes3_"  # another number wherever what search makes of codes has changed: others are not looked at
WORTH_STORING = 4096  # rows
FIELDS = ("codes", "scale", "offset", "error")


def codes_to_store(spec: CollectionSpec, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays by name that a step of rows has besides `arrays`; none where rows are few, or as small as their codes."""
    if spec.dtype == "int8" or len(arrays.get("vectors", ())) < WORTH_STORING or not compiled():
        return {}
    from abi_jax.wdbx.search.codes import CodesMaker

    made = CodesMaker(spec.metric, spec.dim, spec.numpy_dtype).of(arrays["vectors"].view(spec.numpy_dtype))
    found = {PREFIX + name: getattr(made.arrays, name) for name in FIELDS}
    return found | {PREFIX + "longest": np.array([made.longest], np.float64)}


def stored_codes(arrays: Mapping[str, np.ndarray]) -> "Codes | None":
    """The codes that a step has; None where it has none of this kind."""
    if PREFIX + "longest" not in arrays:
        return None
    from abi_jax.wdbx.search.codes import Codes
    from abi_jax.wdbx.search.kernels.arrays import CodeArrays

    codes, scale, offset, error = (arrays[PREFIX + name] for name in FIELDS)
    made = CodeArrays(codes, scale, offset, error, np.zeros(0, np.int32))
    return Codes(made, float(arrays[PREFIX + "longest"][0]))
