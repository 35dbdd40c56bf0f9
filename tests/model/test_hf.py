"""Import of Hugging Face checkpoints, and parity with transformers against committed goldens."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from abi_jax.model.config import RopeScaling
from abi_jax.model.decoder import Decoder
from abi_jax.model.hf import export_hf, import_hf
from abi_jax.model.weight import describe, path_name
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from tests.model.hf_cases import (
    GOLDEN,
    NAMES,
    golden,
    greedy_cached,
    imported,
    logits,
    rewritten,
    same,
    stored,
)

EACH = pytest.mark.parametrize("name", NAMES)

# --- parity with transformers --------------------------------------------------------------------


@EACH
def test_logits_equal_those_of_transformers(name: str) -> None:
    config, params = imported(name)
    expected = golden(name)
    assert np.abs(logits(config, params, expected["prompt"]) - expected["logits"]).max() < 1e-4


@EACH
def test_greedy_tokens_equal_those_of_transformers_with_and_without_cache(name: str) -> None:
    config, params = imported(name)
    expected = golden(name)
    assert expected["margin"] > 5e-3
    assert np.array_equal(greedy_cached(config, params, expected["prompt"], 64), expected["greedy"])
    # without a cache: each token is the best after the row up to it, so one run over the whole row tells all
    row = np.concatenate([expected["prompt"], expected["greedy"]], axis=1)
    assert np.array_equal(logits(config, params, row)[:, 23:-1].argmax(-1), expected["greedy"])


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("gpt2", {"activation": "gelu"}),
        ("gpt2", {"norm_eps": 1e-3}),
        ("llama2", {"rope_theta": 20_000.0}),
        ("llama3", {"rope_scaling": RopeScaling()}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 13}),
        ("qwen2", {"rope_theta": 10_000.0}),
        ("qwen3", {"norm_eps": 1e-3}),
        ("gemma2", {"window_pattern": (False, True)}),
        ("gemma2", {"attention_softcap": None}),
        ("gemma2", {"logit_softcap": None}),
        ("gemma2", {"query_scale": None}),
        ("gemma2", {"embed_scale": None}),
        ("gemma2", {"activation": "gelu"}),
        ("gemma2", {"norm_offset": 0.0}),
    ],
)
def test_the_goldens_would_show_a_wrong_option(name: str, wrong: dict[str, Any]) -> None:
    config, params = imported(name)
    expected = golden(name)
    assert np.abs(logits(replace(config, **wrong), params, expected["prompt"]) - expected["logits"]).max() > 3e-4


# --- import --------------------------------------------------------------------------------------


@EACH
def test_import_gives_the_tree_that_describe_gives(name: str) -> None:
    config, params = imported(name)
    _, weights = describe(lambda: Decoder(config))
    assert jax.tree.map(lambda w: w.shape, weights) == jax.tree.map(lambda x: x.shape, params)
    for w, x in zip(jax.tree.leaves(weights), jax.tree.leaves(params), strict=True):
        assert (x.shape, x.dtype) == (w.shape, jnp.float32)
        assert isinstance(x.sharding, SingleDeviceSharding)


@EACH
def test_import_in_bfloat16_rounds_each_weight_once(name: str) -> None:
    _, params = imported(name)
    _, half = import_hf(GOLDEN / name, dtype=jnp.bfloat16, progress=False)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(half), strict=True):
        assert b.dtype == jnp.bfloat16
        assert np.array_equal(np.asarray(a).astype(ml_dtypes.bfloat16), np.asarray(b))


@EACH
def test_import_to_a_mesh_equals_import_to_one_device(name: str) -> None:
    config, params = imported(name)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    _, sharded = import_hf(GOLDEN / name, mesh=mesh, progress=False)
    spread = 0
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(sharded), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b)), path_name(path)
        assert len(b.sharding.device_set) == 8
        spread += b.addressable_shards[0].data.size < b.size
    assert spread >= 6 * config.num_layers
    assert np.abs(logits(config, sharded, golden(name)["prompt"]) - golden(name)["logits"]).max() < 1e-4


def test_stored_dtype_is_kept_on_request(tmp_path: Path) -> None:
    def halve(tensors: dict[str, np.ndarray]) -> None:
        for key in tensors:
            tensors[key] = tensors[key].astype(ml_dtypes.bfloat16)

    folder = rewritten("qwen3", tmp_path / "half", halve)
    config, params = import_hf(folder, dtype=None, progress=False)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert same(stored(folder), stored(export_hf(config, params, tmp_path / "out")))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_names_without_the_prefix_and_known_buffers_are_understood(tmp_path: Path) -> None:
    def old_release(tensors: dict[str, np.ndarray]) -> None:
        for key in list(tensors):
            tensors[key.removeprefix("transformer.")] = tensors.pop(key)
        for i in range(2):
            tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 8, 8), np.float32))
            tensors[f"h.{i}.attn.masked_bias"] = np.full((), -1e4, np.float32)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    _, params = import_hf(rewritten("gpt2", tmp_path / "gpt2", old_release), progress=False)
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(imported("gpt2")[1])))
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    import_hf(rewritten("llama2", tmp_path / "llama2", lambda t: t.update(frequencies)), progress=False)


# --- memory --------------------------------------------------------------------------------------


def test_import_holds_little_beyond_the_destination() -> None:
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "import_memory.py"
    command = [sys.executable, str(script), "--gib", "0.25", "--files", "4", "--width", "512"]
    result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert result["files"] > 1
    assert result["destination_bytes"] > 500e6
    assert result["peak_beyond_destination_bytes"] < result["largest_tensor_bytes"] + (64 << 20)
