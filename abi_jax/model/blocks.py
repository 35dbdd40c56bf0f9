"""One residual block: attention and MLP, each with its persona terms."""

import math

import jax
from flax import nnx

from abi_jax.model.attention import Bias, Past, Sight, attend
from abi_jax.model.config import ModelConfig
from abi_jax.model.inputs import Inputs
from abi_jax.model.layers import Linear, RMSNorm, activate, make_norm, rotate
from abi_jax.model.persona import CoreAdapter, MaskQueries, adapt
from abi_jax.sharding.context import constrain

Angles = tuple[jax.Array, jax.Array] | None
KeysValues = tuple[jax.Array, jax.Array]


def _cores(config: ModelConfig, **sizes: tuple[int, int, tuple[str, str]]) -> nnx.Dict | None:
    shape = config.persona
    if shape is None or not shape.core_rank:
        return None
    return nnx.Dict({name: CoreAdapter(i, o, axes, shape) for name, (i, o, axes) in sizes.items()})


def _project(linears: dict[str, Linear], cores: nnx.Dict | None, x: jax.Array, w: jax.Array | None) -> list[jax.Array]:
    """Linear layers, each with the core adapter of its name, on one input."""
    outs = [linear(x) for linear in linears.values()]
    if cores is None or w is None:
        return outs
    return [y + change for y, change in zip(outs, adapt([cores[name] for name in linears], x, w), strict=True)]


class Attention(nnx.Module):
    """Multi-head attention with grouped key-value heads."""

    def __init__(self, config: ModelConfig, layer: int, backend: str) -> None:
        c = config
        self.config, self.window, self.backend = config, config.window(layer), backend
        q_axes, kv_axes, o_axes = ("heads", "embed"), ("kv_heads", "embed"), ("embed", "heads")
        self.q = Linear(c.d_model, c.q_size, q_axes, bias=c.qkv_bias)
        self.k = Linear(c.d_model, c.kv_size, kv_axes, bias=c.qkv_bias)
        self.v = Linear(c.d_model, c.kv_size, kv_axes, bias=c.qkv_bias)
        self.o = Linear(c.q_size, c.d_model, o_axes, bias=c.out_bias, scale=0.02 / math.sqrt(2 * c.num_layers))
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_offset) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_offset) if c.qk_norm else None
        self.masks = MaskQueries(c, c.persona) if c.persona and c.persona.mask else None
        self.cores = _cores(
            c,
            q=(c.d_model, c.q_size, q_axes),
            k=(c.d_model, c.kv_size, kv_axes),
            v=(c.d_model, c.kv_size, kv_axes),
            o=(c.q_size, c.d_model, o_axes),
        )

    def __call__(
        self,
        x: jax.Array,
        inputs: Inputs,
        angles: Angles,
        sight: Sight,
        features: jax.Array | None,
        past: Past | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """`[B, T, D]` to the same and the tokens' keys and values `[B, K, T, d]`; `past` is attended to, too."""
        c, w = self.config, inputs.mixture
        B, T, _ = x.shape
        q, k, v = (
            y.reshape(B, T, -1, c.head_dim) for y in _project({"q": self.q, "k": self.k, "v": self.v}, self.cores, x, w)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q = constrain(q, ("batch", "length", "heads", None))
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        bias: Bias | None = None
        if self.masks is not None and w is not None and features is not None:
            bias = self.masks(w, inputs.roles, features)
        out = attend(
            q,
            k,
            v,
            sight,
            scale=c.scale,
            softcap=c.attention_softcap,
            window=self.window,
            bias=bias,
            past=past,
            backend=self.backend,
        )
        return _project({"o": self.o}, self.cores, out.reshape(B, T, c.q_size), w)[0], (k, v)


class MLP(nnx.Module):
    """SwiGLU or GeGLU when gated (arXiv:2002.05202), else the two-matrix MLP of GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        c = config
        self.activation = c.activation
        in_axes, out_axes = ("mlp", "embed"), ("embed", "mlp")
        self.gate = Linear(c.d_model, c.d_ff, in_axes, bias=c.mlp_bias) if c.gated else None
        self.up = Linear(c.d_model, c.d_ff, in_axes, bias=c.mlp_bias)
        self.down = Linear(c.d_ff, c.d_model, out_axes, bias=c.mlp_bias, scale=0.02 / math.sqrt(2 * c.num_layers))
        wanted = c.persona is not None and c.persona.core_mlp
        self.cores = _cores(c, up=(c.d_model, c.d_ff, in_axes), down=(c.d_ff, c.d_model, out_axes)) if wanted else None

    def __call__(self, x: jax.Array, w: jax.Array | None = None) -> jax.Array:
        """`[B, T, D]` and mixture `[B, T, P]` to `[B, T, D]`."""
        y = _project({"up": self.up}, self.cores, x, w)[0]
        y = activate(y, self.activation) if self.gate is None else activate(self.gate(x), self.activation) * y
        return _project({"down": self.down}, self.cores, y, w)[0]


class Block(nnx.Module):
    """Pre-norm residual block; Gemma 2 also normalises each branch's output."""

    def __init__(self, config: ModelConfig, layer: int, backend: str) -> None:
        self.attention_norm = make_norm(config)
        self.attention = Attention(config, layer, backend)
        self.attention_post_norm = make_norm(config) if config.post_norms else None
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)
        self.mlp_post_norm = make_norm(config) if config.post_norms else None

    def __call__(
        self,
        x: jax.Array,
        inputs: Inputs,
        angles: Angles,
        sight: Sight,
        features: jax.Array | None,
        past: Past | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """`[B, T, D]` to the same and the tokens' keys and values `[B, K, T, d]`."""
        y, kept = self.attention(self.attention_norm(x), inputs, angles, sight, features, past)
        x = x + (y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.mlp(self.mlp_norm(x), inputs.mixture)
        x = x + (y if self.mlp_post_norm is None else self.mlp_post_norm(y))
        return constrain(x, ("batch", "length", None)), kept
