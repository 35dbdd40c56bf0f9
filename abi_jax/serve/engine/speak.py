"""From the logits of a step to what each slot says: tokens, and how likely they were.

fed       the   cat   sat          the token that was not fed yet, then guesses
logits     |     |     |
said      cat   sat    on          each drawn in its turn, as if the step had been of one token
            =     =                a guess that was said counts, and so does what comes after it
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from abi_jax.model.sampling import sample
from abi_jax.serve.engine.seam import ENDED, MAX_LOGPROBS, NONE
from abi_jax.serve.engine.state import Slots
from abi_jax.text.roles import Role


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Made:
    """Tokens int32 `[...]`, their log-probabilities f32 `[...]`, the likeliest ids int32 and theirs f32 `[..., top]`.

    What is not a token is zero where nobody wants it. guessed int32 `[B]`: see `seam.Step`.
    """

    tokens: jax.Array
    logprobs: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array
    guessed: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Turn:
    """What the host says of a step: table int32 `[B, M]`; alive bool `[B]`: slots with a job; masks: see `Grammar`.

    constrained bool `[B]`: slots with a grammar, for which `masks` int32 `[B, ceil(V / 32)]` is to be looked at.
    stop_ids int32 `[n]`: tokens that end an answer.
    """

    table: jax.Array
    alive: jax.Array
    constrained: jax.Array
    masks: jax.Array
    stop_ids: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Said:
    """What was said after `at` tokens: slots as they are then, and which of them, bool `[B]`, have logits of a next."""

    at: jax.Array
    speaking: jax.Array
    slots: Slots
    made: Made


def speak(
    logits: jax.Array, fed: jax.Array, count: jax.Array, slots: Slots, turn: Turn, limit: int
) -> tuple[Slots, Made]:
    """Draws from logits f32 `[B, T, V]` of the tokens `fed` int32 `[B, T]`, of which there are `count` int32 `[B]`.

    A token is drawn as in a step of its own, all before it said. Nobody holds more than `limit` tokens.
    """
    B, T, V = logits.shape
    rows, top = jnp.arange(B), min(MAX_LOGPROBS, V)

    def say(said: _Said) -> _Said:
        at, speaking, s = said.at, said.speaking, said.slots
        x = jax.lax.dynamic_index_in_dim(logits, at, axis=1, keepdims=False)
        tokens = sample(_allowed(_penalized(x, s), turn), s.sampling, s.seen, s.lengths + 1)
        one = told(x, tokens, jnp.any(s.told & speaking))
        ends = ~s.ignore_eos & jnp.any(tokens[:, None] == turn.stop_ids[None], axis=1)
        one = replace(one, tokens=jnp.where(speaking, jnp.where(ends, ENDED, tokens), NONE))
        lengths, known = s.lengths + speaking, s.known
        if known is not None:
            known = known.at[rows, jnp.where(speaking, lengths, known.shape[1])].set(tokens, mode="drop")
        s = replace(
            s,
            tokens=jnp.where(speaking, tokens, s.tokens),
            lengths=lengths,
            live=s.live & ~(speaking & ends),
            seen=s.seen.at[rows, tokens].max(speaking),
            counts=s.counts.at[rows, tokens].add(speaking.astype(jnp.int32)),
            known=known,
        )
        following = jax.lax.dynamic_index_in_dim(fed, jnp.minimum(at + 1, T - 1), axis=1, keepdims=False)
        speaking &= ~ends & (at + 1 < count) & (tokens == following)
        return _Said(at + 1, speaking, s, jax.tree.map(lambda all_, y: all_.at[:, at].set(y), said.made, one))

    nothing = jnp.full((B, T), NONE, jnp.int32).at[:, 0].set(ENDED)
    made = Made(nothing, jnp.zeros((B, T)), jnp.zeros((B, T, top), jnp.int32), jnp.zeros((B, T, top)))
    # an enum would make a weakly typed array, for which the next step would be compiled anew
    slots = replace(slots, roles=jnp.full(B, int(Role.RESPONSE), jnp.int32))
    said = _Said(jnp.int32(0), count > 0, slots, made)
    said = say(said) if T == 1 else jax.lax.while_loop(lambda x: (x.at < T) & jnp.any(x.speaking), say, said)
    s, made = said.slots, said.made
    made = replace(made, tokens=jnp.where(count[:, None] > 0, made.tokens, nothing))
    return replace(s, live=s.live & (s.lengths < limit - 1)), made


def _penalized(logits: jax.Array, s: Slots) -> jax.Array:
    """Subtracts OpenAI's penalties and adds the biases, `logits` f32 `[B, V]`; a row without any keeps its bits."""

    def change(logits: jax.Array) -> jax.Array:
        counts = s.counts.astype(jnp.float32)
        taken = counts * s.frequency[:, None] + (counts > 0) * s.presence[:, None]
        return logits - taken + s.bias

    wanted = jnp.any(s.live & ((s.frequency != 0) | (s.presence != 0) | jnp.any(s.bias != 0, axis=1)))
    return jax.lax.cond(wanted, change, lambda x: x, logits)


def _allowed(logits: jax.Array, turn: Turn) -> jax.Array:
    """Sets the logits of tokens that a grammar forbids to -inf."""
    V = logits.shape[-1]

    def forbid(logits: jax.Array) -> jax.Array:
        bits = (turn.masks[:, :, None] >> jnp.arange(32, dtype=jnp.int32)) & 1
        return jnp.where(bits.reshape(len(bits), -1)[:, :V] > 0, logits, -jnp.inf)

    return jax.lax.cond(jnp.any(turn.constrained), forbid, lambda x: x, logits)


def told(logits: jax.Array, tokens: jax.Array, wanted: jax.Array) -> Made:
    """How likely `tokens` `[n]` were by `logits` f32 `[n, V]`, and what was likeliest."""
    n, top = len(tokens), min(MAX_LOGPROBS, logits.shape[-1])

    def tell(logits: jax.Array) -> tuple[jax.Array, ...]:
        logprobs = jax.nn.log_softmax(logits, axis=-1)
        values, ids = jax.lax.top_k(logprobs, top)
        return jnp.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0], ids, values

    def nothing(logits: jax.Array) -> tuple[jax.Array, ...]:
        return jnp.zeros(n), jnp.zeros((n, top), jnp.int32), jnp.zeros((n, top))

    return Made(tokens, *jax.lax.cond(wanted, tell, nothing, logits))
