"""Checkpoints that cannot be imported, and what the user is told."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.hf import export_hf, import_hf
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from tests.model.hf_cases import GOLDEN, Tensors, copy, imported, rewritten, tokenizer_files


def drop(name: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.pop(name)


def put(name: str, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({name: np.zeros(shape, dtype)})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama2", drop("model.layers.1.mlp.up_proj.weight"), r"'model\.layers\.1\.mlp\.up_proj\.weight' is missing"),
        ("llama2", drop("lm_head.weight"), r"'lm_head\.weight' is missing"),
        ("gpt2", drop("transformer.h.0.attn.c_attn.bias"), r"'transformer\.h\.0\.attn\.c_attn\.bias' is missing"),
        ("gpt2", put("transformer.h.0.attn.c_attn.weight", (32, 128)), r"has shape \(32, 128\).*\(32, 96\)"),
        ("qwen3", put("model.norm.weight", (31,)), r"'model\.norm\.weight' has shape \(31,\).*\(32,\)"),
        ("qwen3", put("model.embed_tokens.weight", (120, 32)), r"vocabulary mismatch.*120 rows.*128"),
        ("llama2", put("lm_head.weight", (130, 32)), r"vocabulary mismatch.*130 rows.*128"),
        ("qwen3", put("lm_head.weight", (128, 32)), r"'lm_head\.weight' differs from"),
        ("llama2", put("score.weight", (2, 32)), r"1 tensors that a llama of 3 layers.*score\.weight"),
        ("llama2", put("model.norm.weight", (32,), np.int8), r"'model\.norm\.weight' is int8; expected.*unquantised"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, change: Callable[[Tensors], Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        import_hf(rewritten(name, tmp_path / "c", change), progress=False)


def test_a_model_deeper_than_its_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"9 tensors that a llama of 2 layers.*model\.layers\.2\..*\.\.\."):
        import_hf(copy("llama2", tmp_path / "c", num_hidden_layers=2), progress=False)


@pytest.mark.parametrize("cut", [1, 5000])
def test_a_truncated_file_is_refused_before_anything_is_read(cut: int, tmp_path: Path) -> None:
    folder = copy("llama2", tmp_path / "c")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-cut])
    with pytest.raises(InputError, match=r"model\.safetensors: truncated"):
        import_hf(folder, progress=False)


def test_folders_that_are_no_checkpoint_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "none"))):
        import_hf(tmp_path / "none", progress=False)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: corrupt JSON"):
        import_hf(tmp_path, progress=False)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json holds a list"):
        import_hf(tmp_path, progress=False)
    (tmp_path / "config.json").write_text((GOLDEN / "gpt2" / "config.json").read_text())
    with pytest.raises(InputError, match="no checkpoint here"):
        import_hf(tmp_path, progress=False)


def test_a_tokenizer_larger_than_the_embedding_is_refused_both_ways(tmp_path: Path) -> None:
    files = tokenizer_files(tmp_path / "tokenizer", 129)
    folder = copy("llama2", tmp_path / "c")
    (folder / "tokenizer.json").write_bytes((files / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match=r"129 tokens, but the embedding only 128 rows"):
        import_hf(folder, progress=False)
    with pytest.raises(InputError, match=r"129 tokens, but the embedding only 128 rows"):
        export_hf(*imported("llama2"), tmp_path / "out", files)
    assert not (tmp_path / "out").exists()


def test_a_mesh_that_does_not_divide_is_named() -> None:
    with pytest.raises(InputError, match=r"embedding: dimension 'embed' of size 36 does not divide by 8"):
        import_hf(GOLDEN / "gemma2", mesh=make_mesh(MeshConfig(fsdp=8, data=1)), progress=False)
