"""Tiny models with every option the decoder has, and how the tests run them."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax.typing import DTypeLike

from abi_jax.model.bank import BANK, add_personas
from abi_jax.model.config import ModelConfig, PersonaShape
from abi_jax.model.decoder import Decoder
from abi_jax.model.inputs import Inputs, gated_mixture
from abi_jax.model.weight import Tree, Weight, describe, map_weights, merge, path_name
from abi_jax.text.roles import Role

KEY = jax.random.key(0)
PERSONAS = 4
SHAPE = PersonaShape(
    capacity=PERSONAS, mask_lexical=3, injection_rank=2, head_rank=2, head_bias=True, core_rank=3, core_mlp=True
)

# the mixtures of four rows: nobody, one persona, another, three together
MIXED = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0.2, 0.5, 0.3, 0]], np.float32)

LLAMA = ModelConfig(
    vocab_size=64,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_length=64,
    tied_embeddings=False,
)
CONFIGS = {
    "llama": LLAMA,
    "gpt2": replace(
        LLAMA,
        num_kv_heads=4,
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        positions="learned",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_embeddings=True,
    ),
    "gemma2": replace(
        LLAMA,
        norm_offset=1.0,
        post_norms=True,
        activation="gelu_tanh",
        sliding_window=5,
        window_pattern=(True, False),
        attention_softcap=5.0,
        logit_softcap=4.0,
        query_scale=0.4,
        embed_scale=32**0.5,
        tied_embeddings=True,
    ),
    "qwen3": replace(LLAMA, head_dim=16, qk_norm=True, sliding_window=3, num_kv_heads=1),
    "sinusoidal": replace(LLAMA, positions="sinusoidal", activation="relu", gated=False, qkv_bias=True),
}
NAMES = tuple(CONFIGS)


@cache
def base(name: str) -> tuple[ModelConfig, Tree]:
    """A base model in which attention is sharp, logits are of order 1, no bias is 0 and no norm is 1."""
    config = CONFIGS[name]
    _, weights = describe(partial(Decoder, config))

    def value(path: str, weight: Weight) -> jax.Array:
        noise = jax.random.normal(_key(path), weight.shape)
        if len(weight.shape) == 1:
            return weight.make(KEY, jnp.float32) + 0.2 * noise
        # a tied embedding is small, or every token would predict itself
        embedding = 0.1 if config.tied_embeddings else 0.4
        return noise * (embedding if path == "embedding" else 1.2 * weight.shape[-1] ** -0.5)

    return config, map_weights(value, weights)


@cache
def untrained(name: str) -> tuple[ModelConfig, Tree]:
    """The same with a bank of four personas, at initialisation."""
    return add_personas(*base(name), SHAPE, KEY)


@cache
def trained(name: str) -> tuple[ModelConfig, Tree]:
    """The same with a bank in which nothing is zero."""
    return busy(*base(name))


def busy(config: ModelConfig, params: Tree) -> tuple[ModelConfig, Tree]:
    """A base model with a bank in which nothing is zero."""
    config, params = add_personas(config, params, SHAPE, KEY)

    def change(path: tuple[object, ...], x: jax.Array) -> jax.Array:
        return x + 0.2 * jax.random.normal(_key(path_name(path)), x.shape)

    return config, params | {BANK: jax.tree_util.tree_map_with_path(change, params[BANK])}


def _key(path: str) -> jax.Array:
    return jax.random.fold_in(KEY, sum(path.encode()) * 31 + len(path))


# --- what they are given -------------------------------------------------------------------------

PROMPT = 9  # tokens of a prompt: 2 of policy, 3 of history, 4 of input


def conversations(batch: int = 4, length: int = 16, seed: int = 0) -> Inputs:
    """Rows of one conversation each: policy, history, input, then a response."""
    tokens = np.random.default_rng(seed).integers(1, 64, (batch, length), np.int32)
    roles = np.repeat([Role.POLICY, Role.HISTORY, Role.INPUT, Role.RESPONSE], [2, 3, 4, length - PROMPT])
    shape = (batch, length)
    return Inputs(
        jnp.asarray(tokens),
        jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), shape),
        jnp.ones(shape, jnp.int32),
        jnp.broadcast_to(jnp.asarray(roles, jnp.int32), shape),
        packed=False,
    )


def responding(inputs: Inputs) -> np.ndarray:
    """Bool `[B, T]`: the positions that predict the response of `conversations`."""
    return np.asarray(inputs.positions) >= PROMPT - 1


def spoken(inputs: Inputs, w: np.ndarray, active: np.ndarray | None = None) -> Inputs:
    """The same with mixtures `[B, P]` on the positions `active` (default: all)."""
    return replace(inputs, mixture=gated_mixture(w, np.ones(inputs.tokens.shape, bool) if active is None else active))


def readable_roles(
    reads: np.ndarray, strict: np.ndarray, w: jax.Array | np.ndarray, active: jax.Array | np.ndarray
) -> jax.Array:
    """Returns bool `[B, T, R]`: the roles each token may read, AND-ed over the personas in its mixture.

    reads bool `[P, R]` and strict bool `[P]` are the personas' rules; w `[B, P]`, active `[B, T]`. A rule
    binds the positions where its persona acts; a strict one binds the prompt's as well.
    """
    present = jnp.asarray(w)[:, None, :] > 0
    bound = present & (jnp.asarray(active)[..., None] | jnp.asarray(strict)[None, None, :])
    return ~jnp.any(bound[..., None] & ~jnp.asarray(reads)[None, None], axis=2)


def one_hot(*personas: int) -> np.ndarray:
    """Mixtures `[B, P]` of one persona each; -1 is nobody."""
    return np.stack([np.arange(PERSONAS) == p for p in personas]).astype(np.float32)


def _normalise(weights: list[float]) -> list[float]:
    return [w / sum(weights) for w in weights]


# nobody, one persona, or any point of the simplex
mixture_rows = st.one_of(
    st.just([0.0] * PERSONAS),
    st.integers(0, PERSONAS - 1).map(lambda p: one_hot(p)[0].tolist()),
    st.lists(st.floats(0, 1), min_size=PERSONAS, max_size=PERSONAS).filter(lambda w: sum(w) > 1e-3).map(_normalise),
)
mixtures = st.lists(mixture_rows, min_size=4, max_size=4).map(lambda rows: np.array(rows, np.float32))


# --- how they are run ----------------------------------------------------------------------------


@cache
def program(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> Callable[[Tree, Inputs], jax.Array]:
    """The compiled model: weights and inputs to logits."""
    graphdef, _ = describe(partial(Decoder, config, dtype=dtype))

    @jax.jit
    def run(params: Tree, inputs: Inputs) -> jax.Array:
        out: jax.Array = merge(graphdef, params)(inputs)
        return out

    return run


def logits(config: ModelConfig, params: Tree, inputs: Inputs, dtype: DTypeLike = jnp.float32) -> np.ndarray:
    """Logits f32 `[B, T, V]`."""
    return np.asarray(program(config, jnp.dtype(dtype))(params, inputs))


def row(inputs: Inputs, at: int) -> Inputs:
    """One row of a batch, alone."""
    return jax.tree.map(lambda x: x[at : at + 1], inputs)
