"""Losses against plain numpy, packing against one example a row, and the reading rules of training."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.data import Example, ExampleSource, assemble, demo_files, read_records
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import Tree, describe, merge
from abi_jax.text.roles import NUM_ROLES, Role
from abi_jax.train.feed import pad_personas
from abi_jax.train.objectives import group_sums, inputs_of, loss_gap, token_losses, weighted_mean
from abi_jax.train.step import Objective
from abi_jax.train.trees import join
from tests.train.tiny import CAPACITY, batches, prepared

READS_ALL = np.ones((CAPACITY, NUM_ROLES), bool)
NO_HISTORY = READS_ALL.copy()
NO_HISTORY[1, Role.HISTORY] = False  # Aviva answers every question on its own


@cache
def params() -> Tree:
    """Fresh weights with a bank in which nothing is zero."""
    run = prepared("persona")
    noise = iter(jax.random.split(jax.random.key(3), 1000))
    bank = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(noise), x.shape), run.trained)
    return join(bank, run.frozen)


def losses(batch: dict[str, Any], persona: bool = True, **rules: Any) -> np.ndarray:
    """Loss of every token, [B, T]."""
    graphdef, _ = describe(partial(Decoder, prepared("persona").model))
    objective = Objective(graphdef, persona, 5, **rules)
    return np.asarray(jax.jit(objective.losses)(params(), None, jax.tree.map(jnp.asarray, batch)))


def test_token_losses_are_the_cross_entropy_of_the_targets() -> None:
    batch = jax.tree.map(jnp.asarray, batches("persona")[0])
    graphdef, _ = describe(partial(Decoder, prepared("persona").model))
    inputs = inputs_of(batch, persona=True)
    logits = np.asarray(jax.jit(lambda p: merge(graphdef, p)(inputs))(params()), np.float64)
    found = jax.jit(lambda p: token_losses(merge(graphdef, p), inputs, batch["targets"]))(params())
    for row in range(2):
        for at in range(0, 64, 7):
            scores = np.exp(logits[row, at])
            naive = -np.log(scores[int(batch["targets"][row, at])] / scores.sum())
            assert float(found[row, at]) == pytest.approx(naive, abs=1e-5)


@pytest.mark.smoke
def test_means_and_sums() -> None:
    loss = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], jnp.float32)
    weights = jnp.array([[0.0, 0.5, 2.0], [0.0, 1.0, 0.0]], jnp.float32)
    group = jnp.array([[0, 2, 2], [1, 0, 1]])
    assert float(weighted_mean(loss, weights)) == pytest.approx((1 + 6 + 5) / 3.5)
    assert float(weighted_mean(loss, jnp.zeros_like(weights))) == 0
    sums, counts = group_sums(loss, weights, group, 3)
    assert sums.tolist() == [5, 0, 5]
    assert counts.tolist() == [1, 0, 2]


@pytest.mark.parametrize("T", [1000, 1024])
def test_a_mean_of_many_equal_weights_is_that_of_f64(T: int) -> None:
    loss = np.random.default_rng(0).exponential(3.0, (4, T)).astype(np.float32)
    weights = np.full_like(loss, 0.1)
    found = weighted_mean(jnp.asarray(loss), jnp.asarray(weights))
    assert float(found) == pytest.approx(np.mean(loss, dtype=np.float64), rel=5e-7)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), groups=st.integers(1, 5))
def test_the_bias_term_is_the_variance_of_the_means_of_the_groups_that_are_there(seed: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    loss, weights = rng.exponential(size=(3, 7)), rng.integers(0, 2, (3, 7)) * rng.uniform(0.1, 2, (3, 7))
    attribute = rng.integers(0, groups + 1, (3, 7))
    means = [
        loss[(attribute == g) & (weights > 0)].mean()
        for g in range(1, groups + 1)
        if ((attribute == g) & (weights > 0)).any()
    ]
    as_f32 = jnp.asarray(loss, jnp.float32), jnp.asarray(weights, jnp.float32)
    found = loss_gap(*as_f32, jnp.asarray(attribute), groups)
    assert float(found) == pytest.approx(np.var(means) if means else 0.0, rel=1e-4, abs=1e-6)


# --- packing -------------------------------------------------------------------------------------


@cache
def examples() -> tuple[Example, ...]:
    """Short and long answers of all personas and of a mixture."""
    run = prepared("persona")
    records = list(read_records(demo_files()).records)
    records = [records[i] for i in (0, 3, len(records) // 2, -1)] + [
        replace(records[1], mixture={"abbey": 0.5, "abi": 0.5})
    ]
    source = ExampleSource(records, run.config.data, run.tokenizer, run.personas)
    return tuple(source[i] for i in range(len(source)))[:6]


def rows(packed: bool) -> list[list[Example]]:
    return [list(examples()[:3]), list(examples()[3:])] if packed else [[e] for e in examples()]


@pytest.mark.parametrize("mode", ["backbone", "persona", "reading rules", "strict reading rules"])
def test_packed_examples_have_the_losses_they_have_alone(mode: str) -> None:
    rules: dict[str, np.ndarray] = {}
    if "rules" in mode:
        rules = {"reads": NO_HISTORY, "strict": np.array([False, "strict" in mode, False, False])}
    found = []
    for packed in (True, False):
        batch = pad_personas(assemble(rows(packed), 192, 3), CAPACITY)
        loss = losses(batch, mode != "backbone", **rules)
        counted = batch["segments"] > 0
        found.append((loss[counted], float(weighted_mean(jnp.asarray(loss), jnp.asarray(batch["weights"])))))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=1e-5)
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)


# --- who may read what ---------------------------------------------------------------------------


def row(*parts: tuple[str, bool]) -> dict[str, np.ndarray]:
    """A batch of one row: (role, whether Aviva speaks there) by token, one segment, then one token of padding."""
    T = len(parts) + 1
    roles = np.array([[Role[name.upper()] for name, _ in parts] + [0]], np.int32)
    mixture = np.zeros((1, T, CAPACITY), np.float32)
    mixture[0, : T - 1, 1] = [acts for _, acts in parts]
    ones = (roles > 0).astype(np.int32)
    tokens = np.arange(T, dtype=np.int32)[None]
    return {"tokens": tokens, "positions": tokens, "segments": ones, "roles": roles, "mixture": mixture}


TURN = row(("history", False), ("input", False), ("input", True), ("response", True))


def reads_history(batch: dict[str, np.ndarray], **rules: np.ndarray) -> list[bool]:
    readable = inputs_of(jax.tree.map(jnp.asarray, batch), True, **rules).readable
    assert readable is not None
    assert np.asarray(readable[..., Role.INPUT]).all()
    return np.asarray(readable[0, :, Role.HISTORY]).tolist()


@pytest.mark.smoke
def test_a_rule_binds_where_its_persona_speaks() -> None:
    assert reads_history(TURN, reads=NO_HISTORY) == [True, True, False, False, True]
    assert reads_history(TURN, reads=NO_HISTORY, strict=np.zeros(CAPACITY, bool)) == [True, True, False, False, True]


@pytest.mark.smoke
def test_a_strict_rule_binds_the_whole_segment_and_no_other() -> None:
    strict = np.array([False, True, False, False])
    assert reads_history(TURN, reads=NO_HISTORY, strict=strict) == [False, False, False, False, True]
    two = {name: np.concatenate([x, x], axis=1) for name, x in TURN.items()}
    two["segments"][0, 5:9] = 2
    two["mixture"][0, 5:] = 0
    assert reads_history(two, reads=NO_HISTORY, strict=strict) == [False] * 4 + [True] * 6


@pytest.mark.smoke
def test_a_mixture_reads_what_all_its_personas_may_read() -> None:
    mixed = {**TURN, "mixture": TURN["mixture"] * 0.5}
    mixed["mixture"][..., 0] = mixed["mixture"][..., 1]
    assert reads_history(mixed, reads=NO_HISTORY) == [True, True, False, False, True]


@pytest.mark.smoke
def test_without_personas_or_rules_nothing_is_forbidden() -> None:
    batch = jax.tree.map(jnp.asarray, TURN)
    assert inputs_of(batch, True).readable is None
    assert inputs_of(batch, False, NO_HISTORY).readable is None
    assert inputs_of(batch, False).mixture is None


@pytest.mark.parametrize(("strict", "leaks"), [(False, True), (True, False)])
def test_what_was_said_before_reaches_a_strict_answer_by_no_way(strict: bool, leaks: bool) -> None:
    batch = row(*[("history", False)] * 4, *[("input", False)] * 3, ("input", True), *[("response", True)] * 4)
    batch["targets"] = np.roll(batch["tokens"], -1, axis=1)
    other = {**batch, "tokens": batch["tokens"] + 100 * (batch["roles"] == Role.HISTORY)}
    both = {name: np.concatenate([batch[name], other[name]]) for name in batch}
    rules: dict[str, Any] = {"reads": NO_HISTORY, "strict": np.array([False, strict, False, False])}
    one, two = losses(both, **rules)[:, 7:12]
    assert bool(np.abs(one - two).max() > 1e-5) == leaks
    free = losses(both, reads=READS_ALL)[:, 7:12]
    assert np.abs(free[0] - free[1]).max() > 1e-5
