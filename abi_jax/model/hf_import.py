"""A Hugging Face folder to a decoder: weights go from the files straight to their shards."""

import json
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from jax.typing import DTypeLike
from tqdm import tqdm

from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.hf_config import DTYPES, from_hf
from abi_jax.model.hf_names import HEAD, Source, is_buffer, prefix, source
from abi_jax.model.safetensors_io import TensorIndex, open_checkpoint
from abi_jax.model.weight import Tree, Weight, describe, map_weights
from abi_jax.sharding.rules import AxisRules
from abi_jax.text.tokenizer import Tokenizer

CONFIG = "config.json"
_COMPARED = 8 << 20  # bytes of a tied head compared at a time


def read_hf_config(folder: str | Path) -> ModelConfig:
    """Returns the configuration in `folder/config.json`; `InputError` names the file and what is wrong with it."""
    path = Path(folder).expanduser() / CONFIG
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a Hugging Face folder with {CONFIG} and *.safetensors")
    try:
        raw = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: corrupt JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} holds a {type(raw).__name__}; expected an object")
    try:
        return from_hf(raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def import_hf(
    folder: str | Path,
    mesh: Mesh | None = None,
    rules: AxisRules | None = None,
    dtype: DTypeLike | None = jnp.float32,
    progress: bool = True,
) -> tuple[ModelConfig, Tree]:
    """Returns the configuration and the parameters, the nested dict that `describe(Decoder)` gives, as arrays.

    Every weight is read region by region to the devices that hold it: beyond the result the host holds one
    shard at a time. Without `mesh`, weights go to the first local device. `dtype` None keeps each tensor's own.
    Everything that can be checked without reading data is checked first: `InputError` names the file, tensor
    or key for a broken or truncated checkpoint, an unknown architecture or option, a missing, misshapen or
    unexpected tensor, quantised weights, a tokenizer larger than the embedding, a mesh that does not divide.
    """
    folder = Path(folder).expanduser()
    config = read_hf_config(folder)
    index = open_checkpoint(folder)
    check_vocabulary(folder, config)
    _, weights = describe(lambda: Decoder(config))
    sources = _sources(config, weights, index)
    shardings = {path: _sharding(path, weight, mesh, rules) for path, (_, weight) in sources.items()}
    _check_tied_head(config, index, sources)

    size = {path: prod(w.shape) * index.dtype(s.name).itemsize for path, (s, w) in sources.items()}
    quiet = not progress or jax.process_index() > 0
    with tqdm(total=sum(size.values()), unit="B", unit_scale=True, desc=f"import {folder.name}", disable=quiet) as bar:

        def read(path: str, weight: Weight) -> jax.Array:
            where = sources[path][0]
            kept = dtype if dtype is not None else jax.dtypes.canonicalize_dtype(index.dtype(where.name))
            value = index.load_sharded(where.name, shardings[path], kept, where.transform, weight.shape)
            bar.update(size[path])
            return value

        return config, map_weights(read, weights)


def check_vocabulary(folder: Path, config: ModelConfig) -> None:
    """Raises `InputError` when the folder's tokenizer, if it has one, makes ids that the embedding does not have."""
    if (folder / "tokenizer.json").is_file():
        size = Tokenizer.load(folder).vocab_size
        if size > config.vocab_size:
            raise InputError(
                f"{folder}: the tokenizer has {size} tokens, but the embedding only {config.vocab_size} rows "
                f"(vocab_size in {CONFIG}); expected a tokenizer of the same model"
            )


def _sharding(path: str, weight: Weight, mesh: Mesh | None, rules: AxisRules | None) -> Sharding:
    if mesh is None:
        return SingleDeviceSharding(jax.local_devices()[0])
    return (rules or AxisRules()).sharding(weight.axes, mesh, weight.shape, path)


def _sources(config: ModelConfig, weights: Tree, index: TensorIndex) -> dict[str, tuple[Source, Weight]]:
    """Returns where each weight is, after comparing the whole list with what is stored."""
    bare = _is_base_model(config, index)
    start = prefix(config.architecture)
    found: dict[str, tuple[Source, Weight]] = {}

    def place(path: str, weight: Weight) -> None:
        where = source(config, path, weight.shape)
        if bare and where.name != HEAD:
            where = Source(where.name.removeprefix(start), where.shape, where.transform)
        found[path] = where, weight

    map_weights(place, weights)
    for path, (where, _) in found.items():
        _check_tensor(config, index, path, where)
    known = {where.name for where, _ in found.values()}
    extra = [n for n in index.names() if n not in known and not is_buffer(config.architecture, n)]
    if config.tied_embeddings:
        extra = [n for n in extra if n != HEAD]
    if extra:
        raise InputError(
            f"{index.folder}: {len(extra)} tensors that a {config.architecture} of {config.num_layers} layers, as "
            f"{CONFIG} describes it, has no place for: {', '.join(extra[:5])}{', ...' if len(extra) > 5 else ''}"
        )
    return found


def _check_tensor(config: ModelConfig, index: TensorIndex, path: str, where: Source) -> None:
    shape, dtype = index.shape(where.name), index.dtype(where.name)  # InputError when it is missing
    if dtype.name not in DTYPES:
        raise InputError(f"{index.folder}: {where.name!r} is {dtype}; expected one of {', '.join(DTYPES)}, unquantised")
    if shape == where.shape:
        return
    if path in ("embedding", "head.kernel") and shape[1:] == where.shape[1:]:
        raise InputError(
            f"{index.folder}: vocabulary mismatch: {where.name!r} has {shape[0]} rows, "
            f"but vocab_size in {CONFIG} is {config.vocab_size}"
        )
    raise InputError(f"{index.folder}: {where.name!r} has shape {shape}; {CONFIG} implies {where.shape}")


def _is_base_model(config: ModelConfig, index: TensorIndex) -> bool:
    """True when names lack the prefix, as in checkpoints saved from the model without its LM head."""
    name = source(config, "embedding", (config.vocab_size, config.d_model)).name
    return name not in index and name.removeprefix(prefix(config.architecture)) in index


def _check_tied_head(config: ModelConfig, index: TensorIndex, sources: dict[str, Any]) -> None:
    """A head stored beside the embedding it is tied to must be the same, or the configuration is wrong."""
    if not config.tied_embeddings or HEAD not in index:
        return
    name, shape = sources["embedding"][0].name, sources["embedding"][0].shape
    same = index.shape(HEAD) == shape
    rows = max(1, _COMPARED // (config.d_model * index.dtype(name).itemsize))
    for at in range(0, config.vocab_size, rows) if same else ():
        part = (slice(at, at + rows),)
        same = same and np.array_equal(index.read_slice(HEAD, part), index.read_slice(name, part))
    if not same:
        raise InputError(
            f"{index.folder}: {HEAD!r} differs from {name!r}, but tie_word_embeddings in {CONFIG} says they are one"
        )
