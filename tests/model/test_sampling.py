"""Every filter against its definition, and draws against their probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from abi_jax.errors import InputError
from abi_jax.model.sampling import SamplingConfig, filter_logits, penalize, sample, stack

V = 12
REUSED = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**31)
filtered = jax.jit(filter_logits)
sampled = jax.jit(sample)


def draw_logits(seed: int, scale: float = 2.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).normal(size=V)).astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x.astype(np.float64) - x.max())
    return np.asarray(e / e.sum())


def kept(logits: np.ndarray, **options: Any) -> set[int]:
    """Tokens that the filters leave."""
    out = np.asarray(filtered(jnp.asarray(logits)[None], stack([SamplingConfig(**options)])))[0]
    left = np.isfinite(out)
    assert np.array_equal(out[left], logits[left])
    return set(np.flatnonzero(left).tolist())


# --- filters ---------------------------------------------------------------------------------------


@REUSED
@given(seed=seeds, k=st.integers(1, V + 3))
def test_top_k_keeps_the_k_likeliest(seed: int, k: int) -> None:
    logits = draw_logits(seed)
    assert kept(logits, top_k=k) == set(np.argsort(-logits)[:k].tolist())


def nucleus(logits: np.ndarray, p: float) -> set[int]:
    """The fewest likeliest tokens whose probabilities reach p."""
    probs, total, chosen = softmax(logits), 0.0, set()
    for token in np.argsort(-logits).tolist():
        assume(abs(total - p) > 1e-5)
        if total >= p:
            break
        chosen.add(token)
        total += probs[token]
    return chosen


@REUSED
@given(seed=seeds, p=st.floats(0.01, 0.999))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(seed: int, p: float) -> None:
    logits = draw_logits(seed)
    assert kept(logits, top_p=p) == nucleus(logits, p)


@REUSED
@given(seed=seeds, p=st.floats(0.01, 0.99))
def test_min_p_keeps_what_is_at_least_that_share_of_the_likeliest(seed: int, p: float) -> None:
    logits = draw_logits(seed)
    share = softmax(logits) / softmax(logits).max()
    assume(np.abs(share - p).min() > 1e-5)
    assert kept(logits, min_p=p) == set(np.flatnonzero(share >= p).tolist())


@REUSED
@given(seed=seeds, k=st.integers(1, V), p=st.floats(0.05, 0.95), m=st.floats(0.01, 0.5))
def test_filters_together(seed: int, k: int, p: float, m: float) -> None:
    """Top-p is taken over what top-k leaves; min-p is AND-ed."""
    logits = draw_logits(seed)
    by_k = np.where(np.isin(np.arange(V), np.argsort(-logits)[:k]), logits, -np.inf)
    share = softmax(logits) / softmax(logits).max()
    assume(np.abs(share - m).min() > 1e-5)
    expected = nucleus(by_k, p) & set(np.flatnonzero(share >= m).tolist())
    assert kept(logits, top_k=k, top_p=p, min_p=m) == expected


def test_filters_that_are_off_leave_out_nothing() -> None:
    """Also where the likeliest token has, in f32, all of the probability."""
    logits = np.linspace(0, -30, 64, dtype=np.float32)
    logits[0] = 20
    assert kept(logits) == set(range(64))


def test_equal_logits_stay_or_go_together() -> None:
    logits = np.array([1, 3, 3, 2] + [0] * 8, np.float32)
    assert kept(logits, top_k=1) == {1, 2}
    assert kept(np.zeros(V, np.float32), top_p=0.01) == set(range(V))


@REUSED
@given(seed=seeds, penalty=st.floats(0.5, 3.0))
def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits(seed: int, penalty: float) -> None:
    logits = draw_logits(seed)
    seen = np.random.default_rng(seed + 1).random(V) < 0.5
    expected = np.array(
        [x if not s else x / penalty if x > 0 else x * penalty for x, s in zip(logits, seen, strict=True)]
    )
    out = penalize(jnp.asarray(logits)[None], jnp.asarray(seen)[None], jnp.asarray([penalty], jnp.float32))
    np.testing.assert_allclose(out[0], expected, rtol=1e-6)


# --- draws -----------------------------------------------------------------------------------------

DRAWS = 4000


def frequencies_fit(tokens: np.ndarray, probs: np.ndarray) -> bool:
    """Pearson's statistic below its 99.99% quantile for 11 degrees of freedom; nothing of probability 0."""
    counts = np.bincount(tokens, minlength=V)
    expected = probs * len(tokens)
    some = expected > 0
    return not counts[~some].any() and float(((counts - expected)[some] ** 2 / expected[some]).sum()) < 37.4


