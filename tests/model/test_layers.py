"""The layers against their formulas."""

import math
from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.model.blocks import MLP
from abi_jax.model.config import Activation, ModelConfig, RopeScaling
from abi_jax.model.layers import (
    LayerNorm,
    Linear,
    RMSNorm,
    activate,
    make_norm,
    rope_angles,
    rope_frequencies,
    rotate,
    settle,
    sinusoids,
)
from abi_jax.model.matmul import FEW_ROWS, project
from abi_jax.model.persona import LayerTerms
from abi_jax.model.weight import Tree, describe, initialize, merge
from tests.model.cases import CONFIGS, KEY, LLAMA

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 32)).astype(np.float32) * 3 + 1


def made(weights: Tree) -> Tree:
    """Random weights, none of them 0 or 1."""
    return jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), initialize(weights, KEY))


# --- products ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 5), (1, FEW_ROWS), (2, FEW_ROWS), (7,), ()], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_is_the_same_in_every_form(shape: tuple[int, ...], dtype: jnp.dtype) -> None:
    x = jnp.asarray(RNG.normal(size=(*shape, 24)), dtype)
    W = jnp.asarray(RNG.normal(size=(40, 24)), jnp.float32)
    y = jax.jit(project)(x, W)
    assert y.shape == (*shape, 40) and y.dtype == dtype
    exact = np.asarray(x, np.float64) @ np.asarray(W.astype(dtype), np.float64).T
    np.testing.assert_allclose(
        y.astype(jnp.float32),
        exact,
        rtol=1e-2 if dtype == jnp.bfloat16 else 1e-5,
        atol=1e-4 if dtype == jnp.float32 else 0.05,
    )


