"""The compiled programs of the engine: read a chunk of a prompt, fill a slot, make every slot's next tokens.

Their shapes are fixed when the engine is made, so that nothing is compiled once it is warm, and a row's bits do not
follow from its neighbours: one program makes the tokens of a slot, whoever else speaks.
"""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.inputs import Inputs, gated_mixture
from abi_jax.model.int8 import encode_weights
from abi_jax.model.matmul import coded_products
from abi_jax.model.pages import NOBODYS, PagedCache, Pages
from abi_jax.model.users import UserTerms
from abi_jax.model.weight import describe, is_weight, merge
from abi_jax.serve.engine.lookup import NO_LOOKUP, Lookup
from abi_jax.serve.engine.speak import Made, Turn, speak, told
from abi_jax.serve.engine.state import Slots, State
from abi_jax.text.roles import NUM_ROLES, Role

Weights = tuple[jax.Array, ...]


class Programs:
    """The programs over one model's structure.

    limit: tokens that a row may hold, at most the model's context. int8: over weights that are codes. lookup: how a
    step guesses. layout: the shardings of the state on `mesh`, which every program leaves it in: else the next one
    would compile again. None on one device.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: DTypeLike,
        limit: int,
        int8: bool = False,
        lookup: Lookup = NO_LOOKUP,
        layout: State | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.limit, self.lookup = limit, lookup
        self.config, self.dtype, self.int8 = config, jnp.dtype(dtype), int8
        self.graphdef, weights = describe(partial(Decoder, config, dtype=dtype))
        self._given: Any = jax.tree.structure(weights, is_leaf=is_weight)
        self._tree: Any = jax.tree.structure(encode_weights(weights) if int8 else weights, is_leaf=is_weight)
        pages = None if layout is None else layout.pages
        # what is read on the host is whole in every process
        whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
        made = partial(jax.jit, donate_argnums=1, compiler_options=coded_products() if int8 else None)
        self.read = made(self._read, out_shardings=(pages, whole))
        self.score = made(self._score, out_shardings=(pages, whole))
        self.insert = jax.jit(insert, donate_argnums=0, out_shardings=layout)
        self.decode = made(self._decode, out_shardings=(layout, whole))

    def flatten(self, params: Any) -> Weights:
        """Weights as the programs take them: a call flattens its arguments, and a tuple of arrays costs least."""
        assert jax.tree.structure(params) == self._given, "weights of another model"
        params = jax.tree.map(lambda x: x.astype(self.dtype), params)
        return tuple(jax.tree.leaves(encode_weights(params) if self.int8 else params))

    def _model(self, weights: Weights) -> Decoder:
        model: Decoder = merge(self.graphdef, jax.tree.unflatten(self._tree, weights))
        return model

    def _hidden(
        self,
        weights: Weights,
        pages: Pages,
        part: dict[str, jax.Array],
        mixture: jax.Array | None,
        reads: jax.Array | None,
    ) -> tuple[Decoder, Inputs, jax.Array, Pages]:
        model = self._model(weights)
        T = part["tokens"].shape[1]
        here = jnp.arange(T, dtype=jnp.int32)[None]
        segments = (here < part["count"]).astype(jnp.int32)
        inputs = Inputs(
            part["tokens"],
            part["start"] + here,
            segments,
            part["roles"],
            None if mixture is None else gated_mixture(mixture, segments > 0),
            None if reads is None else jnp.broadcast_to(reads[:, None], (1, T, NUM_ROLES)),
            packed=False,
        )
        h, cache = model.hidden(inputs, PagedCache(pages, part["table"], part["start"][None]))
        assert cache is not None
        return model, inputs, h, cache.pages

    def _read(
        self,
        weights: Weights,
        pages: Pages,
        part: dict[str, jax.Array],
        mixture: jax.Array | None,
        reads: jax.Array | None,
    ) -> tuple[Pages, jax.Array]:
        """Reads one chunk of one prompt into its pages; what comes with these is there once they are.

        part: tokens, roles int32 `[1, T]`, of which `count` are there, from the prompt's token `start`; table `[1, M]`.
        mixture f32 `[1, P]` and reads bool `[1, R]`: None for what the base model reads by itself.
        """
        return self._hidden(weights, pages, part, mixture, reads)[3], part["count"]

    def _score(
        self,
        weights: Weights,
        pages: Pages,
        part: dict[str, jax.Array],
        targets: jax.Array,
        mixture: jax.Array | None,
        reads: jax.Array | None,
    ) -> tuple[Pages, Made]:
        """As `_read`, and tells how likely each next token, `targets` int32 `[T]`, was."""
        model, inputs, h, pages = self._hidden(weights, pages, part, mixture, reads)
        logits = model.logits(h, inputs.mixture)[0]
        return pages, told(logits, targets, jnp.array(True))

    def _decode(self, weights: Weights, state: State, turn: Turn, users: UserTerms | None = None) -> tuple[State, Made]:
        """Makes one token or more for every slot that lives; `Made.tokens` is `ENDED` for the others.

        What is fed, a token that was made and the guesses after it, are rows of one token each, so that a token's bits
        do not follow from its place among them. users: a table of adaptations, by row.
        """
        model, s, T = self._model(weights), state.slots, self.lookup.count + 1
        live = s.live & turn.alive
        s = replace(s, live=live, lengths=jnp.where(live, s.lengths, 0))
        fed, count = self._fed(s, turn, state.pages.size)
        at = jnp.arange(T, dtype=jnp.int32)
        new = (at < count[:, None]).reshape(-1)
        positions = jnp.where(new, (s.lengths[:, None] + at).reshape(-1), 0)
        roles = jnp.where(at == 0, s.roles[:, None], Role.RESPONSE)

        def each(x: jax.Array) -> jax.Array:
            return jnp.repeat(x, T, axis=0)

        inputs = Inputs(
            fed.reshape(-1, 1),
            positions[:, None],
            new[:, None].astype(jnp.int32),
            roles.reshape(-1, 1),
            None if s.mixture is None else each(s.mixture)[:, None],
            each(s.reads)[:, None],
            None if users is None else jax.tree.map(lambda x: x[each(s.user)], users),
            packed=False,
        )
        # a row that has ended may have pages yet, and others may share them; a guess that is none has no place
        table = jnp.where(new[:, None], each(turn.table), NOBODYS)
        h, cache = model.hidden(inputs, PagedCache(state.pages, table, positions, T))
        assert cache is not None
        logits = model.logits(h, inputs.mixture)
        slots, made = speak(logits.reshape(*fed.shape, -1), fed, count, s, turn, self.limit)
        guessed = None if T == 1 else jnp.maximum(count - 1, 0)
        return State(cache.pages, slots), replace(made, guessed=guessed)

    def _fed(self, s: Slots, turn: Turn, page_size: int) -> tuple[jax.Array, jax.Array]:
        """The tokens to feed, int32 `[B, T]`, and how many, `[B]`: no guess is beyond a row's pages, or its context."""
        if s.known is None:
            return s.tokens[:, None], s.live.astype(jnp.int32)
        guesses, found = self.lookup.guess(s.known, s.lengths)
        # a grammar says what the next token may be, and no more
        wanted = jnp.where(found & ~turn.constrained, guesses.shape[1], 0)
        end = jnp.minimum(page_size * jnp.sum(turn.table != NOBODYS, axis=1, dtype=jnp.int32), self.limit - 1)
        count = 1 + jnp.clip(end - s.lengths - 1, 0, wanted)
        return jnp.concatenate([s.tokens[:, None], guesses], axis=1), jnp.where(s.live, count, 0)


@cache
def programs_on_one_device(
    config: ModelConfig, dtype: jnp.dtype, limit: int, int8: bool = False, lookup: Lookup = NO_LOOKUP
) -> Programs:
    """Engines of one model share what was compiled."""
    return Programs(config, dtype, limit, int8, lookup)


def insert(state: State, row: Slots, slot: jax.Array) -> State:
    """Puts one row `[1, ...]` into a slot."""

    def put(all_rows: jax.Array, one: jax.Array) -> jax.Array:
        at = [slot] + [jnp.int32(0)] * (all_rows.ndim - 1)
        return jax.lax.dynamic_update_slice(all_rows, one.astype(all_rows.dtype), at)

    return State(state.pages, jax.tree.map(put, state.slots, row))
