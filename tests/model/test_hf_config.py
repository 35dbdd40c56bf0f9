"""`config.json` to `ModelConfig` and back: published configurations, both styles of key, and every refusal."""

import math
from dataclasses import replace
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig, RopeScaling
from abi_jax.model.decoder import Decoder
from abi_jax.model.hf import from_hf, stored_dtype, to_hf
from abi_jax.model.hf_names import is_buffer, source
from abi_jax.model.weight import Weight, count, describe, map_weights
from tests.model.hf_cases import GOLDEN, NAMES, PUBLISHED, raw_config, stored

EACH = pytest.mark.parametrize("name", NAMES)
LLAMA = PUBLISHED["llama2"]["published"]
GEMMA = PUBLISHED["gemma2"]["published"]
QWEN = PUBLISHED["qwen2"]["published"]


@EACH
def test_published_configurations_have_the_published_number_of_parameters(name: str) -> None:
    config = from_hf(PUBLISHED[name]["published"])
    assert count(describe(lambda: Decoder(config))[1]) == PUBLISHED[name]["parameters"]


@EACH
def test_published_configurations_survive_a_round_trip(name: str) -> None:
    config = from_hf(PUBLISHED[name]["published"])
    written = to_hf(config)
    assert from_hf(written) == config
    assert written["model_type"] == PUBLISHED[name]["published"]["model_type"]
    assert written["architectures"] == PUBLISHED[name]["published"]["architectures"]


@EACH
def test_both_generations_of_keys_say_the_same(name: str) -> None:
    published = PUBLISHED[name]["published"] | PUBLISHED[name]["shrunk"]
    newer = raw_config(name)
    assert name == "gpt2" or "rope_parameters" in newer
    assert "rope_scaling" not in newer
    assert from_hf(newer) == from_hf(published)


@EACH
def test_every_weight_has_a_place_and_every_tensor_is_used(name: str) -> None:
    config = from_hf(raw_config(name))
    tensors = stored(GOLDEN / name)
    used: dict[str, int] = {}

    def place(path: str, weight: Weight) -> None:
        where = source(config, path, weight.shape)
        region = tensors[where.name][where.transform.part]
        assert tensors[where.name].shape == where.shape
        assert (region.T if where.transform.transpose else region).shape == weight.shape
        used[where.name] = used.get(where.name, 0) + region.size

    map_weights(place, describe(lambda: Decoder(config))[1])
    assert used == {key: x.size for key, x in tensors.items()}


def test_details_that_only_some_families_have() -> None:
    gemma = from_hf(GEMMA)
    assert (gemma.norm_offset, gemma.post_norms, gemma.activation) == (1.0, True, "gelu_tanh")
    assert (gemma.attention_softcap, gemma.logit_softcap, gemma.embed_scale) == (50.0, 30.0, math.sqrt(2304))
    assert [gemma.window(i) for i in range(4)] == [4096, None, 4096, None]
    assert gemma.query_scale is None  # 256 is its head_dim
    assert from_hf(GEMMA | {"query_pre_attn_scalar": 144}).scale == 1 / 12
    assert from_hf(GEMMA | {"attn_logit_softcapping": None}).attention_softcap is None
    llama3 = from_hf(PUBLISHED["llama3"]["published"])
    assert llama3.rope_scaling == RopeScaling("llama3", 8.0, 8192, 1.0, 4.0)
    assert llama3.rope_theta == 500_000.0
    assert from_hf(PUBLISHED["mistral"]["published"]).sliding_window == 4096
    assert from_hf(PUBLISHED["mistral"]["published"] | {"sliding_window": None}).sliding_window is None
    assert from_hf(QWEN).sliding_window is None  # use_sliding_window is false
    mixed = from_hf(QWEN | {"use_sliding_window": True, "max_window_layers": 20, "sliding_window": 8})
    assert [mixed.window(i) for i in (0, 19, 20, 23)] == [None, None, 8, 8]
    biased = from_hf(LLAMA | {"attention_bias": True, "mlp_bias": True})
    assert (biased.qkv_bias, biased.out_bias, biased.mlp_bias) == (True, True, True)
    assert from_hf(LLAMA | {"num_key_value_heads": None, "head_dim": None}) == from_hf(LLAMA)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "linear", "factor": 2.0}, RopeScaling("linear", 2.0)),
        ({"rope_type": "dynamic", "factor": 4}, RopeScaling("dynamic", 4.0, 4096)),
        (
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
            RopeScaling("yarn", 4.0, 1024),
        ),
        (
            {"rope_type": "yarn", "factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0, "truncate": False},
            RopeScaling(
                "yarn",
                4.0,
                4096,
                attention_factor=(0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1),
                truncate=False,
            ),
        ),
        ({"rope_type": "default"}, RopeScaling()),
    ],
)
def test_rope_scalings_are_read_and_written(given: dict[str, Any], expected: RopeScaling) -> None:
    config = from_hf(LLAMA | {"rope_scaling": given})
    assert config.rope_scaling == expected
    assert from_hf(LLAMA | {"rope_parameters": given | {"rope_theta": 10_000.0}}) == config
    assert from_hf(to_hf(config)) == config