def drawn(logits: np.ndarray, configs: list[SamplingConfig], positions: np.ndarray) -> np.ndarray:
    rows = jnp.broadcast_to(jnp.asarray(logits), (len(configs), V))
    return np.asarray(sampled(rows, stack(configs), jnp.zeros(rows.shape, bool), jnp.asarray(positions, jnp.int32)))


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_of_many_seeds_follow_the_probabilities(temperature: float) -> None:
    logits = draw_logits(1, scale=temperature)
    tokens = drawn(logits, [SamplingConfig(temperature, seed=i) for i in range(DRAWS)], np.zeros(DRAWS))
    assert frequencies_fit(tokens, softmax(logits / temperature))
    assert not frequencies_fit(tokens, softmax(logits / (temperature * 1.3)))


def test_draws_of_one_seed_at_many_positions_follow_the_probabilities() -> None:
    logits = draw_logits(2, scale=1.0)
    tokens = drawn(logits, [SamplingConfig(1.0, seed=5)] * DRAWS, np.arange(DRAWS))
    assert frequencies_fit(tokens, softmax(logits))


def test_draws_stay_within_the_filters_and_keep_their_proportions() -> None:
    logits = draw_logits(3, scale=1.0)
    best = np.argsort(-logits)[:4]
    tokens = drawn(logits, [SamplingConfig(1.0, top_k=4, seed=i) for i in range(DRAWS)], np.zeros(DRAWS))
    probs = np.zeros(V)
    probs[best] = softmax(logits[best])
    assert frequencies_fit(tokens, probs)


def test_temperature_zero_takes_the_likeliest_after_the_penalty() -> None:
    logits = jnp.asarray([[5.0, 4.0, 1.0, -1.0]] * 3)
    seen = jnp.asarray([[False] * 4, [True, False, False, False], [True, True, False, False]])
    for neighbour in (SamplingConfig(), SamplingConfig(temperature=1.0, top_p=0.5)):
        configs = [SamplingConfig(), SamplingConfig(repetition_penalty=2.0), SamplingConfig(repetition_penalty=8.0)]
        extra = lambda x: jnp.concatenate([x, x[:1]])  # noqa: E731
        tokens = sampled(extra(logits), stack([*configs, neighbour]), extra(seen), jnp.zeros(4, jnp.int32))
        assert tokens[:3].tolist() == [0, 1, 2]


@REUSED
@given(seed=st.integers(0, 2**32 - 1), position=st.integers(0, 10_000), other=seeds)
def test_a_draw_depends_on_its_seed_and_position_alone(seed: int, position: int, other: int) -> None:
    logits = draw_logits(4, scale=1.0)
    mine = SamplingConfig(1.0, seed=seed)
    alone = drawn(logits, [mine, mine, mine], np.array([position] * 3))
    neighbours = [SamplingConfig(0.5, top_k=3, top_p=0.9, seed=other), mine, SamplingConfig()]
    assert alone.tolist() == [drawn(logits, neighbours, np.array([other % 50, position, 3]))[1]] * 3


def test_seeds_and_positions_matter() -> None:
    logits = np.zeros(V, np.float32)
    by_seed = drawn(logits, [SamplingConfig(1.0, seed=s) for s in range(50)], np.zeros(50))
    by_position = drawn(logits, [SamplingConfig(1.0)] * 50, np.arange(50))
    assert len(set(by_seed.tolist())) > 6 and len(set(by_position.tolist())) > 6
    assert by_seed.tolist() != by_position.tolist()


# --- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("nan"), "at least 0"),
        ("top_k", -1, "at least 0"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.5, "above 0 and at most 1"),
        ("min_p", 1.0, "at least 0 and below 1"),
        ("min_p", -0.5, "at least 0 and below 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("seed", -1, "a 32-bit unsigned integer"),
        ("seed", 2**32, "a 32-bit unsigned integer"),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float, expected: str) -> None:
    with pytest.raises(InputError, match=f"{name}={value} must be {expected}"):
        SamplingConfig(**{name: value})  # type: ignore[arg-type]
