"""`W x` with `W` stored `[out, in]`, in the form each platform runs fastest."""

from functools import cache

import jax
import jax.numpy as jnp

from abi_jax.model.int8 import Int8
from abi_jax.sharding.context import current_platform

FEW_ROWS = 256
SINGLE_ROWS = 32
AT_ONCE = 8  # rows that XLA's CPU backend multiplies with a vector at once


def project(x: jax.Array, kernel: jax.Array | Int8) -> jax.Array:
    """`[..., in]` and `[out, in]` to `[..., out]`, in the dtype of `x`.

    On XLA's CPU backend the right operand of a product is packed anew at every call. For a few rows that
    costs more than the product, so `W` goes left and the few rows right; without the barrier the compiler
    would turn the operands round again (`benchmarks/weight_layout.py`). With many rows the product itself is
    fast, and its gradient is written out (see `_many_rows`).
    """
    if isinstance(kernel, Int8):
        return _project_codes(x, kernel)
    kernel = kernel.astype(x.dtype)
    rows = x.size // x.shape[-1]
    if current_platform() != "cpu" or rows == 1:
        return jnp.einsum("...d,fd->...f", x, kernel)
    if rows > FEW_ROWS:
        return _many_rows(x, kernel)
    columns = jax.lax.optimization_barrier(kernel @ x.reshape(rows, -1).T)
    return columns.T.reshape(*x.shape[:-1], kernel.shape[0])


def _project_codes(x: jax.Array, kernel: Int8) -> jax.Array:
    """As `project`, of codes: they become numbers on their way into the product, and what it makes is scaled.

    On the CPU this is made for YNNPACK (see `coded_products`), in f32, and for two rows at least: the product with one
    has another form there, for which all codes would be written out as numbers.
    """
    if current_platform() != "cpu":
        y = jnp.einsum("...d,fd->...f", x, kernel.codes.astype(x.dtype), preferred_element_type=jnp.float32)
        return (y * kernel.scales).astype(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).astype(jnp.float32)
    count = len(rows)
    if count == 1:
        rows = jnp.broadcast_to(rows, (2, rows.shape[1]))
    columns = jnp.einsum("fd,bd->fb", kernel.codes.astype(jnp.float32), rows) * kernel.scales[:, None]
    columns = jax.lax.optimization_barrier(columns)
    return columns.T[:count].reshape(*x.shape[:-1], -1).astype(x.dtype)


@cache
def coded_products() -> dict[str, str] | None:
    """What a program that multiplies by codes is compiled with (`jax.jit(compiler_options=...)`).

    XLA's CPU backend leaves products to YNNPACK then, with what is computed of one operand before and with the result
    after. Else it would write each matrix out as numbers at every call, which takes ten times as long. None where
    nothing of the kind is needed, or known to this version.
    """
    if current_platform() != "cpu":
        return None
    try:
        jax.jit(jnp.negative, compiler_options=_YNNPACK).lower(jnp.float32(0)).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _YNNPACK


_YNNPACK = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}


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


def dot(x: jax.Array, vector: jax.Array, precision: str | None = None) -> jax.Array:
    """`[..., d]` and `[d]` to `[...]`; where a row stands among the others changes no bit of it.

    On XLA's CPU backend it would: rows are taken eight at once, and those left over are summed in another order.
    """
    rows = x.size // x.shape[-1]
    missing = -rows % AT_ONCE
    if current_platform() != "cpu" or rows < AT_ONCE or not missing:
        return jnp.einsum("...d,d->...", x, vector, precision=precision)
    filled = jnp.pad(x.reshape(rows, -1), ((0, missing), (0, 0)))
    return jnp.einsum("nd,d->n", filled, vector, precision=precision)[:rows].reshape(x.shape[:-1])


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
