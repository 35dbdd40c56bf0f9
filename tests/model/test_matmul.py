"""The products written out for a platform are the plain ones: values and gradients."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from abi_jax.model.matmul import FEW_ROWS, SINGLE_ROWS, combine, dot, expand, project
from abi_jax.sharding import MeshConfig, make_mesh

Product = Callable[[jax.Array, jax.Array], jax.Array]


@pytest.mark.parametrize(
    ("rows", "size_in", "size_out"),
    [(1, 24, 40), (SINGLE_ROWS, 24, 40), (FEW_ROWS + 8, 24, 40), (FEW_ROWS + 8, 40, 24)],
)
def test_project_is_a_product_with_the_transpose(rows: int, size_in: int, size_out: int) -> None:
    check(project, lambda x, kernel: x @ kernel.T, (rows, size_in), (size_out, size_in))


@pytest.mark.parametrize("product", [expand, combine])
@pytest.mark.parametrize("rows", [1, SINGLE_ROWS, SINGLE_ROWS + 8, FEW_ROWS + 8])
def test_expand_and_combine_are_products(product: Product, rows: int) -> None:
    check(product, lambda x, up: x @ up, (rows, 8), (8, 40))


@pytest.mark.parametrize("rows", [3, 8, 13, 20])
def test_where_a_row_stands_changes_no_bit_of_it(rows: int) -> None:
    rng = np.random.default_rng(rows)
    kernel, vector = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((96, 64), (64,)))
    products = (jax.jit(lambda x: project(x, kernel)), jax.jit(lambda x: dot(x * x, vector, "highest")))
    for _ in range(8):
        x = jnp.asarray(np.repeat(rng.normal(size=(1, 1, 64)), rows, axis=0), jnp.float32)
        for product in products:
            found = np.asarray(product(x))
            assert np.array_equal(found, np.broadcast_to(found[:1], found.shape))


def test_the_gradient_of_combine_leaves_a_sharded_result_where_it_is() -> None:
    mesh = make_mesh(MeshConfig(data=2, sequence=4))

    def placed(shape: tuple[int, ...], *axes: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    B, T, V, P = 4, 64, 96, 3
    logits, w = placed((B, T, V), "data", "sequence"), placed((B, T, P), "data", "sequence")
    loss = jax.grad(lambda rows, w, logits: jnp.sum(jax.nn.logsumexp(logits + combine(w, rows), axis=-1)))
    program = jax.jit(loss).lower(placed((P, V)), w, logits).compile().as_text()
    assert program and "all-reduce" in program
    assert not re.findall(r"all-gather|all-to-all|collective-permute", program)


def check(product: Product, plain: Product, *shapes: tuple[int, int]) -> None:
    (rows, size_in), _ = shapes
    x, w = (jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32) for i, shape in enumerate(shapes))
    batched = x.reshape(rows // 8, 8, size_in) if rows % 8 == 0 else x[None]

    def loss(product: Product) -> Product:
        return lambda x, w: jnp.sum(jnp.sin(product(x, w)))

    for result, expected in zip(
        (jax.jit(product)(batched, w), *jax.jit(jax.grad(loss(product), (0, 1)))(batched, w)),
        (plain(x, w), *jax.grad(loss(plain), (0, 1))(x, w)),
        strict=True,
    ):
        np.testing.assert_allclose(np.reshape(result, expected.shape), expected, atol=2e-5)
