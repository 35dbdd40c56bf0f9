"""The network of a BERT-family sentence encoder: token ids in, one vector a text out.

Post-layer-norm Transformer encoder (arXiv:1810.04805) with learned positions, as in MiniLM,
BGE, E5 and the RoBERTa / XLM-R variants of them. Pooling as in Sentence-BERT
(arXiv:1908.10084). Dimensions: B batch, T tokens, D model, H heads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Sharding
from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.config import Activation
from abi_jax.model.layers import LayerNorm, Linear, activate
from abi_jax.model.safetensors_io import TensorIndex
from abi_jax.model.weight import Tree, Weight, map_weights, param

Pooling = Literal["mean", "cls"]

# first position of a text, given the padding id: RoBERTa numbers positions from there on
_OFFSETS = {"bert": lambda pad: 0, "roberta": lambda pad: pad + 1, "xlm-roberta": lambda pad: pad + 1}
_OFFSETS["camembert"] = _OFFSETS["roberta"]

_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class EncoderConfig:
    """Shapes of an encoder; `position_offset` rows of the position table come before the first token's."""

    vocab_size: int = 30522
    d_model: int = 384
    num_layers: int = 6
    num_heads: int = 12
    d_ff: int = 1536
    max_positions: int = 512
    position_offset: int = 0
    type_vocab_size: int = 2
    pad_id: int = 0
    activation: Activation = "gelu"
    norm_eps: float = 1e-12
    architecture: str = "bert"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "max_length"):
            if getattr(self, name) < 1:
                raise InputError(f"encoder: {name}={getattr(self, name)} must be at least 1")
        if self.d_model % self.num_heads:
            raise InputError(f"encoder: d_model={self.d_model} must be a multiple of num_heads={self.num_heads}")

    @property
    def max_length(self) -> int:
        """Longest text in tokens that has a position for each."""
        return self.max_positions - self.position_offset

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "EncoderConfig":
        """Returns the shapes of a Hugging Face `config.json`; `InputError` names a key that cannot be served."""
        kind = config.get("model_type")
        if kind not in _OFFSETS:
            raise InputError(f"model_type={kind!r} is no known encoder; known: {', '.join(sorted(_OFFSETS))}")
        positions = config.get("position_embedding_type") or "absolute"
        if positions != "absolute":
            raise InputError(f"position_embedding_type={positions!r} is not supported; expected 'absolute'")
        if config.get("is_decoder"):
            raise InputError("is_decoder=true: a decoder cannot be used as a sentence encoder")
        activation = config.get("hidden_act", "gelu")
        if activation not in _ACTIVATIONS:
            raise InputError(f"hidden_act={activation!r} is not supported; known: {', '.join(_ACTIVATIONS)}")
        pad = _whole(config, "pad_token_id", 1 if kind != "bert" else 0)
        eps = config.get("layer_norm_eps", 1e-12)
        if not isinstance(eps, (int, float)):
            raise InputError(f"layer_norm_eps={eps!r}; expected a number")
        return cls(
            vocab_size=_whole(config, "vocab_size"),
            d_model=_whole(config, "hidden_size"),
            num_layers=_whole(config, "num_hidden_layers"),
            num_heads=_whole(config, "num_attention_heads"),
            d_ff=_whole(config, "intermediate_size"),
            max_positions=_whole(config, "max_position_embeddings"),
            position_offset=_OFFSETS[kind](pad),
            type_vocab_size=_whole(config, "type_vocab_size", 2),
            pad_id=pad,
            activation=_ACTIVATIONS[activation],
            norm_eps=float(eps),
            architecture=kind,
        )


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 0:
        raise InputError(f"{key}={value!r}; expected a whole number")
    return value


