"""One description of each weight gives its shape, sharding and initial value."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.weight import (
    Weight,
    abstract,
    count,
    describe,
    initialize,
    is_weight,
    map_weights,
    merge,
    param,
    path_name,
    shardings,
)
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from abi_jax.sharding.rules import AxisRules
from tests.model.cases import CONFIGS, KEY, LLAMA, SHAPE
from tests.model.meshes import CONFIG, EACH_MESH, MESHES

MODEL = replace(LLAMA, persona=SHAPE)
_, WEIGHTS = describe(partial(Decoder, MODEL))


def test_building_a_model_allocates_nothing() -> None:
    before = len(jax.live_arrays())
    _, weights = describe(partial(Decoder, ModelConfig(vocab_size=10**6, d_model=10**5, d_ff=10**6, num_layers=2)))
    assert count(weights) > 10**11
    assert len(jax.live_arrays()) <= before


def test_paths_read_like_attributes() -> None:
    paths = set(jax.tree.leaves(map_weights(lambda path, _: path, WEIGHTS)))
    assert {
        "embedding",
        "layers.1.attention.q.kernel",
        "persona.cores.qkv.up.k.0",
        "persona.cores.o.core",
        "persona.heads.route",
    } < paths
    with_index = jax.tree_util.tree_leaves_with_path({"a": [1, {"b": 2}]})
    assert [path_name(path) for path, _ in with_index] == ["a.0", "a.1.b"]


def test_values_shapes_and_shardings_agree() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    made = initialize(WEIGHTS, KEY, jnp.bfloat16, mesh)
    expected = abstract(WEIGHTS, jnp.bfloat16, mesh)
    placed = shardings(WEIGHTS, mesh, AxisRules())
    for x, a, s in zip(*map(jax.tree.leaves, (made, expected, placed)), strict=True):
        assert (x.shape, x.dtype, x.sharding) == (a.shape, a.dtype, a.sharding)
        assert x.sharding == s
    assert placed["layers"]["0"]["attention"]["q"]["kernel"].spec == PartitionSpec("tensor", "fsdp")
    assert jax.tree.map(lambda w: w.shape, WEIGHTS, is_leaf=is_weight) == jax.tree.map(lambda a: a.shape, made)
    assert count(WEIGHTS) == sum(x.size for x in jax.tree.leaves(made))


@EACH_MESH
def test_initial_weights_do_not_depend_on_the_mesh(mesh: str) -> None:
    _, weights = describe(partial(Decoder, CONFIG))
    alone, spread = initialize(weights, KEY), initialize(weights, KEY, mesh=MESHES[mesh]())
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        assert len(b.sharding.device_set) == 8
        assert np.array_equal(a, b)


def test_initial_weights_do_not_depend_on_what_else_there_is() -> None:
    _, fewer = describe(partial(Decoder, replace(MODEL, persona=None, num_layers=1)))
    whole, part = initialize(WEIGHTS, KEY), initialize(fewer, KEY)
    for path, x in jax.tree_util.tree_leaves_with_path(part):
        at = whole
        for name in path_name(path).split("."):
            at = at[name]
        if path_name(path).endswith(("o.kernel", "mlp.down.kernel")):  # their scale knows the depth
            assert np.abs(np.corrcoef(np.ravel(x), np.ravel(at))[0, 1] - 1) < 1e-5
        else:
            assert np.array_equal(x, at)


def test_initial_values_are_what_the_description_says() -> None:
    weights = {
        "n": Weight((300, 300), (None, None), scale=0.5),
        "m": Weight((300, 300), (None, None), scale=0.5),
        "z": Weight((3,), (None,), "zeros"),
        "o": Weight((3,), (None,), "ones"),
    }
    made = initialize(weights, KEY)
    assert abs(float(made["n"].std()) - 0.5) < 0.01 and abs(float(made["n"].mean())) < 0.01
    assert not np.array_equal(made["n"], made["m"])
    assert not np.array_equal(made["n"], initialize(weights, jax.random.key(1))["n"])
    assert made["z"].tolist() == [0, 0, 0] and made["o"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_merged_model_holds_its_parameters(name: str) -> None:
    graphdef, weights = describe(partial(Decoder, CONFIGS[name]))
    params = initialize(weights, KEY)
    model = merge(graphdef, params)
    assert isinstance(model, Decoder)
    assert model.layers[1].attention.q.kernel.get_value() is params["layers"]["1"]["attention"]["q"]["kernel"]
    assert len(jax.tree.leaves(nnx.state(model))) == len(jax.tree.leaves(params))


def test_a_description_that_contradicts_itself_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 4\) and axes \('embed',\) differ in rank"):
        param((3, 4), ("embed",))
    with pytest.raises(ValueError, match="unknown init 'uniform'; known: normal, zeros, ones"):
        Weight((3,), (None,), "uniform").make(KEY, jnp.float32)


def test_a_mesh_that_does_not_divide_a_weight_names_it() -> None:
    _, weights = describe(partial(Decoder, replace(LLAMA, d_ff=50)))
    mesh = make_mesh(MeshConfig(data=1, tensor=4, fsdp=2))
    for build in (shardings, partial(abstract, dtype=jnp.float32)):
        with pytest.raises(InputError, match=r"layers\.0\.mlp\.down\.kernel: dimension 'mlp' of size 50 .* by 4"):
            if build is shardings:
                shardings(weights, mesh, AxisRules())
            else:
                abstract(weights, mesh=mesh)