def test_the_base_of_rope_is_read_where_it_stands() -> None:
    assert from_hf(LLAMA | {"rope_theta": 7.0}).rope_theta == 7.0
    assert from_hf(LLAMA | {"rope_theta": 7.0, "rope_parameters": {"rope_theta": 8.0}}).rope_theta == 8.0


def test_recorded_dtypes() -> None:
    assert str(stored_dtype({"torch_dtype": "bfloat16"})) == "bfloat16"
    assert str(stored_dtype({"dtype": "float16", "torch_dtype": "float32"})) == "float16"
    assert stored_dtype({}) is None
    with pytest.raises(InputError, match="dtype is 'int4'; expected one of float32"):
        stored_dtype({"dtype": "int4"})
    assert to_hf(from_hf(LLAMA), "bfloat16")["torch_dtype"] == "bfloat16"


def without(*keys: str) -> dict[str, Any]:
    return {k: v for k, v in LLAMA.items() if k not in keys}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LLAMA | {"model_type": "falcon"}, r"model_type is 'falcon'; supported are gpt2, llama, .*gemma2"),
        (without("model_type"), "model_type is missing"),
        (without("hidden_size"), "hidden_size is missing"),
        (LLAMA | {"hidden_size": "4096"}, "hidden_size is '4096'; expected a whole number"),
        (LLAMA | {"num_hidden_layers": 0}, "num_hidden_layers is 0; expected at least 1"),
        (LLAMA | {"num_attention_heads": 31}, "hidden_size is 4096, not a multiple of num_attention_heads 31"),
        (LLAMA | {"num_key_value_heads": 7}, "num_heads=32 must be a multiple of num_kv_heads=7"),
        (LLAMA | {"rms_norm_eps": 0}, "rms_norm_eps is 0; expected a positive number"),
        (LLAMA | {"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; expected true or false"),
        (LLAMA | {"hidden_act": "xielu"}, "hidden_act is 'xielu'; supported activations are silu"),
        (LLAMA | {"rope_scaling": {"rope_type": "longrope"}}, r"rope_scaling\.rope_type is 'longrope'; supported are"),
        (LLAMA | {"rope_scaling": {"type": "linear"}}, r"rope_scaling\.factor is missing"),
        (LLAMA | {"rope_scaling": {"type": "llama3", "factor": 8}}, r"rope_scaling\.low_freq_factor is missing"),
        (
            LLAMA | {"rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]}},
            "mrope_section is .1.",
        ),
        (LLAMA | {"rope_parameters": {"full_attention": {}}}, "differs between layers is not supported"),
        (LLAMA | {"rope_parameters": "default"}, "rope_parameters is 'default'; expected an object"),
        (LLAMA | {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5; expected 1"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, which llama here does not support"),
        (LLAMA | {"quantization_config": {"bits": 4}}, "quantization_config is .*does not support"),
        (LLAMA | {"auto_map": {"AutoModelForCausalLM": "m.Model"}}, "auto_map names model code of its own, 'm.Model'"),
        (LLAMA | {"layer_types": ["sliding_attention"] * 32}, "llama has the same attention in every layer"),
        (QWEN | {"layer_types": ["full_attention"]}, "expected 24 of full_attention, sliding_attention"),
        (QWEN | {"layer_types": ["sliding_attention"] * 24}, "sliding_window is 131072, but layers .* need a window"),
        (GEMMA | {"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        (GEMMA | {"sliding_window": None}, "sliding_window is None, but layers of this gemma2 need a window"),
        (PUBLISHED["gpt2"]["published"] | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (PUBLISHED["gpt2"]["published"] | {"activation_function": "tanh"}, "activation_function is 'tanh'"),
        (PUBLISHED["gpt2"]["published"] | {"n_head": 7}, "n_embd is 768, not a multiple of n_head 7"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_hf(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "abi"}, "architecture is 'abi'; supported by Hugging Face export are gpt2"),
        ({"positions": "sinusoidal"}, r"cannot express positions='sinusoidal' \(it has 'rope'\)"),
        ({"qk_norm": True}, "cannot express qk_norm=True"),
        ({"sliding_window": 16, "architecture": "llama"}, "cannot express sliding_window=16"),
        ({"qkv_bias": True}, "cannot express qkv_bias=True"),
        ({"norm": "layer", "architecture": "qwen3"}, "cannot express norm='layer'.*qk_norm=False"),
    ],
)
def test_what_an_architecture_cannot_express_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_hf(replace(ModelConfig(), **change))


def test_the_default_configuration_can_be_exported() -> None:
    assert from_hf(to_hf(ModelConfig())) == ModelConfig()


def test_buffers_are_told_from_weights() -> None:
    assert is_buffer("gpt2", "transformer.h.3.attn.bias")
    assert is_buffer("gpt2", "h.3.attn.masked_bias")
    assert not is_buffer("gpt2", "h.3.attn.c_attn.bias")
    assert not is_buffer("llama", "h.3.attn.bias")
    assert is_buffer("llama", "model.rotary_emb.inv_freq")
