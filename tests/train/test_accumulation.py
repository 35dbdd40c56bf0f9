"""Gradients added up over parts of a batch against the gradient of the whole batch."""

from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.sharding import use
from abi_jax.train.config import TrainConfig
from abi_jax.train.feed import place_batch
from abi_jax.train.loop import train
from abi_jax.train.optimizer import make_optimizer
from abi_jax.train.step import initial_state, make_step
from tests.thorough import usual
from tests.train.tiny import MESHES, ONE, STEPS, batches, config, mesh_of, placed, prepared


def weighted(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Unequal weights and two groups of an attribute: parts of a batch then weigh differently."""
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.2, 3.0, (len(batch["weights"]), 1)).astype(np.float32)
    attribute = np.broadcast_to(np.arange(len(scale))[:, None] % 3, batch["tokens"].shape)
    return batch | {"weights": batch["weights"] * scale, "attribute": attribute.astype(np.int32)}


@cache
def gradient(mode: str, mesh: str, bias: float, parts: int) -> tuple[np.ndarray, Any]:
    """Losses and gradient of one batch, computed in parts."""
    run = placed(prepared(mode), mesh_of({"one": ONE, **MESHES}[mesh]))
    objective = replace(run.objective(5), bias_weight=bias, attributes=2)
    two = zip(batches(mode)[0].items(), batches(mode)[1].values(), strict=True)
    batch = weighted({name: np.concatenate([a, b]) for (name, a), b in two})
    with use(run.mesh, run.rules):
        of_run = place_batch(batch, run.mesh, run.rules, len(batch["tokens"]))
        compiled = jax.jit(lambda t, f, b: objective.gradient(t, f, b, parts))
        return jax.device_get(compiled(run.trained, run.frozen, of_run))


@pytest.mark.parametrize(
    ("mode", "parts", "bias"),
    usual(product(["backbone", "persona"], [2, 16], [0.0, 0.7]), [("backbone", 2, 0.7), ("persona", 16, 0.7)]),
)
def test_parts_of_a_batch_give_its_gradient(mode: str, parts: int, bias: float) -> None:
    losses, whole = gradient(mode, "one", bias, 1)
    again, added = gradient(mode, "one", bias, parts)
    np.testing.assert_allclose(again, losses, rtol=0, atol=1e-5)
    scale = max(np.abs(x).max() for x in jax.tree.leaves(whole))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * max(scale, 1.0))


@pytest.mark.parametrize("mesh", ["fsdp", "2x2x2"])
def test_parts_on_a_mesh(mesh: str) -> None:
    _, whole = gradient("backbone", "one", 0.7, 1)
    _, added = gradient("backbone", mesh, 0.7, 2)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(added), strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=2e-6)


def test_the_bias_term_moves_the_gradient() -> None:
    _, plain = gradient("backbone", "one", 0.0, 1)
    _, moved = gradient("backbone", "one", 0.7, 1)
    assert max(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(moved), strict=True)) > 1e-4


def test_steps_in_parts_train_the_same_weights() -> None:
    run = placed(prepared("persona"), mesh_of(ONE))
    optimizer = make_optimizer(run.config.optimizer, STEPS)
    losses = []
    for parts in (1, 4):
        with use(run.mesh, run.rules):
            state = initial_state(jax.tree.map(jnp.copy, run.trained), optimizer)
            step = make_step(run.objective(5), optimizer, accumulate=parts)
            each = []
            for batch in batches("persona")[:8]:
                state, metrics = step(state, run.frozen, place_batch(batch, run.mesh, run.rules, len(batch["tokens"])))
                each.append(float(metrics["loss"]))
        losses.append(each)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-5)


@pytest.mark.smoke
def test_a_batch_that_does_not_divide_is_refused(tmp_path: Any) -> None:
    with pytest.raises(InputError, match=r"data.batch_size = 8 does not divide into accumulate = 3 parts"):
        config("backbone", out=tmp_path, accumulate=3)
    refused = config("backbone", out=tmp_path / "run", accumulate=2, mesh=MESHES["data"])
    with pytest.raises(InputError, match=r"data.batch_size / accumulate x data.length.* 4 .*8"):
        train(refused, progress=False)  # every device would compute the rows of all others
    with pytest.raises(InputError, match=r"bias_weight = 0.5 without data.bias_by"):
        TrainConfig(bias_weight=0.5)


def test_a_run_in_parts_is_the_run(tmp_path: Any) -> None:
    whole = train(config("backbone", out=tmp_path / "a", mesh=MESHES["data"], steps=4, data={"batch_size": 16}), False)
    parts = train(
        config("backbone", out=tmp_path / "b", mesh=MESHES["data"], steps=4, data={"batch_size": 16}, accumulate=2),
        False,
    )
    assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-5)
