"""Prefill and decode: two compiled programs over one donated state.

The prompt is prefilled up to its last token, which becomes the first decode step's input. In response-only
mode that prefill runs the base program, so its keys and values serve every persona.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from abi_jax.errors import InputError
from abi_jax.model.bank import bounded
from abi_jax.model.cache import Cache, grow, new_cache
from abi_jax.model.config import ModelConfig
from abi_jax.model.decoder import Decoder
from abi_jax.model.inputs import Inputs, gated_mixture
from abi_jax.model.sampling import Sampling, SamplingConfig, sample, stack
from abi_jax.model.weight import describe, merge
from abi_jax.sharding.context import constrain, everywhere
from abi_jax.text.roles import NUM_ROLES, Role

ROOM = 256
BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True)
class Prompt:
    """One request: its tokens and roles (`[n]`, n >= 1), who answers and how.

    `mixture` f32 `[P]` or None for the base model; `reads` bool `[R]`: the roles the answer may read, and
    `prompt_reads` those that the prompt's own positions may. Without `response_only` the persona acts on these
    positions, too, and is bound there by `reads`.
    """

    tokens: np.ndarray
    roles: np.ndarray
    mixture: np.ndarray | None = None
    reads: np.ndarray | None = None
    prompt_reads: np.ndarray | None = None
    response_only: bool = True
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """All that a decode step reads and writes; donated to it.

    tokens, roles int32 `[B]`: the tokens to feed next, and what they are. mixture f32 `[B, P]`, reads bool
    `[B, R]`: None when no row has any. seen bool `[B, V]`. live bool `[B]`: rows still generating.
    """

    cache: Cache
    tokens: jax.Array
    roles: jax.Array
    mixture: jax.Array | None
    reads: jax.Array | None
    sampling: Sampling
    seen: jax.Array
    live: jax.Array


def bucket(n: int, limit: int) -> int:
    """Smallest bucket that holds `n`, at most `limit`."""
    return min(next((b for b in BUCKETS if b >= n), limit), limit)


class Generator:
    """Generates from one set of weights, on one device or sharded over the current mesh.

    `params` is the tree that `describe(lambda: Decoder(config))` describes. Steps compile once per batch size
    and cache bucket; `stop_ids` end a row.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        *,
        dtype: DTypeLike = jnp.float32,
        stop_ids: Sequence[int] = (),
        attention: str = "auto",
    ) -> None:
        config, params = bounded(config, params)
        self.config, self.dtype = config, jnp.dtype(dtype)
        self.graphdef, _ = describe(partial(Decoder, config, dtype=dtype, attention=attention))
        # flat, because a step flattens its arguments each time and a tuple of arrays costs least
        leaves, self._tree = jax.tree.flatten(params)
        self._weights = tuple(x.astype(self.dtype) for x in leaves)
        self.stop_ids = jnp.asarray(sorted(set(stop_ids)) or [-1], jnp.int32)
        self._prefill = jax.jit(self._prefill_program, static_argnames="size")
        self._step = jax.jit(self._step_program, donate_argnums=1)
        self._grow = jax.jit(grow, static_argnums=1)

    def start(self, prompts: Sequence[Prompt], room: int = ROOM) -> DecodeState:
        """Prefills a batch of prompts; the state's next step makes their first tokens.

        The cache has `room` for at least that many of them before it must grow.
        """
        for prompt in prompts:
            if not 1 <= len(prompt.tokens) < self.config.max_length:
                raise InputError(
                    f"prompt of {len(prompt.tokens)} tokens does not fit: the model's context is "
                    f"{self.config.max_length} tokens, and an answer needs at least one of them"
                )
            unknown = prompt.tokens[(prompt.tokens < 0) | (prompt.tokens >= self.config.vocab_size)]
            if unknown.size:
                raise InputError(f"token id {unknown[0]} is outside the model's vocabulary of {self.config.vocab_size}")
        batch, longest = len(prompts), max(len(p.tokens) for p in prompts)
        width = bucket(max(longest - 1, 1), self.config.max_length)
        tokens = np.zeros((batch, width), np.int32)
        roles, segments = np.zeros_like(tokens), np.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            n = len(prompt.tokens) - 1
            tokens[row, :n], roles[row, :n], segments[row, :n] = prompt.tokens[:-1], prompt.roles[:-1], 1
        mixture, reads = _mixtures(prompts), _reads([p.reads for p in prompts])
        whole = np.array([not p.response_only for p in prompts])
        prefill_mixture = None if mixture is None or not whole.any() else mixture * whole[:, None]
        prefill_reads = _reads([p.prompt_reads if p.response_only else p.reads for p in prompts])
        cache = self._prefill(
            self._weights,
            tokens,
            roles,
            segments,
            prefill_mixture,
            prefill_reads,
            size=bucket(longest + room, self.config.max_length),
        )
        seen = np.zeros((batch, self.config.vocab_size), bool)
        for row, prompt in enumerate(prompts):
            seen[row, prompt.tokens] = True
        rows = {
            "tokens": np.array([p.tokens[-1] for p in prompts], np.int32),
            "roles": np.array([p.roles[-1] for p in prompts], np.int32),
            "mixture": mixture,
            "reads": reads,
            "sampling": stack([p.sampling for p in prompts]),
            "seen": seen,
            "live": np.ones(batch, bool),
        }
        # beside weights that were put somewhere, as later states will be: else the step would compile once more
        weight = self._weights[0]
        placed = isinstance(weight, jax.Array) and weight.committed
        return DecodeState(cache=cache, **jax.device_put(rows, everywhere(weight) if placed else None))

    def step(self, state: DecodeState) -> tuple[DecodeState, jax.Array]:
        """Makes one token for every row; returns the next state and int32 tokens `[B]`, -1 for ended rows.

        `state` is consumed: its buffers are donated. A row that has filled the cache ends, so that nothing in it
        is overwritten; `stream` makes the cache larger in time.
        """
        return self._step(self._weights, state)

    def stream(self, prompts: Sequence[Prompt], max_tokens: int) -> Iterator[np.ndarray]:
        """Yields int32 tokens `[B]`, step by step; -1 for rows that have ended (the stop token is not yielded).

        The next step is dispatched before the last one's tokens are read. Ends early when every row has, or
        when all rows fill the context.
        """
        state = self.start(prompts, min(max_tokens, ROOM))
        length = max(len(p.tokens) for p in prompts)
        steps = min(max_tokens, self.config.max_length - min(len(p.tokens) for p in prompts))
        pending: jax.Array | None = None
        for _ in range(steps):
            if state.cache.size < min(length, self.config.max_length):
                bigger = bucket(state.cache.size + 1, self.config.max_length)
                state = replace(state, cache=self._grow(state.cache, bigger))
            state, tokens = self.step(state)
            length += 1
            if pending is not None:
                ready = np.asarray(pending)
                if (ready < 0).all():
                    return
                yield ready
            pending = tokens
        if pending is not None and not (np.asarray(pending) < 0).all():
            yield np.asarray(pending)

    def generate(self, prompts: Sequence[Prompt], max_tokens: int) -> list[list[int]]:
        """Returns the generated token ids of every prompt."""
        rows: list[list[int]] = [[] for _ in prompts]
        for tokens in self.stream(prompts, max_tokens):
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if token >= 0:
                    row.append(token)
        return rows

    def _prefill_program(
        self,
        weights: tuple[jax.Array, ...],
        tokens: jax.Array,
        roles: jax.Array,
        segments: jax.Array,
        mixture: jax.Array | None,
        reads: jax.Array | None,
        *,
        size: int,
    ) -> Cache:
        model = merge(self.graphdef, jax.tree.unflatten(self._tree, weights))
        B, T = tokens.shape
        cache = place(new_cache(self.config, B, max(size, T), self.dtype))
        inputs = Inputs(
            tokens,
            jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)),
            segments,
            roles,
            None if mixture is None else gated_mixture(mixture, segments > 0),
            None if reads is None else jnp.broadcast_to(reads[:, None], (B, T, NUM_ROLES)),
            packed=False,
        )
        return place(model.hidden(inputs, cache, fresh=True)[1])

    def _step_program(self, weights: tuple[jax.Array, ...], state: DecodeState) -> tuple[DecodeState, jax.Array]:
        model = merge(self.graphdef, jax.tree.unflatten(self._tree, weights))
        cache = state.cache
        live = state.live & (cache.lengths < cache.size)
        positions = cache.lengths
        inputs = Inputs(
            state.tokens[:, None],
            positions[:, None],
            live[:, None].astype(jnp.int32),
            state.roles[:, None],
            None if state.mixture is None else state.mixture[:, None],
            None if state.reads is None else state.reads[:, None],
            packed=False,
        )
        h, cache = model.hidden(inputs, cache)
        logits = model.logits(h, inputs.mixture)[:, 0]
        tokens = sample(logits, state.sampling, state.seen, positions + 1)
        live &= ~jnp.any(tokens[:, None] == self.stop_ids[None], axis=1)
        seen = state.seen.at[jnp.arange(tokens.shape[0]), tokens].set(True)
        out = constrain(jnp.where(live, tokens, -1), (None,))  # whole on every process
        live &= cache.lengths < self.config.max_length - 1  # a full row has said its last token
        roles = jnp.broadcast_to(jnp.array(Role.RESPONSE, jnp.int32), tokens.shape)
        return replace(state, cache=place(cache), tokens=tokens, roles=roles, seen=seen, live=live), out


def place(cache: Cache) -> Cache:
    """Shards a cache over the current mesh: rows by data, heads by tensor."""
    axes = ("batch", "kv_heads", None, None)
    return replace(
        cache,
        keys=tuple(constrain(x, axes) for x in cache.keys),
        values=tuple(constrain(x, axes) for x in cache.values),
    )


def _mixtures(prompts: Sequence[Prompt]) -> np.ndarray | None:
    rows = [p.mixture for p in prompts]
    width = next((len(r) for r in rows if r is not None), None)
    if width is None:
        return None
    return np.stack([np.zeros(width, np.float32) if r is None else np.asarray(r, np.float32) for r in rows])


def _reads(rows: Sequence[np.ndarray | None]) -> np.ndarray | None:
    if all(r is None or np.all(r) for r in rows):
        return None
    return np.stack([np.ones(NUM_ROLES, bool) if r is None else np.asarray(r, bool) for r in rows])
