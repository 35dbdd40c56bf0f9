"""One residual block: attention and MLP, each with the persona terms of its layer."""

import math

import jax
from flax import nnx

from abi_jax.model.attention import attend
from abi_jax.model.attention_terms import PagedPast, Past, Scoring, Sight
from abi_jax.model.config import ModelConfig
from abi_jax.model.inputs import Inputs
from abi_jax.model.layers import Linear, RMSNorm, activate, make_norm, projection, rotate
from abi_jax.model.persona import LayerTerms
from abi_jax.sharding.context import constrain

Angles = tuple[jax.Array, jax.Array] | None
KeysValues = tuple[jax.Array, jax.Array]


class Attention(nnx.Module):
    """Multi-head attention with grouped key-value heads."""

    def __init__(self, config: ModelConfig, layer: int, backend: str) -> None:
        c = config
        self.config, self.backend = config, backend
        self.scoring = Scoring(c.scale, c.attention_softcap, c.window(layer))
        self.q = Linear(*projection(c, "q"), bias=c.qkv_bias)
        self.k = Linear(*projection(c, "k"), bias=c.qkv_bias)
        self.v = Linear(*projection(c, "v"), bias=c.qkv_bias)
        self.o = Linear(*projection(c, "o"), bias=c.out_bias, scale=0.02 / math.sqrt(2 * c.num_layers))
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_offset) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps, c.norm_offset) if c.qk_norm else None

    def __call__(
        self,
        x: jax.Array,
        inputs: Inputs,
        angles: Angles,
        sight: Sight,
        terms: LayerTerms,
        features: jax.Array | None,
        past: Past | PagedPast | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """`[B, T, D]` to the same and the tokens' keys and values `[B, K, T, d]`; `past` is attended to, too."""
        c, w = self.config, inputs.mixture
        B, T, _ = x.shape
        projected = terms.adapt("qkv", [self.q(x), self.k(x), self.v(x)], x, w)
        q, k, v = (y.reshape(B, T, -1, c.head_dim) for y in projected)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        q = constrain(q, ("batch", "length", "heads", None))
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        bias = terms.bias(w, inputs.roles, features)
        out = attend(q, k, v, sight, self.scoring, bias, past, backend=self.backend)
        out = out.reshape(B, T, c.q_size)
        return terms.adapt("o", [self.o(out)], out, w)[0], (k, v)


class MLP(nnx.Module):
    """SwiGLU or GeGLU when gated (arXiv:2002.05202), else the two-matrix MLP of GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        c = config
        self.activation = c.activation
        self.gate = Linear(*projection(c, "gate"), bias=c.mlp_bias) if c.gated else None
        self.up = Linear(*projection(c, "up"), bias=c.mlp_bias)
        self.down = Linear(*projection(c, "down"), bias=c.mlp_bias, scale=0.02 / math.sqrt(2 * c.num_layers))

    def __call__(self, x: jax.Array, terms: LayerTerms, w: jax.Array | None) -> jax.Array:
        """`[B, T, D]` and mixture `[B, T, P]` to `[B, T, D]`."""
        y = terms.adapt("up", [self.up(x)], x, w)[0]
        if self.gate is None:
            y = activate(y, self.activation)
        else:
            y *= activate(terms.adapt("gate", [self.gate(x)], x, w)[0], self.activation)
        return terms.adapt("down", [self.down(y)], y, w)[0]


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
        terms: LayerTerms,
        features: jax.Array | None,
        past: Past | PagedPast | None = None,
    ) -> tuple[jax.Array, KeysValues]:
        """`[B, T, D]` to the same and the tokens' keys and values `[B, K, T, d]`."""
        y, kept = self.attention(self.attention_norm(x), inputs, angles, sight, terms, features, past)
        x = x + (y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.mlp(self.mlp_norm(x), terms, inputs.mixture)
        x = x + (y if self.mlp_post_norm is None else self.mlp_post_norm(y))
        return constrain(x, ("batch", "length", None)), kept
