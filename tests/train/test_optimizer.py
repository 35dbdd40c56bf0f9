"""Schedules, decay, and optimizer states that live where their weights live."""

import math
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from abi_jax.model.weight import Tree, Weight, initialize
from abi_jax.sharding import AxisRules, MeshConfig
from abi_jax.train.config import OptimizerConfig, TrainConfig
from abi_jax.train.optimizer import make_optimizer, make_schedule
from abi_jax.train.step import initial_state
from tests.train.tiny import MESHES, ONE, mesh_of

# Large enough that Adafactor factors the matrices.
WEIGHTS = {"up": Weight((256, 128), ("mlp", "embed")), "norm": Weight((128,), ("norm",), "ones")}


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("kind", "half", "end"),
    [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1.0, 1.0)],
)
def test_schedules_warm_up_and_decay_to_a_fraction(kind: Any, half: float, end: float) -> None:
    rate = make_schedule(OptimizerConfig(learning_rate=0.2, schedule=kind, warmup_steps=10), 110)
    assert [float(rate(s)) for s in (0, 5, 10)] == pytest.approx([0, 0.1, 0.2])
    assert [float(rate(s)) / 0.2 for s in (60, 110, 500)] == pytest.approx([half, end, end])


@pytest.mark.smoke
def test_cosine_in_between_and_warm_up_of_a_short_run() -> None:
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=0, final_fraction=0.0)
    rate = make_schedule(config, 100)
    assert float(rate(26)) == pytest.approx((1 + math.cos(math.pi * 25 / 99)) / 2, abs=0.02)
    short = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=1000), 8)
    assert float(short(4)) == pytest.approx(1.0)  # half of the run at most


def run(config: OptimizerConfig, mesh: MeshConfig, steps: int = 5) -> tuple[Tree, Any]:
    """Weights and optimizer state after some steps on a quadratic."""
    optimizer = make_optimizer(config, 10)
    state = initial_state(initialize(WEIGHTS, jax.random.key(0), mesh=mesh_of(mesh), rules=AxisRules()), optimizer)

    @jax.jit
    def step(params: Tree, inner: Any) -> tuple[Tree, Any]:
        gradients = jax.grad(lambda p: sum(jnp.sum((x - 0.5) ** 2) for x in jax.tree.leaves(p)))(params)
        updates, inner = optimizer.update(gradients, inner, params)
        return optax.apply_updates(params, updates), inner

    params, inner = state.params, state.optimizer
    for _ in range(steps):
        params, inner = step(params, inner)
    return params, inner


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
@pytest.mark.parametrize("name", ["fsdp", "2x2x2"])
def test_a_mesh_gives_the_updates_of_one_device(kind: Literal["adamw", "adafactor"], name: str) -> None:
    config = OptimizerConfig(kind=kind, learning_rate=0.01, warmup_steps=1, weight_decay=0.1)
    (one, _), (many, inner) = run(config, ONE), run(config, MESHES[name])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=1e-6)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves((many, inner)))


def test_moments_live_where_their_weights_live() -> None:
    config = OptimizerConfig()
    mesh = mesh_of(MESHES["2x2x2"])
    params = initialize(WEIGHTS, jax.random.key(0), mesh=mesh, rules=AxisRules())
    state = initial_state(params, make_optimizer(config, 10))
    for moment in ("mu", "nu"):
        tree = optax.tree_utils.tree_get(state.optimizer, moment)
        assert jax.tree.map(lambda x: x.sharding, tree) == jax.tree.map(lambda x: x.sharding, params)
    counts = [x for x in jax.tree.leaves((state.optimizer, state.step)) if x.ndim == 0]
    assert len(counts) == 3 and all(x.sharding.is_fully_replicated for x in counts)


def test_adafactor_keeps_a_row_and_a_column_for_a_matrix() -> None:
    _, inner = run(OptimizerConfig(kind="adafactor"), MESHES["2x2x2"], steps=1)
    sizes = {x.shape for x in jax.tree.leaves(inner) if x.ndim}
    assert {(256,), (128,)} <= sizes and (256, 128) not in sizes


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_only_matrices_decay(kind: Literal["adamw", "adafactor"]) -> None:
    params = {"matrix": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    still = jax.tree.map(jnp.zeros_like, params)
    config = OptimizerConfig(kind=kind, learning_rate=0.1, schedule="constant", warmup_steps=0, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    inner = optimizer.init(params)
    for _ in range(2):  # the schedule's first step has rate 0
        updates, inner = optimizer.update(still, inner, params)
        params = optax.apply_updates(params, updates)
    assert bool((params["matrix"] < 1).all()) and bool((params["bias"] == 1).all())


@pytest.mark.smoke
def test_gradients_are_clipped_by_their_norm_over_all_weights() -> None:
    params = {"a": jnp.zeros(3), "b": jnp.zeros(1)}
    gradients = {"a": jnp.array([0.0, 30.0, 0.0]), "b": jnp.array([40.0])}
    optimizer = make_optimizer(OptimizerConfig(clip_norm=5.0), 10)
    _, inner = optimizer.update(gradients, optimizer.init(params), params)
    moments = optax.tree_utils.tree_get(inner, "mu")
    np.testing.assert_allclose(moments["a"][1], 0.1 * 3, rtol=1e-6)
    np.testing.assert_allclose(moments["b"], 0.1 * 4, rtol=1e-6)


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["steps", "checkpoint_every", "keep", "log_every"])
def test_counts_of_a_run_start_at_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} = 0; expected at least 1"):
        replace(TrainConfig(), **{name: 0})  # type: ignore[arg-type]
