"""More rows of the persona axis, and training a few of them alone."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.decoder import Decoder
from abi_jax.model.rows import row_mask, widen
from abi_jax.model.weight import Tree, Weight, describe, shardings
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from abi_jax.sharding.rules import AxisRules
from tests.model.cases import KEY, PERSONAS, base, trained

pytestmark = pytest.mark.optimized  # bits are those that users get


def leaves(tree: Tree) -> list:
    return jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, Weight))


def test_widening_appends_rows_and_changes_none() -> None:
    config, params = trained("llama")
    wider, grown = widen(config, params, 7, KEY)
    assert wider.persona is not None and config.persona is not None
    assert wider == replace(config, persona=replace(config.persona, capacity=7))
    _, weights = describe(partial(Decoder, wider))
    for weight, old, new in zip(leaves(weights), leaves(params), leaves(grown), strict=True):
        assert new.shape == weight.shape and new.dtype == old.dtype
        if weight.axes[0] == "persona":
            assert np.array_equal(new[:PERSONAS], old)
            if weight.init == "zeros":
                assert not new[PERSONAS:].any()
        else:
            assert new is old


def test_widening_to_what_it_has_is_the_same_model() -> None:
    config, params = trained("llama")
    same, again = widen(config, params, PERSONAS, KEY)
    assert same == config
    assert all(a is b for a, b in zip(leaves(params), leaves(again), strict=True))


def test_widening_keeps_weights_where_they_are() -> None:
    config, params = trained("llama")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, grown = widen(config, params, 6, KEY)
    _, weights = describe(partial(Decoder, config))

    spread = jax.tree.map(jax.device_put, params, shardings(weights, mesh, AxisRules()))
    _, there = widen(config, spread, 6, KEY, mesh)
    for a, b in zip(leaves(grown), leaves(there), strict=True):
        assert len(b.sharding.device_set) == 8
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InputError, match="capacity 3 is below the 4 persona rows"):
        widen(*trained("llama"), 3, KEY)
    with pytest.raises(InputError, match="no personas"):
        widen(*base("llama"), 3, KEY)


def test_a_row_mask_lets_only_those_rows_of_the_bank_move() -> None:
    config, params = trained("gpt2")
    _, weights = describe(partial(Decoder, config))
    masked = jax.tree.map(lambda x, m: jnp.ones_like(x) * m, params, row_mask(weights, [1, 3]))
    moving = 0
    for weight, mask in zip(leaves(weights), leaves(masked), strict=True):
        if weight.axes[0] == "persona":
            assert mask.reshape(PERSONAS, -1).all(1).tolist() == [False, True, False, True]
            assert mask.reshape(PERSONAS, -1).any(1).tolist() == [False, True, False, True]
            moving += 1
        else:
            assert not mask.any()
    assert moving == 2 + 4 + 1 + 4  # injection, heads with their bias, masks, and the cores of four inputs
