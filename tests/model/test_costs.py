"""What a configuration says it costs, against published counts, the compiler's and real arrays."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.attention_terms import Sight
from abi_jax.model.bank import drop_personas
from abi_jax.model.config import ModelConfig
from abi_jax.model.costs import costs
from abi_jax.model.decoder import Decoder
from abi_jax.model.hf_config import from_hf
from abi_jax.model.inputs import Inputs, plain_inputs
from abi_jax.model.weight import Tree, abstract, count, describe, initialize, merge
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from tests.model.cases import CONFIGS, KEY, SHAPE, trained
from tests.model.hf_cases import PUBLISHED
from tests.model.meshes import CONFIG

ONE = MeshConfig(data=1)
MODEL = ModelConfig(
    vocab_size=512, d_model=128, num_layers=3, num_heads=8, num_kv_heads=4, head_dim=16, d_ff=256, max_length=256
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_cost_what_was_published(name: str) -> None:
    table = costs(from_hf(PUBLISHED[name]["published"]), ONE)
    parameters = PUBLISHED[name]["parameters"]
    assert table["parameters"] == parameters and table["persona_parameters"] == 0
    assert table["weight_bytes_bf16"] == table["weight_bytes_per_device_bf16"] == 2 * parameters
    assert table["training_state_bytes_per_device"] == 16 * parameters


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_arrays(name: str) -> None:
    config, params = trained(name)
    _, base = drop_personas(config, params)
    sizes = [sum(x.size for x in jax.tree.leaves(tree)) for tree in (params, base)]
    table = costs(config, ONE)
    assert table["parameters"] == count(describe(partial(Decoder, config))[1]) == sizes[0]
    assert table["persona_parameters"] == sizes[0] - sizes[1] > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_matmul_parameters_are_the_matrices_every_token_meets(name: str) -> None:
    config = CONFIGS[name]
    _, weights = describe(partial(Decoder, config))
    matrices = count({"layers": weights["layers"]}) - sum(
        w.size for w in jax.tree.leaves(weights["layers"]) if len(w.shape) == 1
    )
    assert config.matmul_params() == matrices + config.vocab_size * config.d_model


# --- FLOPs -----------------------------------------------------------------------------------------------


def attended(config: ModelConfig, length: int) -> float:
    """Keys a query sees, on average over a row and summed over the layers, by the masks themselves."""
    positions, ones = jnp.arange(length)[None], jnp.ones((1, length), jnp.int32)
    sight = Sight(positions, positions, ones, ones, aligned=True, packed=False)
    return sum(float(sight.mask(config.window(i)).sum()) / length for i in range(config.num_layers))


@pytest.mark.parametrize("window", [None, 16, 64, 500])
def test_attention_is_counted_at_the_mean_of_its_mask(window: int | None) -> None:
    config = replace(MODEL, sliding_window=window, window_pattern=(True, False, True))
    counted = config.flops_per_token(200) - 2 * config.matmul_params()
    assert counted == pytest.approx(4 * config.q_size * attended(config, 200), rel=0.05)


def compiled_flops(config: ModelConfig, length: int, training: bool) -> float:
    """FLOPs of one row per token as XLA counts them; its attention is dense."""
    graphdef, weights = describe(partial(Decoder, config, attention="reference"))

    def loss(params: Tree, inputs: Inputs) -> jax.Array:
        return jnp.mean(jax.nn.logsumexp(merge(graphdef, params)(inputs), axis=-1))

    run = jax.jit(jax.grad(loss) if training else loss)
    analysis: Any = run.lower(abstract(weights), plain_inputs(np.zeros((1, length), np.int32))).cost_analysis()
    return float(analysis["flops"]) / length


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_flops_per_token_are_those_of_the_program(training: bool, gated: bool) -> None:
    config, length = replace(MODEL, gated=gated), 64
    other_half = (3 if training else 1) * 4 * config.q_size * (config.num_layers * length / 2)
    expected = config.flops_per_token(length, training) + other_half
    assert compiled_flops(config, length, training) == pytest.approx(expected, rel=0.06)


# --- bytes per device ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=8),
        MeshConfig(data=1, fsdp=8),
        MeshConfig(data=1, tensor=8),
        MeshConfig(data=2, fsdp=2, tensor=2),
        MeshConfig(data=2, sequence=4),
    ],
    ids=str,
)
def test_bytes_per_device_are_those_of_the_shards(mesh: MeshConfig) -> None:
    params = initialize(describe(partial(Decoder, CONFIG))[1], KEY, mesh=make_mesh(mesh))
    held = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))
    table = costs(CONFIG, mesh)
    assert table["devices"] == 8
    assert table["weight_bytes_per_device_f32"] == 2 * table["weight_bytes_per_device_bf16"] == held
    # masters, gradients and two moments; Adafactor keeps no moments to speak of
    assert table["training_state_bytes_per_device"] == 4 * held
    assert costs(CONFIG, mesh, optimizer="adafactor")["training_state_bytes_per_device"] == 2 * held
    assert costs(CONFIG, mesh, optimizer="none")["training_state_bytes_per_device"] == 2 * held


def test_activations_are_shared_by_the_devices_of_a_row() -> None:
    whole = costs(CONFIG, ONE, length=32, batch=2)["training_activation_bytes_per_device"]
    assert whole == 2 * 64 * CONFIG.d_model * CONFIG.num_layers + 4 * 64 * CONFIG.vocab_size
    split = costs(CONFIG, MeshConfig(data=2, sequence=4), length=32, batch=2)
    assert split["training_activation_bytes_per_device"] == whole // 4


def test_nothing_is_allocated_for_a_large_model() -> None:
    before = len(jax.live_arrays())
    config = replace(from_hf(PUBLISHED["llama3"]["published"]), persona=SHAPE)
    table = costs(config, MeshConfig(data=1, fsdp=32, tensor=8))
    assert table["devices"] == 256
    assert table["weight_bytes_per_device_bf16"] < 2 * table["parameters"] / 200
    assert len(jax.live_arrays()) <= before


def test_a_mesh_that_does_not_divide_is_named() -> None:
    with pytest.raises(InputError, match=r"embedding: dimension 'vocab' of size 50257 does not divide by 8"):
        costs(from_hf(PUBLISHED["gpt2"]["published"]), MeshConfig(data=1, tensor=8))
