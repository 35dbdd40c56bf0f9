"""Every mesh computes what one device computes: losses, gradients, logits, generated tokens."""

from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.decoder import Decoder
from abi_jax.model.generate import Generator, Prompt
from abi_jax.model.weight import Tree, describe, merge, shardings
from abi_jax.sharding import AxisRules, MeshConfig, use
from abi_jax.text.roles import Role
from abi_jax.train.feed import batch_share, place_batch
from abi_jax.train.objectives import inputs_of
from abi_jax.train.setup import prepare
from tests.thorough import usual
from tests.train.tiny import CAPACITY, MESHES, ONE, batches, config, mesh_of, prepared, single, train_on

TOLERANCE = 1e-5
EACH = pytest.mark.parametrize("name", usual(MESHES, ["2x2x2", "sequence"]))


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("mode", ["backbone", "persona"])
def test_twenty_steps_give_the_losses_and_gradients_of_one_device(name: str, mode: str) -> None:
    curve, expected = train_on(MESHES[name], mode), single(mode)
    assert expected.losses[-1] < expected.losses[0]
    np.testing.assert_allclose(curve.losses, expected.losses, rtol=0, atol=TOLERANCE)
    for a, b in zip(jax.tree.leaves(curve.gradient), jax.tree.leaves(expected.gradient), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE)


def logits(params: Tree, mesh: MeshConfig) -> np.ndarray:
    run, grid = prepared("persona"), mesh_of(mesh)
    graphdef, _ = describe(partial(Decoder, run.model))
    with use(grid, run.rules):
        batch = place_batch(batches("persona")[0], grid, run.rules, 8)
        return np.asarray(jax.jit(lambda p, b: merge(graphdef, p)(inputs_of(b, True)))(params, batch))


def tokens(params: Tree, mesh: MeshConfig) -> list[list[int]]:
    run = prepared("persona")
    text = batches("persona")[0]["tokens"]
    mixtures = (None, np.eye(CAPACITY)[0], np.eye(CAPACITY)[1], np.array([0.25, 0.5, 0.25, 0]))
    prompts = [Prompt(text[i, : 5 + i], np.full(5 + i, Role.INPUT), w) for i, w in enumerate(mixtures)]
    with use(mesh_of(mesh), run.rules):
        return Generator(run.model, params).generate(prompts, 16)


@EACH
def test_logits_and_generated_tokens_are_those_of_one_device(name: str) -> None:
    params = single("persona").params
    _, weights = describe(partial(Decoder, prepared("persona").model))
    spread = jax.device_put(params, shardings(weights, mesh_of(MESHES[name]), AxisRules()))
    np.testing.assert_allclose(logits(spread, MESHES[name]), logits(params, ONE), rtol=0, atol=TOLERANCE)
    assert tokens(spread, MESHES[name]) == tokens(params, ONE)


def test_fresh_weights_do_not_depend_on_the_mesh() -> None:
    mesh = mesh_of(MESHES["2x2x2"])
    with use(mesh):
        spread = prepare(config("backbone"), mesh, AxisRules()).trained
    for a, b in zip(jax.tree.leaves(spread), jax.tree.leaves(prepared("backbone").trained), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-7)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(spread))


def test_bfloat16_and_remat_change_the_loss_by_no_more_than_rounding() -> None:
    run, batch = prepared("backbone"), jax.tree.map(jnp.asarray, batches("backbone")[0])
    params = {**run.trained, "layers": {"0": run.trained["layers"]["0"]}}
    found = {}
    for dtype, remat in (("float32", "none"), ("float32", "full"), ("float32", "dots"), ("bfloat16", "full")):
        graphdef, _ = describe(partial(Decoder, replace(run.model, num_layers=1), dtype=dtype, remat=cast(Any, remat)))
        objective = replace(run.objective(5), graphdef=graphdef)
        loss, gradient = jax.jit(jax.value_and_grad(lambda p, o=objective: jnp.mean(o.losses(p, None, batch))))(params)
        assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradient))
        found[dtype, remat] = float(loss)
    exact = found.pop(("float32", "none"))
    assert found.pop(("bfloat16", "full")) == pytest.approx(exact, abs=0.02)
    assert list(found.values()) == pytest.approx([exact, exact], abs=1e-6)


@pytest.mark.smoke
@pytest.mark.parametrize("name", MESHES)
def test_one_process_holds_the_whole_batch(name: str) -> None:
    assert batch_share(8, mesh_of(MESHES[name]), AxisRules()) == (0, 1)


@pytest.mark.parametrize(
    ("mesh", "data", "message"),
    [
        (MESHES["data"], {"batch_size": 6}, "dimension 'batch' of size 6 does not divide by 8"),
        (MESHES["sequence"], {"length": 62}, "dimension 'length' of size 62 does not divide by 4"),
        (ONE, {"length": 512}, "data.length = 512 is longer than the model's context of 256 tokens"),
    ],
)
def test_rows_that_the_mesh_or_the_model_cannot_take_are_refused(
    mesh: MeshConfig, data: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(config("backbone", data=data), mesh_of(mesh), AxisRules())
