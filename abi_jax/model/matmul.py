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
        return _written_out(x, up)
    return _many_rows(x, up.T)


@jax.custom_vjp
def combine(x: jax.Array, rows: jax.Array) -> jax.Array:
    """As `expand`, but always written out: for results so large that they should never lie in memory by themselves."""
    return _written_out(x, rows.astype(x.dtype))


def _combine_forward(x: jax.Array, rows: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return combine(x, rows), (x, rows)


def _combine_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two products: written out, `dy` would be summed over rows once for every element of `x`.

    The leading axes stay as they are: merged, those of a `dy` that is sharded over more than one would be gathered.
    """
    x, rows = saved
    dx = jnp.einsum("...f,rf->...r", dy, rows.astype(dy.dtype))
    leading = tuple(range(x.ndim - 1))
    return dx, jnp.tensordot(x, dy, (leading, leading)).astype(rows.dtype)


combine.defvjp(_combine_forward, _combine_backward)


def _written_out(x: jax.Array, up: jax.Array) -> jax.Array:
    return sum((x[..., i, None] * up[i] for i in range(1, up.shape[0])), x[..., 0, None] * up[0])
