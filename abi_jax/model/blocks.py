"""One residual block: attention and MLP, each with its persona terms."""

import math
from collections.abc import Callable

import jax
from flax import nnx

from abi_jax.model.attention import Bias, Sight, attend
from abi_jax.model.config import ModelConfig
from abi_jax.model.inputs import Inputs
from abi_jax.model.layers import Linear, RMSNorm, activate, make_norm, rotate
from abi_jax.model.persona import CoreAdapter, MaskQueries
from abi_jax.sharding.context import constrain

Angles = tuple[jax.Array, jax.Array] | None
Store = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def _cores(config: ModelConfig, **sizes: tuple[int, int, tuple[str, str]]) -> nnx.Dict | None:
    shape = config.persona
    if shape is None or not shape.core_rank:
        return None
    return nnx.Dict({name: CoreAdapter(i, o, axes, shape) for name, (i, o, axes) in sizes.items()})


def _project(linear: Linear, cores: nnx.Dict | None, name: str, x: jax.Array, w: jax.Array | None) -> jax.Array:
    y = linear(x)
    return y if cores is None or w is None else y + cores[name](x, w)


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
        self, x: jax.Array, inputs: Inputs, angles: Angles, sight: Sight, features: jax.Array | None, store: Store
    ) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`; `store(k, v)` keeps the new keys and returns those to attend to."""
        c, w = self.config, inputs.mixture
        B, T, _ = x.shape
        q = _project(self.q, self.cores, "q", x, w).reshape(B, T, c.num_heads, c.head_dim)
        k = _project(self.k, self.cores, "k", x, w).reshape(B, T, c.num_kv_heads, c.head_dim)
        v = _project(self.v, self.cores, "v", x, w).reshape(B, T, c.num_kv_heads, c.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q = constrain(q, ("batch", "length", "heads", None))
        k, v = store(k.swapaxes(1, 2), v.swapaxes(1, 2))
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
            backend=self.backend,
        )
        return _project(self.o, self.cores, "o", out.reshape(B, T, c.q_size), w)


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
        y = _project(self.up, self.cores, "up", x, w)
        y = activate(y, self.activation) if self.gate is None else activate(self.gate(x), self.activation) * y
        return _project(self.down, self.cores, "down", y, w)


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
        self, x: jax.Array, inputs: Inputs, angles: Angles, sight: Sight, features: jax.Array | None, store: Store
    ) -> jax.Array:
        """`[B, T, D] -> [B, T, D]`."""
        y = self.attention(self.attention_norm(x), inputs, angles, sight, features, store)
        x = x + (y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.mlp(self.mlp_norm(x), inputs.mixture)
        return constrain(x + (y if self.mlp_post_norm is None else self.mlp_post_norm(y)), ("batch", "length", None))
