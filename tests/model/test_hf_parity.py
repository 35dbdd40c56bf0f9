"""Live comparison with transformers, where torch is installed: options the goldens do not cover, and exports."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from abi_jax.model.bank import add_personas, merge_persona
from abi_jax.model.config import PersonaShape
from abi_jax.model.hf import export_hf, import_hf
from tests.model.hf_cases import GOLDEN, NAMES, golden, greedy_cached, imported, logits

torch = pytest.importorskip("torch", reason="parity with transformers needs torch")
transformers = pytest.importorskip("transformers", reason="parity with transformers needs transformers")

from tests.golden.make_decoders import build, greedy, shrunk  # noqa: E402

pytestmark = [
    pytest.mark.parity,
    # transformers' own
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def theirs(folder: Path, tokens: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.float().numpy()


def rope(**scaling: Any) -> dict[str, Any]:
    return {"rope_scaling": scaling}


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "num_hidden_layers": 3}
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama2", rope(rope_type="linear", factor=2.0)),
    "dynamic": ("llama2", rope(rope_type="dynamic", factor=2.0)),
    "yarn": ("llama2", rope(**YARN)),
    "yarn-mscale": ("llama2", rope(**YARN, mscale=1.5, mscale_all_dim=0.5)),
    "yarn-smooth": ("llama2", rope(**YARN, truncate=False, beta_fast=16.0, beta_slow=2.0, attention_factor=1.1)),
    "llama-biases": ("llama3", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied-gelu": ("llama3", {"tie_word_embeddings": True, "hidden_act": "gelu"}),
    "llama-wide-heads": ("llama2", {"head_dim": 16, "num_key_value_heads": 1}),
    "mistral-no-window": ("mistral", {"sliding_window": None}),
    "mistral-yarn": ("mistral", rope(**YARN)),
    "qwen2-windows": ("qwen2", WINDOWS),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3-windows-bias": ("qwen3", WINDOWS | {"attention_bias": True}),
    "qwen3-yarn": ("qwen3", rope(**YARN)),
    "gemma2-no-caps-bias": (
        "gemma2",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None, "attention_bias": True},
    ),
    "gemma2-tight-caps": ("gemma2", {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}),
    "gpt2-inner-relu": ("gpt2", {"n_inner": 96, "activation_function": "relu"}),
    "gpt2-untied-gelu": ("gpt2", {"tie_word_embeddings": False, "activation_function": "gelu"}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_give_the_logits_and_tokens_of_transformers(option: str, tmp_path: Path) -> None:
    name, change = OPTIONS[option]
    model = build(shrunk(name) | change, seed=3)
    model.save_pretrained(tmp_path)
    config, params = import_hf(tmp_path, progress=False)
    prompt = golden(name)["prompt"]
    with torch.no_grad():
        expected = model(torch.from_numpy(prompt.astype(np.int64))).logits.numpy()
    assert np.abs(logits(config, params, prompt) - expected).max() < 1e-4
    tokens, margin = greedy(model, torch.from_numpy(prompt.astype(np.int64)), 40)
    ours = greedy_cached(config, params, prompt, 40)
    assert np.array_equal(ours, tokens) or margin < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_goldens_are_what_transformers_computes(name: str) -> None:
    assert np.abs(theirs(GOLDEN / name, golden(name)["prompt"]) - golden(name)["logits"]).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_transformers_loads_an_export_with_the_same_logits(name: str, tmp_path: Path) -> None:
    config, params = imported(name)
    export_hf(config, params, tmp_path / "out", max_shard_bytes=60_000)
    assert np.abs(theirs(tmp_path / "out", golden(name)["prompt"]) - golden(name)["logits"]).max() < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gemma2"])
def test_transformers_speaks_as_a_merged_persona(name: str, tmp_path: Path) -> None:
    shape = PersonaShape(capacity=2, mask=False, gate=False, core_mlp=True)
    base, params = imported(name)
    config, params = add_personas(base, params, shape, jax.random.key(0))
    bank = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), params)
    w = np.array([0, 1], np.float32)
    merged = merge_persona(config, bank, w)
    assert merged.left_out == ()
    export_hf(merged.config, merged.params, tmp_path / "out")
    tokens = golden(name)["prompt"]
    ours = logits(config, bank, tokens, np.stack([w] * len(tokens)))
    assert np.abs(theirs(tmp_path / "out", tokens) - ours).max() < 1e-3