def test_products_for_a_few_rows_and_for_an_accelerator_have_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, W = jnp.asarray(RNG.normal(size=(2, 5, 24)), jnp.float32), jnp.asarray(RNG.normal(size=(40, 24)), jnp.float32)

    def gradients() -> tuple[jax.Array, jax.Array]:
        return jax.grad(lambda x, W: jnp.sum(jnp.sin(project(x, W))), argnums=(0, 1))(x, W)

    few = gradients()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for a, b in zip(few, gradients(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


def test_linear_is_W_x_plus_b() -> None:
    graphdef, weights = describe(lambda: Linear(32, 5, ("mlp", "embed"), bias=True))
    params = made(weights)
    assert params["kernel"].shape == (5, 32)
    expected = X @ np.asarray(params["kernel"]).T + np.asarray(params["bias"])
    np.testing.assert_allclose(merge(graphdef, params)(jnp.asarray(X)), expected, rtol=1e-5, atol=1e-5)
    assert "bias" not in describe(lambda: Linear(32, 5, ("mlp", "embed")))[1]


def test_settling_changes_no_finite_value() -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        limit = float(jnp.finfo(dtype).max)
        x = jnp.asarray([0.0, -0.0, 1e-30, -3.5, limit, -limit], dtype)
        assert np.array_equal(jax.jit(settle)(x), x)
    assert jax.grad(lambda x: jnp.sum(settle(x) ** 2))(jnp.asarray([3.0])).tolist() == [6.0]


# --- normalisation ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(offset: float) -> None:
    graphdef, weights = describe(lambda: RMSNorm(32, 1e-3, offset))
    params = made(weights)
    weight = np.asarray(params["weight"]) + offset
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-3) * weight
    np.testing.assert_allclose(merge(graphdef, params)(jnp.asarray(X)), expected, rtol=1e-5, atol=1e-6)


def test_layer_norm() -> None:
    graphdef, weights = describe(lambda: LayerNorm(32, 1e-3))
    params = made(weights)
    y = X - X.mean(-1, keepdims=True)
    expected = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-3) * params["weight"] + params["bias"]
    np.testing.assert_allclose(merge(graphdef, params)(jnp.asarray(X)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_norms_compute_in_f32_and_keep_the_dtype(norm: type[RMSNorm] | type[LayerNorm]) -> None:
    graphdef, weights = describe(lambda: norm(32, 1e-6))
    params = initialize(weights, KEY)
    x = jnp.asarray(X, jnp.bfloat16)
    out = merge(graphdef, params)(x)
    assert out.dtype == jnp.bfloat16
    exact = merge(graphdef, params)(x.astype(jnp.float32))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_the_configuration_chooses_the_norm() -> None:
    assert isinstance(make_norm(CONFIGS["gpt2"]), LayerNorm)
    gemma = make_norm(CONFIGS["gemma2"])
    assert isinstance(gemma, RMSNorm) and gemma.offset == 1.0


# --- MLP -------------------------------------------------------------------------------------------------


def naive(x: float, kind: Activation) -> float:
    match kind:
        case "relu":
            return max(x, 0.0)
        case "silu":
            return x / (1 + math.exp(-x))
        case "gelu":
            return x * (1 + math.erf(x / math.sqrt(2))) / 2
        case "gelu_tanh":
            return x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


@pytest.mark.parametrize("kind", get_args(Activation))
def test_activations(kind: Activation) -> None:
    x = np.linspace(-6, 6, 41)
    np.testing.assert_allclose(activate(jnp.asarray(x, jnp.float32), kind), [naive(v, kind) for v in x], atol=2e-6)


@pytest.mark.parametrize("gated", [True, False])
def test_mlp(gated: bool) -> None:
    config = replace(LLAMA, gated=gated, mlp_bias=True)
    graphdef, weights = describe(lambda: MLP(config))
    params = jax.tree.map(np.asarray, made(weights))

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return np.asarray(x @ params[name]["kernel"].T + params[name]["bias"])

    def silu(x: np.ndarray) -> np.ndarray:
        return x / (1 + np.exp(-x))

    inner = silu(linear("gate", X)) * linear("up", X) if gated else silu(linear("up", X))
    np.testing.assert_allclose(
        merge(graphdef, params)(jnp.asarray(X), LayerTerms(), None), linear("down", inner), rtol=1e-4, atol=1e-3
    )


# --- positions -------------------------------------------------------------------------------------------


def test_rotation_depends_on_the_distance_alone() -> None:
    q, k = (jnp.asarray(RNG.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(i: int, j: int) -> float:
        turned = [rotate(x, rope_angles(LLAMA, jnp.asarray([[at]]))) for x, at in ((q, i), (k, j))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert abs(score(0, 0) - float(jnp.sum(q * k))) < 1e-5
    for i, j in [(5, 3), (40, 38), (2, 0)]:
        assert abs(score(i, j) - score(12, 10)) < 1e-4
    assert abs(score(5, 3) - score(5, 4)) > 1e-3


def test_rotation_turns_pairs_of_halves() -> None:
    """Dimension i turns with dimension i + d/2, by `position * theta ** (-2i / d)`."""
    x = RNG.normal(size=(1, 1, 1, 8)).astype(np.float32)
    out = rotate(jnp.asarray(x), rope_angles(LLAMA, jnp.asarray([[7]])))[0, 0, 0]
    for i in range(4):
        angle = 7 * 10_000.0 ** (-2 * i / 8)
        a, b = x[0, 0, 0, i], x[0, 0, 0, i + 4]
        assert abs(out[i] - (a * math.cos(angle) - b * math.sin(angle))) < 1e-5
        assert abs(out[i + 4] - (b * math.cos(angle) + a * math.sin(angle))) < 1e-5


def frequencies(scaling: RopeScaling, length: int = 64, d: int = 64) -> np.ndarray:
    return np.asarray(rope_frequencies(d, 10_000.0, scaling, length)[0], np.float64)


PLAIN = 10_000.0 ** (-np.arange(0, 64, 2) / 64)


def test_plain_and_linear_frequencies() -> None:
    np.testing.assert_allclose(frequencies(RopeScaling()), PLAIN, rtol=1e-5)
    np.testing.assert_allclose(frequencies(RopeScaling("linear", factor=4.0)), PLAIN / 4, rtol=1e-5)


def test_dynamic_frequencies_stretch_beyond_the_trained_context_alone() -> None:
    scaling = RopeScaling("dynamic", factor=2.0, original_max_length=64)
    np.testing.assert_allclose(frequencies(scaling, 64), PLAIN, rtol=1e-5)
    theta = 10_000.0 * (2.0 * 256 / 64 - 1) ** (64 / 62)
    np.testing.assert_allclose(frequencies(scaling, 256), theta ** (-np.arange(0, 64, 2) / 64), rtol=1e-5)


def test_llama3_frequencies() -> None:
    """High frequencies stay, low ones are divided, those between are blended by their wavelength."""
    scaling = RopeScaling("llama3", factor=8.0, original_max_length=512, low_freq_factor=1.0, high_freq_factor=4.0)
    expected = []
    for f in PLAIN:
        turns = 512 * f / (2 * math.pi)  # over the trained context
        share = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        expected.append(share * f + (1 - share) * f / 8)
    np.testing.assert_allclose(frequencies(scaling), expected, rtol=1e-5)
    assert expected[0] == PLAIN[0] and expected[-1] == PLAIN[-1] / 8


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_frequencies(truncate: bool) -> None:
    """As llama3's, blended by the dimension's index between two counts of turns over the trained context."""
    scaling = RopeScaling("yarn", factor=4.0, original_max_length=512, truncate=truncate)

    def index(turns: float) -> float:
        """The dimension that turns so often over 512 positions."""
        return 64 * math.log(512 / (turns * 2 * math.pi)) / (2 * math.log(10_000.0))

    low, high = index(32.0), index(1.0)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    divided = np.clip((np.arange(32) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(frequencies(scaling), PLAIN * (1 - divided) + PLAIN / 4 * divided, rtol=1e-4)
    assert divided[0] == 0 and divided[-1] == 1


def test_yarn_sharpens_attention() -> None:
    def factor(**options: float) -> float:
        return rope_frequencies(64, 10_000.0, RopeScaling("yarn", **options), 64)[1]  # type: ignore[arg-type]

    assert factor(factor=4.0) == 0.1 * math.log(4.0) + 1
    assert factor(factor=1.0) == 1.0
    assert factor(factor=4.0, attention_factor=1.5) == 1.5
    config = replace(LLAMA, rope_scaling=RopeScaling("yarn", factor=4.0, attention_factor=1.5))
    cos, sin = rope_angles(config, jnp.arange(4)[None])
    np.testing.assert_allclose(cos**2 + sin**2, 1.5**2, rtol=1e-5)


@pytest.mark.parametrize("size", [8, 7])
def test_sinusoids(size: int) -> None:
    """`PE(pos, 2i) = sin(pos / 10000^(2i/d))`, `PE(pos, 2i+1) = cos(...)`."""
    out = sinusoids(51, size)
    assert out.shape == (51, size) and out.dtype == np.float32
    for position in (0, 3, 50):
        for i in range(size):
            angle = position / 10_000 ** (2 * (i // 2) / size)
            assert abs(out[position, i] - (math.cos(angle) if i % 2 else math.sin(angle))) < 1e-6


def test_a_config_that_contradicts_itself_is_refused() -> None:
    for wrong, reason in [
        ({"num_kv_heads": 3}, "num_heads=4 must be a multiple of num_kv_heads=3"),
        ({"head_dim": 7}, "head_dim=7 must be even for RoPE"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=reason):
            replace(LLAMA, **wrong)  # type: ignore[arg-type]
    assert isinstance(replace(LLAMA, head_dim=7, positions="learned"), ModelConfig)