class EncoderLayer(nnx.Module):
    """Attention and MLP, each followed by a layer norm of its sum with its input."""

    def __init__(self, config: EncoderConfig) -> None:
        d, f = config.d_model, config.d_ff
        self.q = Linear(d, d, ("heads", "embed"), bias=True)
        self.k = Linear(d, d, ("heads", "embed"), bias=True)
        self.v = Linear(d, d, ("heads", "embed"), bias=True)
        self.o = Linear(d, d, ("embed", "heads"), bias=True)
        self.attention_norm = LayerNorm(d, config.norm_eps)
        self.up = Linear(d, f, ("mlp", "embed"), bias=True)
        self.down = Linear(f, d, ("embed", "mlp"), bias=True)
        self.mlp_norm = LayerNorm(d, config.norm_eps)
        self.num_heads, self.activation = config.num_heads, config.activation

    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`; `bias` f32 `[B, 1, 1, T]` is added to the attention scores."""
        x = self.attention_norm(x + self.o(self.attend(x, bias)))
        return self.mlp_norm(x + self.down(activate(self.up(x), self.activation)))

    def attend(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """Full (not causal) attention, `[B, T, D] -> [B, T, D]`; softmax in f32."""
        b, t, d = x.shape
        q, k, v = (f(x).reshape(b, t, self.num_heads, -1) for f in (self.q, self.k, self.v))
        # scaled before and normalised after the two products: [.., T, d] is far smaller than [.., T, T]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32) + bias
        weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
        total = jnp.sum(weights, axis=-1).transpose(0, 2, 1)[..., None]
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(x.dtype), v, preferred_element_type=jnp.float32)
        return (mixed / total).astype(x.dtype).reshape(b, t, d)


class Encoder(nnx.Module):
    """Token ids to hidden states; compute is in the dtype of the weights."""

    def __init__(self, config: EncoderConfig) -> None:
        self.tokens = param((config.vocab_size, config.d_model), ("vocab", "embed"))
        self.positions = param((config.max_positions, config.d_model), ("position", "embed"))
        self.types = param((config.type_vocab_size, config.d_model), (None, "embed"))
        self.norm = LayerNorm(config.d_model, config.norm_eps)
        self.layers = nnx.List([EncoderLayer(config) for _ in range(config.num_layers)])
        self.config = config

    def __call__(self, ids: jax.Array, lengths: jax.Array) -> jax.Array:
        """Hidden states `[B, T, D]` of ids `[B, T]`, of which the first `lengths` `[B]` of each row are text."""
        t, first = ids.shape[1], self.config.position_offset
        # every token of a single text has type 0
        fixed = self.positions.get_value()[first : first + t] + self.types.get_value()[0]
        x = self.norm(jnp.take(self.tokens.get_value(), ids, axis=0, mode="clip") + fixed)
        # finite, so that a row of padding gives numbers and not NaN
        bias = jnp.where(jnp.arange(t) < lengths[:, None], 0.0, -1e30)[:, None, None, :]
        for layer in self.layers:
            x = layer(x, bias)
        return x


def pool(hidden: jax.Array, lengths: jax.Array, kind: Pooling, normalize: bool) -> jax.Array:
    """One f32 vector a text, `[B, D]`, from `hidden` `[B, T, D]`: the mean of its tokens or its first one."""
    hidden = hidden.astype(jnp.float32)
    if kind == "cls":
        vectors = hidden[:, 0]
    else:
        inside = (jnp.arange(hidden.shape[1]) < lengths[:, None])[..., None]
        vectors = jnp.sum(jnp.where(inside, hidden, 0.0), axis=1) / jnp.maximum(lengths, 1)[:, None]
    if not normalize:
        return vectors
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


_NAMES = {
    "tokens": "embeddings.word_embeddings.weight",
    "positions": "embeddings.position_embeddings.weight",
    "types": "embeddings.token_type_embeddings.weight",
    "norm": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def hf_name(path: str) -> str:
    """Returns the Hugging Face name of a weight's path: `layers.0.q.kernel` is `encoder.layer.0.attention.self...`."""
    parts = path.split(".")
    prefix = ""
    if parts[0] == "layers":
        prefix, parts = f"encoder.layer.{parts[1]}.", parts[2:]
    leaf = "" if len(parts) == 1 else ".bias" if parts[1] == "bias" else ".weight"
    return prefix + _NAMES[parts[0]] + leaf


def load_weights(index: TensorIndex, weights: Tree, shardings: Tree, dtype: DTypeLike) -> Tree:
    """Returns the arrays that `weights` describes, read from `index` straight to `shardings`.

    Accepts checkpoints of a bare encoder and of one with a task head, which prefix every name.
    """
    word = _NAMES["tokens"]
    found = [name.removesuffix(word) for name in index.names() if name.endswith(word)]
    prefix = found[0] if found else ""

    def load(path: str, weight: Weight, sharding: Sharding) -> jax.Array:
        name = prefix + hf_name(path)
        if name not in index:
            # checkpoints converted from TensorFlow keep its names for the parts of a layer norm
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            name = old if old in index else name
        return index.load_sharded(name, sharding, dtype, shape=weight.shape)

    placed = iter(jax.tree.leaves(shardings))
    return map_weights(lambda path, weight: load(path, weight, next(placed)), weights)
