"""`W x` with `W` stored `[out, in]`, in the form each platform runs fastest."""

import jax
import jax.numpy as jnp

FEW_ROWS = 256


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[..., in]` and `[out, in]` to `[..., out]`, in the dtype of `x`.

    On XLA's CPU backend the right operand of a product is packed anew at every call. For a few rows that
    costs more than the product, so `W` goes left and the few rows right; without the barrier the compiler
    would turn the operands round again (`benchmarks/weight_layout.py`).
    """
    kernel = kernel.astype(x.dtype)
    rows = x.size // x.shape[-1]
    if jax.default_backend() != "cpu" or not 1 < rows <= FEW_ROWS:
        return jnp.einsum("...d,fd->...f", x, kernel)
    columns = jax.lax.optimization_barrier(kernel @ x.reshape(rows, -1).T)
    return columns.T.reshape(*x.shape[:-1], kernel.shape[0])
