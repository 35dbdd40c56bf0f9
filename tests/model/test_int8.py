"""Numbers as int8: the codes, and what is computed with them, are those of the formula written in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import NamedSharding, PartitionSpec

from abi_jax.model.int8 import Int8, encode, encode_weights, look_up
from abi_jax.model.matmul import coded_products, project
from abi_jax.model.weight import Tree
from abi_jax.sharding import MeshConfig, make_mesh
from tests.model.cases import MIXED, conversations, logits, spoken, trained

FLOATS = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


def decode(x: Int8) -> np.ndarray:
    """The numbers that codes stand for, f32 `[..., n]`."""
    return np.asarray(x.codes, np.float32) * np.asarray(x.scales)[..., None]


def decoded(params: Tree) -> Tree:
    """Weights with the numbers that their codes stand for."""
    return jax.tree.map(
        lambda x: decode(x) if isinstance(x, Int8) else x, params, is_leaf=lambda x: isinstance(x, Int8)
    )


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# --- codes ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (3, 8), elements=FLOATS))
def test_codes_are_within_half_a_step_and_the_largest_is_127(x: np.ndarray) -> None:
    made = encode(jnp.asarray(x))
    codes, scales = np.asarray(made.codes, np.float64), np.asarray(made.scales, np.float64)
    top = np.abs(x.astype(np.float64)).max(-1)
    np.testing.assert_allclose(scales, top / 127, rtol=1e-6, atol=1e-37)
    assert np.all(np.abs(codes * scales[:, None] - x) <= scales[:, None] * 0.5001 + 2e-36)
    assert np.all(np.abs(codes).max(-1)[top > 1e-30] == 127)


def test_zeros_are_zeros_and_a_number_on_a_step_is_exact() -> None:
    np.testing.assert_array_equal(decode(encode(jnp.zeros((2, 4)))), np.zeros((2, 4)))
    steps = np.array([[-127, -64, 0, 1, 127]], np.float32) * 0.5
    np.testing.assert_array_equal(decode(encode(jnp.asarray(steps))), steps)
    assert encode(jnp.asarray(steps, jnp.bfloat16)).scales.dtype == jnp.float32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_so_and_in_its_row(value: float) -> None:
    x = np.ones((2, 4), np.float32)
    x[0, 1] = value
    with np.errstate(invalid="ignore"):
        found = decode(encode(jnp.asarray(x)))
    assert not np.isfinite(found[0]).any() and np.array_equal(found[1], x[1])


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 8, 300])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_with_codes_is_that_with_their_numbers(rows: int, dtype: jnp.dtype) -> None:
    x, kernel = random(rows, 1, 24).astype(dtype), encode(random(40, 24, seed=1))
    found = jax.jit(project, compiler_options=coded_products())(x, kernel)
    assert found.shape == (rows, 1, 40) and found.dtype == dtype
    tolerance = 2e-5 if dtype == jnp.float32 else 0.1
    np.testing.assert_allclose(
        np.asarray(found, np.float32), np.asarray(x, np.float32) @ decode(kernel).T, atol=tolerance
    )


def test_a_row_of_a_product_is_the_same_bits_wherever_it_stands() -> None:
    x, kernel = random(8, 1, 512), encode(random(192, 512, seed=1))
    product = jax.jit(project, compiler_options=coded_products())
    np.testing.assert_array_equal(product(jnp.roll(x, 3, axis=0), kernel), jnp.roll(product(x, kernel), 3, axis=0))


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_no_matrix_is_written_out_as_numbers(rows: int) -> None:
    """What XLA's CPU backend does by itself, at ten times the cost of the product."""
    kernel = encode(random(1024, 512))
    compiled = jax.jit(project, compiler_options=coded_products()).lower(random(rows, 512), kernel).compile()
    memory = compiled.memory_analysis()
    assert memory is not None and memory.temp_size_in_bytes < 1024 * 512


def test_rows_of_a_table_are_their_numbers() -> None:
    table, ids = encode(random(10, 6)), jnp.array([[3, 0], [9, 3]])
    np.testing.assert_array_equal(look_up(table, ids), decode(table)[np.asarray(ids)])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_matrices_of_the_backbone_are_codes_and_nothing_else_is(name: str) -> None:
    config, params = trained(name)
    coded = encode_weights(params)
    leaves, _ = jax.tree_util.tree_flatten_with_path(coded, is_leaf=lambda x: isinstance(x, Int8))
    kinds = {jax.tree_util.keystr(p, simple=True, separator="."): isinstance(x, Int8) for p, x in leaves}
    assert kinds["embedding"] and kinds["layers.0.attention.q.kernel"] and kinds["layers.1.mlp.down.kernel"]
    assert kinds.get("head.kernel", True) and not kinds.get("positions", False)
    assert not any(
        found for path, found in kinds.items() if path.startswith("persona.") or path.endswith(("bias", "norm"))
    )
    inputs = spoken(conversations(), MIXED)
    np.testing.assert_allclose(
        logits(config, coded, inputs), logits(config, decoded(coded), inputs), atol=2e-5, err_msg="of the same numbers"
    )
    change = np.abs(logits(config, coded, inputs) - logits(config, params, inputs)).max()
    assert 0 < change < 0.2, "logits are of order 1"


@pytest.mark.parametrize("spec", [("tensor", "fsdp"), ("fsdp", "tensor"), ()], ids=str)
def test_codes_lie_on_a_mesh_as_the_weight_does_each_scale_with_its_row_and_are_the_same(spec: tuple[str, ...]) -> None:
    placed = NamedSharding(make_mesh(MeshConfig(data=1, fsdp=2, tensor=4)), PartitionSpec(*spec))
    kernel = random(16, 24)
    many = encode_weights({"o": {"kernel": jax.device_put(kernel, placed)}})["o"]["kernel"]
    assert many.codes.sharding == placed
    assert many.scales.sharding.spec == PartitionSpec(*spec[:1] or (None,))
    jax.tree.map(np.testing.assert_array_equal, many, encode(kernel))
