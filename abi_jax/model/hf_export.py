"""A decoder to a Hugging Face folder: there whole, or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.hf_config import to_hf
from abi_jax.model.hf_import import CONFIG, check_vocabulary
from abi_jax.model.hf_names import Source, source
from abi_jax.model.safetensors_writer import write_checkpoint
from abi_jax.model.weight import Tree, Weight, describe, map_weights, path_name
from abi_jax.text.tokenizer import Tokenizer

GENERATION = "generation_config.json"


def export_hf(
    config: ModelConfig,
    params: Tree,
    folder: str | Path,
    tokenizer_files: str | Path | None = None,
    *,
    max_shard_bytes: int = 2 << 30,
    dtype: DTypeLike | None = None,
    force: bool = False,
) -> Path:
    """Writes a folder that transformers loads: weights, config.json, generation_config.json, tokenizer; returns it.

    `tokenizer_files` is a folder whose tokenizer and chat template are copied unchanged. `dtype` None keeps each
    array's own. Everything is written beside `folder` and renamed at the end. With several processes, all call
    this and the first writes. Raises `InputError` for a configuration that the architecture cannot express or
    that still has personas (see `model/bank.py`), a folder that is not empty without `force`, a tokenizer
    larger than the embedding.
    """
    folder = Path(folder).expanduser().resolve()
    if config.persona is not None:
        raise InputError(
            "personas have no equivalent in Hugging Face checkpoints; expected one merged into the base model "
            "(merge_persona), or all left out (drop_personas)"
        )
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; expected a folder to export to")
    taken = folder.is_dir() and any(folder.iterdir())
    if taken and not force:
        raise InputError(f"{folder} is not empty; expected a new folder, or `force` (--force) to replace it")
    if taken and not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no Hugging Face directory: `force` replaces one, and nothing else")
    described = to_hf(config, dtype or params["embedding"].dtype)
    tokenizer = None if tokenizer_files is None else Tokenizer.load(tokenizer_files)
    if tokenizer is not None:
        check_vocabulary(Path(str(tokenizer_files)), config)
    tensors = _tensors(config, params, dtype)
    if jax.process_index() > 0:
        for _ in tensors:  # every process takes part in gathering what is spread over several
            pass
    else:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = folder.parent / f".{folder.name}.export-{os.getpid()}"
        try:
            write_checkpoint(made, tensors, max_shard_bytes)
            ids = _token_ids(tokenizer)
            _write_json(made / CONFIG, described | ids)
            _write_json(made / GENERATION, {"_from_model_config": True} | ids)
            if tokenizer is not None:
                tokenizer.save(made)  # with its own generation_config.json, if it has one
            _replace(folder, made)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("export_hf")
    return folder


def _tensors(config: ModelConfig, params: Tree, dtype: DTypeLike | None) -> Iterator[tuple[str, np.ndarray]]:
    """Yields names and values as Hugging Face stores them; weights that share a tensor are put together."""
    _, weights = describe(lambda: Decoder(config))
    arrays = {path_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    parts: dict[str, list[tuple[Source, str]]] = {}

    def place(path: str, weight: Weight) -> None:
        if path not in arrays or arrays[path].shape != weight.shape:
            raise ValueError(f"params do not fit the configuration: {path!r} should have shape {weight.shape}")
        where = source(config, path, weight.shape)
        parts.setdefault(where.name, []).append((where, path))

    map_weights(place, weights)
    for name, pieces in parts.items():
        whole: np.ndarray | None = None
        for where, path in pieces:
            value = _on_host(arrays[path])
            value = value if dtype is None else value.astype(jnp.dtype(dtype))
            value = value.T if where.transform.transpose else value
            if len(pieces) == 1:
                whole = value
            else:
                whole = np.empty(where.shape, value.dtype) if whole is None else whole
                whole[where.transform.part] = value
        assert whole is not None
        yield name, whole


def _on_host(x: jax.Array) -> np.ndarray:
    if not x.is_fully_addressable:
        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Start, end and padding ids. A null is written out: left out, transformers would assume those of its class."""
    if tokenizer is None:
        return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    ends = list(tokenizer.eos_ids)
    return {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": tokenizer.pad_id if ends else None,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(folder: Path, made: Path) -> None:
    """Puts `made` in the place of `folder`, whose old content is only deleted once the new is there."""
    old = folder.parent / f".{folder.name}.replaced-{os.getpid()}"
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(made, folder)
    except BaseException:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
