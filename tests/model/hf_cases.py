"""The shrunken published models of `tests/golden`, and how the tests run them."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer, models

from abi_jax.model.cache import new_cache
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.hf import import_hf
from abi_jax.model.inputs import Inputs, gated_mixture, plain_inputs
from abi_jax.model.safetensors_io import open_checkpoint
from abi_jax.model.safetensors_writer import write_checkpoint
from abi_jax.model.weight import Tree, describe, merge

GOLDEN = Path(__file__).resolve().parent / "golden"
PUBLISHED: dict[str, dict[str, Any]] = json.loads(
    (GOLDEN.parent.parent / "golden" / "published_decoders.json").read_text()
)
NAMES = tuple(PUBLISHED)

Tensors = dict[str, np.ndarray]


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    """prompt [2, 24], logits [2, 24, V], greedy [2, 64], margin."""
    with np.load(GOLDEN / name / "golden.npz") as file:
        return dict(file)


@cache
def imported(name: str) -> tuple[ModelConfig, Tree]:
    """The golden checkpoint, imported in f32. Not to be changed."""
    return import_hf(GOLDEN / name, progress=False)


def raw_config(name: str) -> dict[str, Any]:
    """config.json of the golden checkpoint."""
    return dict(json.loads((GOLDEN / name / "config.json").read_text()))


def copy(name: str, folder: Path, **changes: Any) -> Path:
    """A copy of a golden checkpoint with some keys of its config.json changed."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / name / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps(raw_config(name) | changes))
    return folder


def logits(
    config: ModelConfig,
    params: Tree,
    tokens: np.ndarray,
    w: np.ndarray | None = None,
    dtype: DTypeLike = jnp.float32,
) -> np.ndarray:
    """Logits f32 [B, T, V]; with a mixture `w` [B, P] acting on every token."""
    graphdef, _ = describe(lambda: Decoder(config, dtype=dtype))

    @jax.jit
    def run(params: Tree, tokens: jax.Array, w: jax.Array | None) -> jax.Array:
        inputs = plain_inputs(tokens)
        mixture = None if w is None else gated_mixture(w, jnp.ones(tokens.shape, bool))
        inputs = Inputs(inputs.tokens, inputs.positions, inputs.segments, inputs.roles, mixture=mixture, packed=False)
        return merge(graphdef, params)(inputs)

    return np.asarray(run(params, jnp.asarray(tokens), None if w is None else jnp.asarray(w, jnp.float32)))


def greedy_cached(config: ModelConfig, params: Tree, prompt: np.ndarray, new: int) -> np.ndarray:
    """Greedy tokens [B, new]: one prefill into an empty cache, then a step a token."""
    graphdef, _ = describe(lambda: Decoder(config))
    B, T = prompt.shape

    @jax.jit
    def prefill(params: Tree, tokens: jax.Array) -> tuple[jax.Array, Any]:
        model = merge(graphdef, params)
        h, cache = model.hidden(plain_inputs(tokens), new_cache(config, B, T + new), fresh=True)
        return jnp.argmax(model.logits(h[:, -1:]), axis=-1), cache

    @jax.jit
    def step(params: Tree, token: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        model = merge(graphdef, params)
        ones = jnp.ones_like(token)
        h, cache = model.hidden(Inputs(token, cache.lengths[:, None], ones, 4 * ones, packed=False), cache)
        return jnp.argmax(model.logits(h), axis=-1), cache

    token, cache = prefill(params, jnp.asarray(prompt, jnp.int32))
    out = [token]
    for _ in range(new - 1):
        token, cache = step(params, token.astype(jnp.int32), cache)
        out.append(token)
    return np.concatenate(out, axis=1)


def stored(folder: Path) -> Tensors:
    """All tensors of a checkpoint, as stored."""
    index = open_checkpoint(folder)
    return {name: index.read(name) for name in index.names()}


def same(a: Tensors, b: Tensors) -> bool:
    """True when names, dtypes and bits are equal."""
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)


def rewritten(name: str, folder: Path, change: Callable[[Tensors], Any], **config: Any) -> Path:
    """A copy of a golden checkpoint after `change` to its tensors."""
    tensors = stored(GOLDEN / name)
    change(tensors)
    copy(name, folder, **config)
    (folder / "model.safetensors").unlink()
    write_checkpoint(folder, tensors.items())
    return folder


def tokenizer_files(folder: Path, size: int) -> Path:
    """A folder with a tokenizer of `size` tokens."""
    folder.mkdir()
    vocab = {"<s>": 0, "</s>": 1} | {f"t{i}": i for i in range(2, size)}
    Tokenizer(models.WordLevel(vocab, unk_token="<s>")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}"})
    )
    return folder
