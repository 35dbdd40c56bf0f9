"""The decoder as a whole: causality, packing, recomputation, and the same numbers on every mesh."""

from dataclasses import replace
from functools import cache, partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder, Remat
from abi_jax.model.inputs import Inputs, gated_mixture, plain_inputs
from abi_jax.model.layers import sinusoids
from abi_jax.model.weight import Tree, describe, merge, path_name
from abi_jax.sharding.context import use
from abi_jax.text.roles import Role
from tests.model.cases import CONFIGS, NAMES, base, conversations, logits, spoken, trained
from tests.model.meshes import EACH_MESH, MESHES, sharded, wide

EACH = pytest.mark.parametrize("name", NAMES)
ROWS = conversations()
W = np.array([[0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]], np.float32)


@EACH
def test_no_token_sees_a_later_one(name: str) -> None:
    config, params = trained(name)
    inputs = spoken(ROWS, W)
    later = replace(inputs, tokens=jnp.where(ROWS.positions > 9, (ROWS.tokens + 1) % 64, ROWS.tokens))
    before, after = logits(config, params, inputs), logits(config, params, later)
    assert np.array_equal(before[:, :10], after[:, :10])
    assert (before[:, 10:] != after[:, 10:]).any(axis=-1).all()


def packed(names: tuple[int, ...], lengths: tuple[int, ...]) -> Inputs:
    """One row holding the first `lengths` tokens of rows `names` of the conversations, then padding."""
    spread = spoken(ROWS, W)

    def join(x: jax.Array) -> jax.Array:
        parts = [x[row, :n] for row, n in zip(names, lengths, strict=True)]
        filled = jnp.concatenate(parts)
        return jnp.pad(filled, [(0, 48 - len(filled)), *[(0, 0)] * (filled.ndim - 1)])[None]

    segments = jnp.asarray(np.repeat(np.arange(len(names)) + 1, lengths))
    row = jax.tree.map(join, spread)
    return replace(row, segments=jnp.pad(segments, (0, 48 - len(segments)))[None], packed=True)


@EACH
def test_packed_examples_are_each_alone(name: str) -> None:
    config, params = trained(name)
    lengths = (16, 7, 11, 10)
    whole = logits(config, params, spoken(ROWS, W))
    together = logits(config, params, packed((0, 1, 2, 3), lengths))[0]
    starts = np.cumsum((0, *lengths))
    for row, (start, n) in enumerate(zip(starts, lengths, strict=False)):
        assert np.abs(together[start : start + n] - whole[row, :n]).max() < 1e-5


def test_no_gradient_reaches_the_other_examples_of_a_row() -> None:
    config, params = trained("llama")
    graphdef, _ = describe(partial(Decoder, config))
    inputs = packed((0, 3), (16, 16))
    tokens = jnp.arange(48, dtype=jnp.int32)[None]
    inputs = replace(inputs, tokens=tokens)

    def loss(params: Tree) -> jax.Array:
        out = merge(graphdef, params)(inputs)
        return jnp.sum(jax.nn.logsumexp(out, axis=-1) * (inputs.segments == 1))

    gradient = jax.jit(jax.grad(loss))(params)["embedding"]
    touched = np.abs(gradient).max(axis=1) > 0
    assert touched[:16].all() and not touched[16:].any()


def test_padding_changes_nothing() -> None:
    config, params = trained("gemma2")
    short = jax.tree.map(lambda x: x[:, :9], spoken(ROWS, W))
    padded = replace(spoken(ROWS, W), segments=jnp.asarray(np.arange(16) < 9 + 0 * ROWS.tokens, jnp.int32))
    expected = logits(config, params, short)
    for inputs in (padded, replace(padded, packed=True)):
        assert np.abs(logits(config, params, inputs)[:, :9] - expected).max() < 1e-5


@EACH
def test_bfloat16_activations_stay_near_f32(name: str) -> None:
    config, params = trained(name)
    exact = logits(config, params, spoken(ROWS, W))
    half = logits(config, params, spoken(ROWS, W), jnp.bfloat16)
    assert half.dtype == np.float32
    assert 0 < np.abs(half - exact).mean() < 0.05 * np.abs(exact).mean()


