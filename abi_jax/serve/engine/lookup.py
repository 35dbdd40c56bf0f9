"""Guesses of an answer's next tokens: what followed where its last tokens came before (arXiv:2304.04487).

    prompt   def add(a, b): return a + b ... rename add to plus:
    answer   def plus(a, b):
    guess            found in the prompt: "(a, b):", so that "return a + b" is likely to follow

An answer that repeats its prompt, or itself, is guessed well; a guess is a token like any other once the model has made
the same one in its place. All of it is done on the device, so that a step need not wait for the host to read the last.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Lookup:
    """count: tokens to guess at a time, 0 for none. shortest, longest: last tokens that must have come before."""

    count: int = 0
    shortest: int = 1
    longest: int = 3

    def guess(self, known: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Guesses int32 `[B, count]`, and whether there are any, bool `[B]`.

        known int32 `[B, S]`: all tokens of a row, the last of them at `last` int32 `[B]`. The longest run of last
        tokens that came before counts, and of several places the latest. Where what followed there is shorter than
        `count`, it is guessed to come again and again.
        """
        S = known.shape[1]
        here = jnp.arange(S, dtype=jnp.int32)
        same, length = here < last[:, None], jnp.zeros(known.shape, jnp.int32)
        for back in range(self.longest):
            # a place with fewer tokens before it than are looked for has -1 there, which no token is
            before = jnp.pad(known, ((0, 0), (back, 0)), constant_values=-1)[:, :S]
            same &= before == jnp.take_along_axis(known, jnp.maximum(last - back, 0)[:, None], axis=1)
            length += same
        best = jnp.max(jnp.where(length >= self.shortest, length * S + here, -1), axis=1)
        period = last - best % S
        ahead = jnp.arange(self.count, dtype=jnp.int32) % jnp.maximum(period, 1)[:, None]
        guesses = jnp.take_along_axis(known, jnp.minimum((best % S + 1)[:, None] + ahead, S - 1), axis=1)
        return guesses, best >= 0


NO_LOOKUP = Lookup()
