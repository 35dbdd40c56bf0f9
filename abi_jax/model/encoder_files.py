"""What the files of a sentence-transformers folder say about turning text into one vector.

`modules.json` lists the stages, `1_Pooling/config.json` says how to pool,
`sentence_bert_config.json` where to truncate, `config_sentence_transformers.json` which prompts
there are (https://sbert.net). A folder without them is a plain encoder: mean pooling, as
sentence-transformers itself assumes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abi_jax.errors import InputError
from abi_jax.model.encoder_net import EncoderConfig, Pooling

# where releases of sentence-transformers have put the truncation length, in the order it looks for them
_LENGTH_FILES = tuple(f"sentence_{kind}_config.json" for kind in ("bert", "roberta", "camembert", "xlm-roberta"))
_POOLING_FLAGS: Mapping[str, Pooling] = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
_POOLINGS: tuple[Pooling, ...] = ("mean", "cls")


@dataclass(frozen=True)
class SentenceSettings:
    """From text to tokens and from hidden states to a vector; `prompts` are named prefixes of the text."""

    max_length: int
    pooling: Pooling = "mean"
    normalize: bool = False
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def read_config(folder: Path) -> EncoderConfig:
    """Returns the shapes in `config.json`; `InputError` names the file and the key at fault."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{path} is missing; expected a Hugging Face encoder folder")
    try:
        return EncoderConfig.from_hf(_read(path))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_settings(folder: Path, config: EncoderConfig) -> SentenceSettings:
    """Returns the settings of the sentence-transformers files in `folder`, or its defaults without them.

    Raises `InputError` for a stage or a pooling that would change the vectors and is not known here.
    """
    pooling: Pooling = "mean"
    normalize = False
    for stage in _stages(folder):
        kind = str(stage.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _pooling(folder / str(stage.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise InputError(
                f"{folder / 'modules.json'}: stage {kind!r} is not supported; known: Transformer, Pooling, Normalize"
            )
    text = next((_read(folder / name) for name in _LENGTH_FILES if (folder / name).is_file()), {})
    extra = _optional(folder / "config_sentence_transformers.json")
    prompts = extra.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise InputError(
            f"{folder / 'config_sentence_transformers.json'}: prompts={prompts!r}; expected strings by name"
        )
    default = extra.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise InputError(
            f"{folder / 'config_sentence_transformers.json'}: default_prompt_name={default!r} is no prompt"
        )
    return SentenceSettings(
        max_length=_max_length(folder, text, config),
        pooling=pooling,
        normalize=normalize,
        lower_case=bool(text.get("do_lower_case", False)),
        prompts=prompts,
        default_prompt=default,
    )


def _stages(folder: Path) -> list[dict[str, Any]]:
    path = folder / "modules.json"
    if not path.is_file():
        return []
    stages = _parse(path)
    if not isinstance(stages, list) or not all(isinstance(s, dict) for s in stages):
        raise InputError(f"{path}: expected a list of stages")
    return stages


def _pooling(path: Path) -> Pooling:
    config = _read(path)
    mode = config.get("pooling_mode")
    chosen = [mode] if mode else [k for k, on in config.items() if k.startswith("pooling_mode_") and on is True]
    found = _POOLING_FLAGS.get(str(chosen[0]), chosen[0]) if len(chosen) == 1 else None
    for known in _POOLINGS:
        if found == known:
            break
    else:
        raise InputError(f"{path}: pooling {chosen} is not supported; expected one of {', '.join(_POOLINGS)}")
    if config.get("include_prompt") is False:
        raise InputError(f"{path}: include_prompt=false is not supported; expected prompts to be pooled like text")
    return known


def _max_length(folder: Path, text: Mapping[str, Any], config: EncoderConfig) -> int:
    length = text.get("max_seq_length")
    if length is None:
        length = _optional(folder / "tokenizer_config.json").get("model_max_length", config.max_length)
    if not isinstance(length, (int, float)) or length < 1:
        raise InputError(f"{folder}: max_seq_length={length!r}; expected a positive number of tokens")
    # files often state the size of the position table, or a very large number for "no limit"
    return int(min(length, config.max_length))


def _read(path: Path) -> dict[str, Any]:
    value = _parse(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _optional(path: Path) -> dict[str, Any]:
    return _read(path) if path.is_file() else {}


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
