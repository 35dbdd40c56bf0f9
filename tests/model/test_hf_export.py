"""Export to Hugging Face folders: the same bits, whole or not at all."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.hf import export_hf, import_hf
from abi_jax.model.weight import describe, initialize
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from tests.model.hf_cases import (
    GOLDEN,
    NAMES,
    imported,
    same,
    stored,
    tokenizer_files,
)

EACH = pytest.mark.parametrize("name", NAMES)


@EACH
@pytest.mark.parametrize("limit", [2 << 30, 20_000])
def test_import_then_export_gives_the_same_bits(name: str, limit: int, tmp_path: Path) -> None:
    config, params = imported(name)
    out = export_hf(config, params, tmp_path / "deep" / "out", max_shard_bytes=limit)
    assert same(stored(GOLDEN / name), stored(out))
    assert (limit < 1 << 20) == (out / "model.safetensors.index.json").exists()
    again, back = import_hf(out, progress=False)
    assert again == config
    assert all(map(np.array_equal, jax.tree.leaves(params), jax.tree.leaves(back)))
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_a_sharded_model_exports_the_same_bits(tmp_path: Path) -> None:
    config, params = import_hf(GOLDEN / "gpt2", mesh=make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), progress=False)
    assert same(stored(GOLDEN / "gpt2"), stored(export_hf(config, params, tmp_path / "out")))


def test_export_casts_on_request(tmp_path: Path) -> None:
    config, params = imported("mistral")
    out = export_hf(config, params, tmp_path / "out", dtype=jnp.bfloat16)
    assert {x.dtype for x in stored(out).values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_export_keeps_tokenizer_template_and_token_ids(tmp_path: Path) -> None:
    config, params = imported("llama2")
    files = tokenizer_files(tmp_path / "tokenizer", 100)
    out = export_hf(config, params, tmp_path / "out", files)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (files / name).read_bytes()
    for name in ("config.json", "generation_config.json"):
        found = json.loads((out / name).read_text())
        assert (found["bos_token_id"], found["eos_token_id"]) == (0, 1)
    import_hf(out, progress=False)


def test_export_refuses_rather_than_overwrites(tmp_path: Path) -> None:
    config, params = imported("llama2")
    (tmp_path / "out").mkdir()
    export_hf(config, params, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="out is not empty"):
        export_hf(config, params, tmp_path / "out")
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    export_hf(config, params, tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "notes.txt").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_export_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, params = imported("llama2")
    out = export_hf(config, params, tmp_path / "out")
    before = stored(out)
    monkeypatch.setattr("abi_jax.model.hf_export._write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    for target in ("out", "other"):
        with pytest.raises(OSError, match="disk full"):
            export_hf(config, params, tmp_path / target, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert same(stored(out), before)


def test_export_refuses_a_model_that_hugging_face_cannot_express(tmp_path: Path) -> None:
    config = ModelConfig(vocab_size=16, d_model=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4, d_ff=8)
    config = replace(config, positions="sinusoidal")
    params = initialize(describe(lambda: Decoder(config))[1], jax.random.key(0))
    with pytest.raises(InputError, match="cannot express positions='sinusoidal'"):
        export_hf(config, params, tmp_path / "out")
    assert not list(tmp_path.iterdir())
