"""The key-value cache: written in place, and the same answers as without it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.model.cache import Cache, grow, new_cache, write
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.inputs import Inputs
from abi_jax.model.weight import Tree, describe, merge
from abi_jax.text.roles import NUM_ROLES, Role
from tests.model.cases import (
    CONFIGS,
    LLAMA,
    NAMES,
    PERSONAS,
    SHAPE,
    base,
    conversations,
    logits,
    readable_roles,
    spoken,
    trained,
)

ROWS = conversations()
LENGTHS = np.array([8, 3, 5, 1])  # tokens of each row that are prefilled
WIDTH, STEPS = 8, 8


def part(inputs: Inputs, starts: np.ndarray, count: int) -> Inputs:
    """`count` tokens of each row `b`, from `starts[b]`."""
    places = jnp.asarray(starts)[:, None] + jnp.arange(count)

    def take(x: jax.Array) -> jax.Array:
        index = places.reshape(*places.shape, *(1,) * (x.ndim - 2))
        return jnp.take_along_axis(x, jnp.broadcast_to(index, (*places.shape, *x.shape[2:])), axis=1)

    return jax.tree.map(take, inputs)


def cached_program(config: ModelConfig) -> Callable[[Tree, Inputs, Cache, bool], tuple[jax.Array, Cache]]:
    """The compiled model with a cache, `fresh` or filled: logits and the cache with the new tokens."""
    graphdef, _ = describe(partial(Decoder, config))

    @partial(jax.jit, static_argnames="fresh")
    def run(params: Tree, inputs: Inputs, cache: Cache, fresh: bool) -> tuple[jax.Array, Cache]:
        model = merge(graphdef, params)
        h, cache = model.hidden(inputs, cache, fresh=fresh)
        return model.logits(h, inputs.mixture), cache

    return run


def through_the_cache(config: ModelConfig, params: Tree, inputs: Inputs, chunk: int = 1) -> np.ndarray:
    """Logits `[B, T, V]` of a prefill of `LENGTHS` tokens and then `STEPS` more in chunks; 0 where there are none."""
    run = cached_program(config)
    B, T = inputs.tokens.shape
    out = np.zeros((B, T, config.vocab_size), np.float32)

    def keep(values: jax.Array, starts: np.ndarray, counts: np.ndarray) -> None:
        for b in range(B):
            out[b, starts[b] : starts[b] + counts[b]] = values[b, : counts[b]]

    head = part(inputs, np.zeros(B, int), WIDTH)
    padded = replace(head, segments=jnp.asarray(np.arange(WIDTH) < LENGTHS[:, None], jnp.int32))
    values, cache = run(params, padded, new_cache(config, B, 20), True)
    keep(values, np.zeros(B, int), LENGTHS)
    for step in range(0, STEPS, chunk):
        assert np.array_equal(cache.lengths, LENGTHS + step)
        values, cache = run(params, part(inputs, LENGTHS + step, chunk), cache, False)
        keep(values, LENGTHS + step, np.full(B, chunk))
    return out


def check(config: ModelConfig, params: Tree, inputs: Inputs, chunk: int = 1) -> None:
    expected = logits(config, params, inputs)
    filled = np.arange(16) < (LENGTHS + STEPS)[:, None]
    out = through_the_cache(config, params, inputs, chunk)
    assert np.abs(out - expected)[filled].max() < 1e-5
    assert (out[~filled] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_prefill_and_decode_equal_the_whole_row_with_personas_and_rules(name: str) -> None:
    reads = np.ones((PERSONAS, NUM_ROLES), bool)
    reads[1, Role.HISTORY] = False
    w = np.array([[0.5, 0.5, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]], np.float32)
    active = np.arange(16) >= np.array([[0], [0], [4], [2]])
    readable = readable_roles(reads, np.array([True, False, False, False]), w, active)
    config, params = trained(name)
    check(config, params, replace(spoken(ROWS, w, active), readable=readable))


def test_prefill_and_decode_equal_the_whole_row_without_personas() -> None:
    check(*base("gemma2"), ROWS)


def test_several_tokens_at_a_time_equal_the_whole_row() -> None:
    check(*base("gemma2"), ROWS, chunk=4)


def test_a_bank_that_is_silent_in_the_prompt_still_leaves_its_key_features() -> None:
    """Response-only mode: the prefill runs the base program, and the response attends to it through the masks."""
    config, params = trained("llama")
    w = np.array([[0, 1, 0, 0], [0, 0, 0, 1], [0.5, 0.5, 0, 0], [0, 0, 0, 0]], np.float32)
    active = np.arange(16) >= LENGTHS[:, None]
    expected = logits(config, params, spoken(ROWS, w, active))
    run = cached_program(config)
    padded = replace(
        part(ROWS, np.zeros(4, int), WIDTH), segments=jnp.asarray(np.arange(WIDTH) < LENGTHS[:, None], jnp.int32)
    )
    _, cache = run(params, padded, new_cache(config, 4, 16), True)
    values, _ = run(params, part(spoken(ROWS, w, active), LENGTHS, 1), cache, False)
    for b, at in enumerate(LENGTHS):
        assert np.abs(values[b, 0] - expected[b, at]).max() < 1e-5


def test_a_write_touches_its_own_slots_alone() -> None:
    rng = np.random.default_rng(0)
    buffer, new = rng.normal(size=(3, 2, 10, 4)), rng.normal(size=(3, 2, 3, 4))
    starts = np.array([0, 4, 7])
    expected = buffer.copy()
    for b, start in enumerate(starts):
        expected[b, :, start : start + 3] = new[b]
    out = write(jnp.asarray(buffer, jnp.float32), jnp.asarray(new, jnp.float32), jnp.asarray(starts), axis=2)
    assert np.array_equal(out, expected.astype(np.float32))


def test_growing_keeps_what_is_there() -> None:
    config = replace(LLAMA, persona=SHAPE)
    small = new_cache(config, 2, 8)
    small = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape).astype(x.dtype), small)
    big = grow(small, 20)
    assert (small.size, big.size) == (8, 20)
    assert big.features is not None and small.features is not None
    assert np.array_equal(big.lengths, small.lengths)
    assert np.array_equal(big.roles[:, :8], small.roles) and not big.roles[:, 8:].any()
    assert np.array_equal(big.features[:, :, :8], small.features) and not big.features[:, :, 8:].any()
    for a, b in zip((*big.keys, *big.values), (*small.keys, *small.values), strict=True):
        assert np.array_equal(a[:, :, :8], b) and not a[:, :, 8:].any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_config_knows_what_a_cached_token_costs(name: str, dtype: jnp.dtype) -> None:
    config = CONFIGS[name]
    cache = jax.eval_shape(lambda: new_cache(config, 3, 10, dtype))
    size = jnp.dtype(dtype).itemsize
    assert sum(x.size * size for x in (*cache.keys, *cache.values)) == 30 * config.kv_bytes_per_token(size)