def test_soft_capping_bounds_the_logits() -> None:
    config, params = base("gemma2")
    loud = params | {"embedding": params["embedding"] * 100}
    assert np.abs(logits(config, loud, ROWS)).max() <= 4.0
    assert np.abs(logits(replace(config, logit_softcap=None), loud, ROWS)).max() > 100


def test_embeddings_are_tokens_plus_positions() -> None:
    """The source's `E(x) = PE(x) + TokenEmbed(x)`."""
    graphdef, _ = describe(partial(Decoder, CONFIGS["sinusoidal"]))
    params = base("sinusoidal")[1]
    expected = sinusoids(64, 32)[ROWS.positions] + params["embedding"][ROWS.tokens]
    assert np.array_equal(merge(graphdef, params).embed(ROWS), expected)
    graphdef, _ = describe(partial(Decoder, CONFIGS["gpt2"]))
    params = base("gpt2")[1]
    expected = params["positions"][ROWS.positions] + params["embedding"][ROWS.tokens]
    assert np.array_equal(merge(graphdef, params).embed(ROWS), expected)


def test_plain_inputs_are_rows_of_one_input_segment() -> None:
    inputs = plain_inputs(np.array([[3, 1, 2]]))
    assert inputs.positions.tolist() == [[0, 1, 2]] and inputs.segments.tolist() == [[1, 1, 1]]
    assert inputs.roles.tolist() == [[Role.INPUT] * 3] and inputs.mixture is None and not inputs.packed
    spread = gated_mixture(W[2:3], np.array([[False, True, True]]))
    assert spread[0].tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]]


# --- gradients ---------------------------------------------------------------------------------------


def value_and_gradient(config: ModelConfig, params: Tree, inputs: Inputs, remat: Remat = "none") -> tuple[Any, Any]:
    """Logits, and the gradient of the mean cross-entropy of the next tokens."""
    graphdef, _ = describe(partial(Decoder, config, remat=remat))

    @jax.jit
    def run(params: Tree, inputs: Inputs) -> tuple[jax.Array, Tree]:
        def loss(params: Tree) -> tuple[jax.Array, jax.Array]:
            out = merge(graphdef, params)(inputs)
            picked = jnp.take_along_axis(out[:, :-1], inputs.tokens[:, 1:, None], axis=-1)[..., 0]
            return jnp.mean(jax.nn.logsumexp(out[:, :-1], axis=-1) - picked), out

        gradient, out = jax.grad(loss, has_aux=True)(params)
        return out, gradient

    return run(params, inputs)


@pytest.mark.parametrize("remat", [x for x in get_args(Remat) if x != "none"])
def test_recomputation_gives_the_same_gradients(remat: Remat) -> None:
    config, params = trained("gemma2")
    expected, gradient = value_and_gradient(config, params, spoken(ROWS, W))
    out, again = value_and_gradient(config, params, spoken(ROWS, W), remat)
    assert np.abs(out - expected).max() < 1e-5
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_recomputation_keeps_less() -> None:
    """What the backward pass is given: with full recomputation, little more than each block's input."""
    config, params = base("llama")

    def kept(remat: Remat) -> int:
        graphdef, _ = describe(partial(Decoder, config, remat=remat))

        def backward(params: Tree) -> Any:
            return jax.vjp(lambda p: merge(graphdef, p)(ROWS), params)[1]

        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(backward, params)))

    assert kept("full") < kept("dots") < kept("none")


# --- many devices --------------------------------------------------------------------------------------

BATCH = spoken(conversations(8), np.concatenate([W, W[::-1]]))


@cache
def one_device() -> tuple[Any, Any]:
    return jax.tree.map(np.asarray, value_and_gradient(*wide(), BATCH))


@EACH_MESH
def test_every_mesh_gives_the_same_logits_and_gradients(mesh: str) -> None:
    expected, expected_gradient = one_device()
    assert np.abs(expected).mean() > 0.5
    with use(MESHES[mesh]()):
        out, gradient = value_and_gradient(*sharded(mesh), BATCH)
    assert len(out.sharding.device_set) == 8
    assert np.abs(out - expected).max() < 1e-5 * max(1.0, np.abs(expected).mean())
    for (path, b), g in zip(
        jax.tree_util.tree_leaves_with_path(expected_gradient), jax.tree.leaves(gradient), strict=True
    ):
        assert np.abs(g - b).max() < 1e-5 * max(1.0, np.abs(b).mean()), path_name(path)
