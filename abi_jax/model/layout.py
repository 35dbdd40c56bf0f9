"""Weights laid out for inference: what a platform multiplies fastest.

Training and Hugging Face keep matrices as `[out, in]`. XLA's CPU backend reads that at full bandwidth for one
row, but packs the whole matrix anew at every step for a few rows, and does that faster from `[in, out]`
(`benchmarks/weight_layout.py`); on accelerators the compiler picks layouts itself.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from abi_jax.model.decoder import Decoder
from abi_jax.model.layers import Linear
from abi_jax.model.weight import describe, path_name


def transposes(batch: int) -> bool:
    """Whether decode steps of `batch` rows want `[in, out]` on this platform."""
    return jax.default_backend() == "cpu" and batch > 1


def arrange(build: Callable[[], Decoder], params: Any, batch: int) -> tuple[nnx.GraphDef, Any]:
    """Returns structure and weights for inference: `params` cast to the model's dtype and laid out for `batch` rows."""

    def prepared() -> Decoder:
        model = build()
        for _, module in nnx.iter_graph(model):
            if isinstance(module, Linear):
                module.transposed = transposes(batch)
        return model

    dtype = prepared().dtype

    def lay(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        x = x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x
        return x.T if transposes(batch) and path_name(path).endswith(".kernel") else x

    graphdef, _ = describe(prepared)
    return graphdef, jax.tree_util.tree_map_with_path(lay, params)
