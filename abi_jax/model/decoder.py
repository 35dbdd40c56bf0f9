"""The decoder: embeddings, blocks, LM head, with the persona terms of `model/persona.py` in their places."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from abi_jax.model.attention_terms import Sight
from abi_jax.model.blocks import Block
from abi_jax.model.cache import Cache, after
from abi_jax.model.config import ModelConfig
from abi_jax.model.inputs import Inputs
from abi_jax.model.int8 import look_up
from abi_jax.model.layers import Linear, make_norm, rope_angles, settle, sinusoids
from abi_jax.model.matmul import project
from abi_jax.model.pages import PagedCache
from abi_jax.model.persona import LayerTerms, PersonaBank
from abi_jax.model.weight import param
from abi_jax.sharding.context import constrain

Remat = Literal["none", "dots", "full"]
AnyCache = TypeVar("AnyCache", Cache, PagedCache)


class Decoder(nnx.Module):
    """A decoder-only Transformer that speaks as several personas.

    Built of `Weight` descriptions (see `model/weight.py`): build once, split, and call the merged module
    inside `jax.jit`. `dtype` is that of the activations; weights are cast to it where they are used.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        attention: str = "auto",
        remat: Remat = "none",
    ) -> None:
        self.config, self.dtype, self.remat = config, jnp.dtype(dtype), remat
        c = config
        self.embedding = param((c.vocab_size, c.d_model), ("vocab", "embed"))
        self.positions = param((c.max_length, c.d_model), ("position", "embed")) if c.positions == "learned" else None
        self.layers = nnx.List([Block(c, i, attention) for i in range(c.num_layers)])
        self.norm = make_norm(c)
        self.head = None if c.tied_embeddings else Linear(c.d_model, c.vocab_size, ("vocab", "embed"))
        self.persona = PersonaBank(c, c.persona) if c.persona else None

    def embed(self, inputs: Inputs) -> jax.Array:
        """Base embeddings `[B, T, D]`: tokens, scaled, plus positions where the model adds them."""
        c = self.config
        x = look_up(self.embedding.get_value(), inputs.tokens)
        x = constrain(x, ("batch", "length", None)).astype(self.dtype)
        if c.embed_scale is not None:
            x = x * jnp.asarray(c.embed_scale, self.dtype)
        if self.positions is not None:
            x = x + self.positions.get_value()[inputs.positions].astype(self.dtype)
        elif c.positions == "sinusoidal":
            x = x + jnp.asarray(sinusoids(c.max_length, c.d_model), self.dtype)[inputs.positions]
        # scaled or summed, it must come out the same bits with and without a persona term added to it
        return x if c.embed_scale is None and c.positions in ("rope", "none") else settle(x)

    def hidden(
        self, inputs: Inputs, cache: AnyCache | None = None, *, fresh: bool = False
    ) -> tuple[jax.Array, AnyCache | None]:
        """Runs all blocks: hidden states `[B, T, D]` after the last norm, and the cache with the new tokens.

        With a cache, row `b` continues at `cache.lengths[b]`, and tokens of segment 0 at the end of a row
        are not counted. `fresh` says that the cache is empty, so that a prefill attends to its own tokens only.
        """
        base = self.embed(inputs)
        bank, w, user = self.persona, inputs.mixture, inputs.user
        features = None
        if bank is not None and bank.key_features is not None and (w is not None or cache is not None):
            features = bank.key_features(base, inputs.roles, inputs.positions)
        x = base
        if bank is not None and bank.injection is not None and w is not None:
            x = bank.injection(base, w, None if user is None else user.embedding)
        own = None if user is None else user.cores
        terms = [LayerTerms()] * len(self.layers) if bank is None or w is None else bank.layers(w, inputs.roles, own)
        x = constrain(x, ("batch", "length", None))
        angles = rope_angles(self.config, inputs.positions) if self.config.positions == "rope" else None
        sight = self._sight(inputs)
        kept = []
        for i, block in enumerate(self.layers):
            if cache is None:
                x = self._remat(block)(x, inputs, angles, sight, terms[i], features)
                continue
            past = None if fresh else cache.past(i, sight, marks=w is not None)
            x, new = block(x, inputs, angles, sight, terms[i], features, past)
            kept.append(new)
        if cache is not None:
            added = jnp.sum(inputs.segments > 0, axis=1, dtype=jnp.int32)
            starts = jnp.zeros_like(cache.lengths) if fresh else after(cache.lengths, x)
            cache = cache.extended(kept, inputs.roles, features, starts, cache.lengths + added)
        return self.norm(x), cache

    def _sight(self, inputs: Inputs) -> Sight:
        """What the tokens see of each other."""
        readable = inputs.readable
        if readable is not None:
            # a token reads its own role, so that none is left with nothing to attend to
            readable |= jax.nn.one_hot(inputs.roles, readable.shape[-1], dtype=bool)
        positions, segments = inputs.positions, inputs.segments
        roles = None if readable is None else inputs.roles
        return Sight(positions, positions, segments, segments, roles, readable, aligned=True, packed=inputs.packed)

    def _remat(self, block: Block) -> Callable[..., jax.Array]:
        def run(params: nnx.State, *args: Any) -> jax.Array:
            module: Any = nnx.merge(graphdef, params)
            out: jax.Array = module(*args)[0]
            return out

        graphdef, params = nnx.split(block)
        if self.remat == "none":
            return partial(run, params)
        keep_dots = jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims
        policy = keep_dots if self.remat == "dots" else jax.checkpoint_policies.nothing_saveable
        return partial(jax.checkpoint(run, policy=policy), params)

    def logits(self, h: jax.Array, mixture: jax.Array | None = None) -> jax.Array:
        """From hidden states `[B, T, D]` and mixture `[B, T, P]` to f32 logits `[B, T, V]`."""
        if self.persona is not None and self.persona.heads is not None and mixture is not None:
            h = self.persona.heads(h, mixture)
        if self.head is not None:
            y = self.head(h)
        else:
            y = project(h, self.embedding.get_value())
        if self.persona is not None and mixture is not None:
            y = self.persona.logits(y, h, mixture)
        y = y.astype(jnp.float32)
        cap = self.config.logit_softcap
        return y if cap is None else cap * jnp.tanh(y / cap)

    def __call__(self, inputs: Inputs) -> jax.Array:
        """Logits f32 `[B, T, V]` of whole rows, without a cache."""
        return self.logits(self.hidden(inputs)[0], inputs.mixture)
