"""What the encoder takes from a folder's files, and how it refuses what it cannot use."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.encoder import load_encoder
from abi_jax.model.encoder_net import EncoderConfig
from abi_jax.model.safetensors_io import open_checkpoint
from abi_jax.model.safetensors_writer import write_checkpoint

GOLDEN = Path(__file__).parent / "golden"
BGE, E5 = GOLDEN / "bge_tiny", GOLDEN / "e5_tiny"
SENTENCES: list[str] = json.loads((GOLDEN / "sentences.json").read_text(encoding="utf-8"))


def test_the_files_decide_and_arguments_override() -> None:
    settings = load_encoder(BGE).settings
    assert (settings.pooling, settings.normalize, settings.max_length) == ("cls", True, 64)
    assert settings.prompts["query"].startswith("Represent this sentence")
    assert load_encoder(E5).settings.max_length == 48, "two of the fifty positions come before the first token"
    plain = load_encoder(BGE, normalize=False).encode(SENTENCES[:5])
    unit = load_encoder(BGE).encode(SENTENCES[:5])
    np.testing.assert_allclose(plain / np.linalg.norm(plain, axis=1, keepdims=True), unit, atol=1e-6)
    assert not np.allclose(plain, unit)


def test_a_folder_without_sentence_files_pools_the_mean(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        shutil.copy(BGE / name, tmp_path / name)
    settings = load_encoder(tmp_path).settings
    assert (settings.pooling, settings.normalize, settings.max_length) == ("mean", False, 64)


def test_task_heads_and_old_names_load(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    index = open_checkpoint(BGE)
    old = {
        "bert."
        + n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): index.read(n)
        for n in index.names()
    }
    (folder / "model.safetensors").unlink()
    write_checkpoint(folder, [*old.items(), ("classifier.weight", np.ones((2, 24), np.float32))])
    np.testing.assert_allclose(
        load_encoder(folder).encode(SENTENCES[:60]), np.load(GOLDEN / "tiny.npz")["bge"], rtol=0, atol=1e-5
    )


def test_no_texts_give_no_vectors() -> None:
    assert load_encoder(BGE).encode([]).shape == (0, 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "t5"}, "model_type='t5' is no known encoder; known: bert"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "swish"}, "hidden_act='swish'"),
        ({"hidden_size": "big"}, "hidden_size='big'; expected a whole number"),
        ({"num_attention_heads": 5}, "d_model=24 must be a multiple of num_heads=5"),
        ({"num_hidden_layers": 0}, "num_layers=0 must be at least 1"),
        ({"is_decoder": True}, "a decoder cannot be used"),
        ({"layer_norm_eps": "x"}, "layer_norm_eps='x'"),
        ({"num_hidden_layers": 3}, r"tensor 'encoder\.layer\.2\..*' is missing"),
        ({"intermediate_size": 64}, r"'encoder\.layer\.0\..*' gives shape .* expected \(24, 64\)"),
        ({"vocab_size": 10}, "vocabulary mismatch|gives shape"),
    ],
)
def test_a_config_that_cannot_be_served_names_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = copied(tmp_path)
    edit(folder / "config.json", change)
    with pytest.raises(InputError, match=message):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, r"config\.json is missing"),
        ("config.json", "[]", r"config\.json: expected a JSON object, got list"),
        ("config.json", "{", r"config\.json: cannot be read as JSON"),
        ("tokenizer.json", None, r"tokenizer\.json is missing"),
        ("tokenizer.json", "{}", r"tokenizer\.json: corrupt tokenizer"),
        ("model.safetensors", None, "no checkpoint here"),
        ("model.safetensors", "short", r"model\.safetensors: corrupt or truncated"),
        ("modules.json", '[{"type": "a.b.Dense", "path": "2_Dense"}]', "stage 'Dense' is not supported"),
        ("modules.json", '{"0": 1}', "expected a list of stages"),
        ("1_Pooling/config.json", '{"pooling_mode_max_tokens": true}', r"pooling \['pooling_mode_max_tokens'\]"),
        ("1_Pooling/config.json", '{"pooling_mode": "lasttoken"}', r"pooling \['lasttoken'\] is not supported"),
        ("1_Pooling/config.json", "{}", r"pooling \[\] is not supported"),
        ("1_Pooling/config.json", '{"pooling_mode": "cls", "include_prompt": false}', "include_prompt=false"),
        ("1_Pooling/config.json", None, "cannot be read"),
        ("sentence_bert_config.json", '{"max_seq_length": -1}', "max_seq_length=-1"),
        ("config_sentence_transformers.json", '{"prompts": {"a": 1}}', r"prompts=\{'a': 1\}"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "q"}', "default_prompt_name='q' is no prompt"),
    ],
)
def test_a_broken_folder_names_the_file(tmp_path: Path, file: str, content: str | None, message: str) -> None:
    folder = copied(tmp_path)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        load_encoder(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    shutil.copy(E5 / "tokenizer.json", folder / "tokenizer.json")
    vocab = json.loads((folder / "tokenizer.json").read_text())
    vocab["model"]["vocab"] += [[f"extra{i}", -9.0] for i in range(200)]
    (folder / "tokenizer.json").write_text(json.dumps(vocab))
    with pytest.raises(InputError, match=r"vocabulary mismatch: the tokenizer has \d+ tokens, but the model's"):
        load_encoder(folder)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="pooling='max'"):
        load_encoder(BGE, pooling="max")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="max_length=65"):
        load_encoder(BGE, max_length=65)
    encoder = load_encoder(BGE)
    with pytest.raises(InputError, match="prompt 'passage' is unknown to this encoder; known: query"):
        encoder.encode(["x"], prompt="passage")
    with pytest.raises(InputError, match="a single string"):
        encoder.encode("x")
    with pytest.raises(InputError, match=r"texts\[1\] is int 3"):
        encoder.encode(["x", 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"texts\[0\] holds half a surrogate pair"):
        encoder.encode(["\ud83d"])
    with pytest.raises(InputError, match="batch_size is 0"):
        encoder.encode(["x"], batch_size=0)


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert"])
def test_roberta_kinds_start_after_the_padding_position(kind: str) -> None:
    config = json.loads((E5 / "config.json").read_text())
    assert EncoderConfig.from_hf(config | {"model_type": kind, "pad_token_id": 1}).position_offset == 2


def copied(folder: Path) -> Path:
    """A copy of the small BGE to break."""
    return Path(shutil.copytree(BGE, folder / "model"))


def edit(path: Path, change: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
