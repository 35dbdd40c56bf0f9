"""A sentence encoder: texts in, one vector each out.

Texts are sorted by length and padded to a few fixed shapes, so that after each shape has been
compiled once nothing compiles again, whatever is asked.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from abi_jax.errors import InputError
from abi_jax.model.encoder_files import SentenceSettings, read_config, read_settings
from abi_jax.model.encoder_net import Encoder, EncoderConfig, Pooling, load_weights, pool
from abi_jax.model.safetensors_io import open_checkpoint
from abi_jax.model.weight import Tree, describe, map_weights, merge, shardings
from abi_jax.sharding.rules import DEFAULT_TABLE, AxisRules

__all__ = ["ENCODER_RULES", "EncoderConfig", "SentenceSettings", "TextEncoder", "load_encoder"]

# an encoder fits on every device: weights are copied, and the whole mesh shares out the texts
ENCODER_RULES = AxisRules(
    dict.fromkeys(DEFAULT_TABLE, ()) | {"batch": ("data", "fsdp", "sequence", "tensor", "expert", "stage")}
)

_READ_AHEAD = 4096  # texts tokenised at a time: a token object is far larger than its id
# tokens a batch on a CPU: more of them push the activations out of its cache, and cost up to half the speed
_CPU_TOKENS = 1024


class TextEncoder:
    """A loaded encoder; made by `load_encoder`.

    `config` holds the shapes of the network, `settings` how text becomes tokens and hidden
    states a vector.
    """

    def __init__(
        self,
        config: EncoderConfig,
        settings: SentenceSettings,
        params: Tree,
        tokenizer: Tokenizer,
        mesh: Mesh | None = None,
        rules: AxisRules = ENCODER_RULES,
    ) -> None:
        if tokenizer.get_vocab_size() > config.vocab_size:
            raise InputError(
                f"vocabulary mismatch: the tokenizer has {tokenizer.get_vocab_size()} tokens, "
                f"but the model's vocab_size is {config.vocab_size}"
            )
        self.config, self.settings = config, settings
        self._params, self._tokenizer = params, tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(settings.max_length)
        self._lengths = tuple(_ladder(settings.max_length))
        self._platform = next(iter(jax.tree.leaves(params)[0].devices())).platform
        self._rows: NamedSharding | None = None
        copied, self._multiple = None, 1
        if mesh is not None:
            self._rows = rules.sharding(("batch",), mesh)
            copied = NamedSharding(mesh, PartitionSpec())
            axes = self._rows.spec[0] or ()
            self._multiple = prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes))
        graphdef, _ = describe(lambda: Encoder(config))

        def forward(params: Tree, ids: jax.Array, lengths: jax.Array) -> jax.Array:
            return _embed(graphdef, settings, params, ids, lengths)

        self._forward = jax.jit(forward, out_shardings=copied)

    @property
    def dimension(self) -> int:
        """Size of a vector."""
        return self.config.d_model

    def encode(self, texts: Sequence[str], batch_size: int = 32, prompt: str | None = None) -> np.ndarray:
        """Returns the vectors of `texts`, f32 `[len(texts), dimension]`, in their order.

        `prompt` names the prefix of `settings.prompts` to put before each text ("query" and
        "passage" for E5); without it the model's default prompt is used, if it has one. Texts
        longer than `settings.max_length` tokens are cut. Raises `InputError` for an unknown
        prompt and for what is not text.
        """
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; expected at least 1")
        tokens = self._tokenize(texts, self._prefix(prompt))
        # longest first: if memory does not suffice, the first batch says so
        order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
        groups: list[list[int]] = []
        start = 0
        while start < len(order):
            rows = self._most_rows(self._round_length(len(tokens[order[start]])), batch_size)
            groups.append(order[start : start + rows])
            start += rows
        pending = [self._dispatch([tokens[i] for i in group], batch_size) for group in groups]
        vectors = np.empty((len(tokens), self.dimension), np.float32)
        for group, result in zip(groups, pending, strict=True):
            vectors[group] = np.asarray(result)[: len(group)]
        return vectors

    def count(self, texts: Sequence[str], prompt: str | None = None) -> int:
        """How many tokens `encode` reads of `texts`."""
        return sum(map(len, self._tokenize(texts, self._prefix(prompt))))

    def warm_up(self, batch_size: int = 32) -> None:
        """Compiles every shape that `encode` with this `batch_size` can need."""
        for length in self._lengths:
            most = self._most_rows(length, batch_size)
            for rows in sorted({1, min(8, most), most}):
                self._dispatch([np.zeros(length, np.int32)] * rows, batch_size)

    def _prefix(self, prompt: str | None) -> str:
        name = self.settings.default_prompt if prompt is None else prompt
        if name is None:
            return ""
        if name not in self.settings.prompts:
            known = ", ".join(sorted(self.settings.prompts)) or "none"
            raise InputError(f"prompt {name!r} is unknown to this encoder; known: {known}")
        return self.settings.prompts[name]

    def _tokenize(self, texts: Sequence[str], prefix: str) -> list[np.ndarray]:
        if isinstance(texts, str):
            raise InputError("texts is a single string; expected a list of strings")
        return [ids for start in range(0, len(texts), _READ_AHEAD) for ids in self._tokenize_some(texts, start, prefix)]

    def _tokenize_some(self, texts: Sequence[str], start: int, prefix: str) -> Iterator[np.ndarray]:
        some = []
        for i, text in enumerate(texts[start : start + _READ_AHEAD], start):
            if not isinstance(text, str):
                raise InputError(f"texts[{i}] is {type(text).__name__} {text!r:.60}; expected a string")
            if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
                raise InputError(f"texts[{i}] holds half a surrogate pair, which is not text: {text!r:.60}")
            text = (prefix + text).strip()
            some.append(text.lower() if self.settings.lower_case else text)
        for encoding in self._tokenizer.encode_batch_fast(some):
            yield np.asarray(encoding.ids, np.int32)

    def _round_length(self, length: int) -> int:
        return next(n for n in self._lengths if n >= length)

    def _most_rows(self, length: int, batch_size: int) -> int:
        """Texts of padded `length` to a batch."""
        rows = batch_size if self._platform != "cpu" else min(batch_size, self._multiple * _CPU_TOKENS // length)
        return max(rows, 1)

    def _dispatch(self, tokens: list[np.ndarray], batch_size: int) -> jax.Array:
        """Starts the batch of `tokens`; its rows beyond them are padding."""
        length = self._round_length(max(len(t) for t in tokens))
        most = self._most_rows(length, batch_size)
        # a lone query should not pay for a whole batch
        rows = next(n for n in (1, 8, most) if len(tokens) <= n <= most)
        shape = (-(-rows // self._multiple) * self._multiple, length)
        ids, lengths = np.full(shape, self.config.pad_id, np.int32), np.zeros(shape[0], np.int32)
        for row, t in enumerate(tokens):
            ids[row, : len(t)] = t
            lengths[row] = len(t)
        if self._rows is not None:
            return self._forward(self._params, *jax.device_put((ids, lengths), self._rows))
        return self._forward(self._params, ids, lengths)


def load_encoder(
    folder: str | Path,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    *,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    max_length: int | None = None,
    prompts: Mapping[str, str] | None = None,
    rules: AxisRules = ENCODER_RULES,
) -> TextEncoder:
    """Loads a BERT-family encoder from a Hugging Face or sentence-transformers folder.

    Weights and compute are in `dtype`; vectors are always f32. With `mesh`, weights and texts
    are placed by `rules`. The keyword arguments override what the folder's files say; `prompts`
    are added to theirs (`{"query": "query: ", "passage": "passage: "}` for E5, whose files name
    none). Raises `InputError` naming the file, tensor or value that cannot be used.
    """
    folder = Path(folder).expanduser()
    config = read_config(folder)
    settings = read_settings(folder, config)
    if pooling not in (None, "mean", "cls"):
        raise InputError(f"pooling={pooling!r}; expected 'mean' or 'cls'")
    if max_length is not None and not 2 < max_length <= config.max_length:
        raise InputError(f"max_length={max_length}; {folder} has positions for 3 to {config.max_length} tokens")
    settings = dataclasses.replace(
        settings,
        pooling=pooling or settings.pooling,
        normalize=settings.normalize if normalize is None else normalize,
        max_length=max_length or settings.max_length,
        prompts={**settings.prompts, **(prompts or {})},
    )
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
    _, weights = describe(lambda: Encoder(config))
    if mesh is None:
        here = jnp.zeros(()).sharding  # wherever the user's default device is
        placed = map_weights(lambda _, __: here, weights)
    else:
        placed = shardings(weights, mesh, rules)
    params = load_weights(open_checkpoint(folder), weights, placed, dtype)
    return TextEncoder(config, settings, params, tokenizer, mesh, rules)


def _embed(
    graphdef: nnx.GraphDef, settings: SentenceSettings, params: Tree, ids: jax.Array, lengths: jax.Array
) -> jax.Array:
    exact = params["tokens"].dtype == jnp.float32
    # accelerators multiply f32 in fewer bits unless told otherwise; who wants speed asks for bf16
    with jax.default_matmul_precision("highest" if exact else "default"):
        hidden = merge(graphdef, params)(ids, lengths)
        return pool(hidden, lengths, settings.pooling, settings.normalize)


def _ladder(longest: int) -> Iterator[int]:
    """Yields the padded lengths 16, 24, 32, 48, 64, ... up to `longest`: at most a third of a row is padding."""
    step = 16
    while step < longest:
        yield step
        if step * 3 // 2 < longest:
            yield step * 3 // 2
        step *= 2
    yield longest


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise InputError(f"{path} is missing; expected the fast tokenizer's file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{path}: corrupt tokenizer: {error}") from None
