"""`W x` with `W` stored `[out, in]`, in the form each platform runs fastest."""

import jax
import jax.numpy as jnp

from abi_jax.sharding.context import current_platform

FEW_ROWS = 256
SINGLE_ROWS = 32


def project(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`[..., in]` and `[out, in]` to `[..., out]`, in the dtype of `x`.

    On XLA's CPU backend the right operand of a product is packed anew at every call. For a few rows that
    costs more than the product, so `W` goes left and the few rows right; without the barrier the compiler
    would turn the operands round again (`benchmarks/weight_layout.py`). With many rows the product itself is
    fast, and its gradient is written out (see `_many_rows`).
    """
    kernel = kernel.astype(x.dtype)
    rows = x.size // x.shape[-1]
    if current_platform() != "cpu" or rows == 1:
        return jnp.einsum("...d,fd->...f", x, kernel)
    if rows > FEW_ROWS:
        return _many_rows(x, kernel)
    columns = jax.lax.optimization_barrier(kernel @ x.reshape(rows, -1).T)
    return columns.T.reshape(*x.shape[:-1], kernel.shape[0])


@jax.custom_vjp
def _many_rows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.einsum("...d,fd->...f", x, kernel)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _many_rows(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The kernel's gradient `dy^T x` needs one operand transposed; the narrower one costs less."""
    x, kernel = saved
    dx = jnp.einsum("...f,fd->...d", dy, kernel)
    x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    if kernel.shape[0] > kernel.shape[1]:
        dkernel = jax.lax.optimization_barrier(x.T @ dy).T
    else:
        dkernel = dy.T @ x
    return dx, dkernel


_many_rows.defvjp(_forward, _backward)


def expand(x: jax.Array, up: jax.Array) -> jax.Array:
    """`[..., r]` and `[r, out]`, r small, to `[..., out]`, in the dtype of `x`.

    For a few rows the sum is written out, so that it fuses into what it is added to: on the CPU the call of a
    product this small costs more than the product.
    """
    up = up.astype(x.dtype)
    if current_platform() != "cpu":
        return jnp.einsum("...r,rf->...f", x, up)
    if x.size // x.shape[-1] <= SINGLE_ROWS:
        return sum((x[..., i, None] * up[i] for i in range(1, up.shape[0])), x[..., 0, None] * up[0])
    return _expand_many(x, up)


@jax.custom_vjp
def _expand_many(x: jax.Array, up: jax.Array) -> jax.Array:
    return jnp.einsum("...r,rf->...f", x, up)


def _expand_forward(x: jax.Array, up: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _expand_many(x, up), (x, up)


def _expand_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """As a product of two matrices, so that the wide one, `dy`, is read as it lies and not transposed first."""
    x, up = saved
    dx = jnp.einsum("...f,rf->...r", dy, up)
    return dx, x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


_expand_many.defvjp(_expand_forward, _expand_backward)
