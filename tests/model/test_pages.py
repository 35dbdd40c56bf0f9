"""Pages of int8: what is written, and what attention makes of it, are those of the formula written in NumPy."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.model.attention_paged import paged
from abi_jax.model.attention_terms import Bias, PagedPast, Scoring, Sight
from abi_jax.model.int8 import Int8, encode
from abi_jax.model.pages import NOBODYS, PagedCache, new_pages, put
from abi_jax.sharding import AxisRules, MeshConfig, make_mesh, use
from tests.model.cases import LLAMA
from tests.model.meshes import CONFIG
from tests.model.test_int8 import decode, random

TABLE = jnp.array([[3, 1, NOBODYS], [2, 5, 4]])
LENGTHS = jnp.array([9, 20])


def pool(pages: int = 6, heads: int = 2, size: int = 8, d: int = 16, seed: int = 0) -> Int8:
    return encode(random(pages, heads, size, d, seed=seed))


def test_tokens_are_written_as_codes_with_a_scale_for_each_head() -> None:
    empty = new_pages(LLAMA, 6, 8, jnp.int8).keys[0]
    assert isinstance(empty, Int8) and empty.codes.dtype == jnp.int8 and empty.scales.dtype == jnp.float32
    x = np.array(random(2, 2, 3, 8))
    x[1, 0, 2, 3] = np.nan
    written = put(empty, jnp.asarray(x), TABLE, jnp.array([8, 0]), 2)
    expected = decode(encode(jnp.asarray(np.nan_to_num(x))))
    np.testing.assert_array_equal(decode(written)[1, :, :3], expected[0])  # the first row's second page
    np.testing.assert_array_equal(decode(written)[2, :, :3], expected[1])
    rest = np.delete(decode(written), [1, 2], axis=0)
    assert not rest.any()


def past(k: jax.Array | Int8, v: jax.Array | Int8) -> PagedPast:
    positions = LENGTHS[:, None] + jnp.arange(2)
    return PagedPast(k, v, TABLE, LENGTHS, positions, jnp.ones_like(positions), features=random(6, 5, 8, seed=9))


@pytest.mark.parametrize("scoring", [Scoring(0.3), Scoring(0.3, softcap=2.0, window=6)], ids=["plain", "capped"])
def test_attention_to_codes_is_that_to_their_numbers(scoring: Scoring) -> None:
    k, v = pool(seed=1), pool(seed=2)
    q, new_k, new_v = random(2, 2, 4, 16, seed=3), random(2, 2, 2, 16, seed=4), random(2, 2, 2, 16, seed=5)
    seen = past(k, v)
    sight = Sight(seen.q_positions, seen.q_positions, seen.q_segments, seen.q_segments, aligned=True)
    bias = Bias(random(2, 2, 4, 5, seed=6), random(2, 5, 2, seed=7))
    found = jax.jit(paged, static_argnums=4)(q, new_k, new_v, sight, scoring, bias, seen)
    plain = replace(seen, k=jnp.asarray(decode(k)), v=jnp.asarray(decode(v)))
    np.testing.assert_allclose(found, paged(q, new_k, new_v, sight, scoring, bias, plain), atol=2e-6)


def test_a_page_that_nobody_sees_changes_no_bit() -> None:
    k, v = pool(seed=1), pool(seed=2)
    q, new = random(2, 2, 4, 16, seed=3), random(2, 2, 2, 16, seed=4)
    seen = past(k, v)
    sight = Sight(seen.q_positions, seen.q_positions, seen.q_segments, seen.q_segments, aligned=True)
    attend = jax.jit(lambda seen: paged(q, new, new, sight, Scoring(0.3), None, seen))

    def others(pool: Int8) -> Int8:
        return jax.tree.map(lambda x: x.at[NOBODYS].set(100).at[4, :, 4:].set(-100), pool)

    np.testing.assert_array_equal(attend(seen), attend(replace(seen, k=others(k), v=others(v))))


def test_codes_take_a_quarter_of_the_bytes_and_lie_on_a_mesh_by_head() -> None:
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    with use(mesh, AxisRules()):
        pages = jax.jit(lambda: new_pages(CONFIG, 6, 8, jnp.int8))()
    for made in (pages.keys[0], pages.values[1]):
        assert isinstance(made, Int8)
        assert made.codes.sharding.spec[1] == made.scales.sharding.spec[1] == "tensor"
    whole = new_pages(replace(LLAMA, head_dim=64), 6, 8)
    codes = new_pages(replace(LLAMA, head_dim=64), 6, 8, jnp.int8)
    bytes_of = [sum(x.nbytes for x in jax.tree.leaves((pages.keys, pages.values))) for pages in (whole, codes)]
    assert bytes_of[1] / bytes_of[0] == (64 + 4) / (64 * 4)


def test_a_cache_of_codes_goes_on_where_it_was() -> None:
    cache = PagedCache(new_pages(LLAMA, 6, 8, jnp.int8), TABLE, jnp.array([0, 0]))
    kept = [(random(2, 2, 1, 8, seed=i), random(2, 2, 1, 8, seed=10 + i)) for i in range(LLAMA.num_layers)]
    roles = jnp.ones((2, 1), jnp.int32)
    for length in range(10):
        cache = cache.extended(kept, roles, None, cache.lengths, cache.lengths + 1)
        assert int(cache.lengths[0]) == length + 1
    keys = cache.pages.keys[1]
    assert isinstance(keys, Int8)
    np.testing.assert_array_equal(decode(keys)[3, :, 7], decode(encode(kept[1][0]))[0, :, 0])
    np.testing.assert_array_equal(decode(keys)[1, :, 1], decode(encode(kept[1][0]))[0, :, 0])
