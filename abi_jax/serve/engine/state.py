"""What a decode step reads and writes, and what one slot of it is given when a job begins to speak."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from abi_jax.model.config import ModelConfig
from abi_jax.model.pages import Pages, new_pages
from abi_jax.model.sampling import Sampling, SamplingConfig, stack
from abi_jax.serve.engine.seam import Job
from abi_jax.text.roles import NUM_ROLES

_DRAWN = {"top_k": np.int32, "seed": np.uint32}  # all else of `Sampling` is f32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """One row a slot; donated to each step.

    tokens, roles, lengths int32 `[B]`: the token to feed next, what it is, and how many the row holds. live bool `[B]`.
    mixture f32 `[B, P]`, None without a bank; reads bool `[B, R]`. seen bool, counts int32, bias f32 `[B, V]`: tokens
    the row holds, how often each was generated, and what is added to their logits. frequency, presence f32 `[B]`;
    ignore_eos, told bool `[B]`: `told` rows want log-probabilities. user int32 `[B]`: rows of the users' table.
    known int32 `[B, S]`: the tokens of a row by position, `tokens` the last of them, None where nothing is guessed.
    """

    tokens: jax.Array
    roles: jax.Array
    lengths: jax.Array
    live: jax.Array
    mixture: jax.Array | None
    reads: jax.Array
    sampling: Sampling
    seen: jax.Array
    counts: jax.Array
    bias: jax.Array
    frequency: jax.Array
    presence: jax.Array
    ignore_eos: jax.Array
    told: jax.Array
    user: jax.Array
    known: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """All that changes: the pages and the slots."""

    pages: Pages
    slots: Slots


def new_state(
    config: ModelConfig, slots: int, pages: int, page_size: int, dtype: DTypeLike, known: int | None = None
) -> State:
    """Empty slots and pages, heads laid out over the current mesh. known: tokens of a row to keep, as `Slots.known`."""
    B, V = slots, config.vocab_size
    zeros = jnp.zeros(B, jnp.int32)
    return State(
        new_pages(config, pages, page_size, dtype),
        Slots(
            tokens=zeros,
            roles=zeros,
            lengths=zeros,
            live=jnp.zeros(B, bool),
            mixture=None if config.persona is None else jnp.zeros((B, config.persona.capacity), jnp.float32),
            reads=jnp.ones((B, NUM_ROLES), bool),
            sampling=stack([SamplingConfig()] * B),
            seen=jnp.zeros((B, V), bool),
            counts=jnp.zeros((B, V), jnp.int32),
            bias=jnp.zeros((B, V), jnp.float32),
            frequency=jnp.zeros(B, jnp.float32),
            presence=jnp.zeros(B, jnp.float32),
            ignore_eos=jnp.zeros(B, bool),
            told=jnp.zeros(B, bool),
            user=zeros,
            known=None if known is None else jnp.zeros((B, known), jnp.int32),
        ),
    )


def row_of(job: Job, config: ModelConfig, user: int = 0, known: int | None = None) -> Slots:
    """The slot of a job whose prompt was read but for its last token: `Slots` of one row, on the host.

    known: as in `new_state`.
    """
    prompt, V = job.prompt, config.vocab_size
    seen, bias = np.zeros((1, V), bool), np.zeros((1, V), np.float32)
    seen[0, prompt.tokens] = True
    for token, value in job.logit_bias.items():
        bias[0, token] = value
    mixture = None
    if config.persona is not None:
        mixture = np.zeros((1, config.persona.capacity), np.float32)
        if prompt.mixture is not None:
            mixture[0] = prompt.mixture
    reads = np.ones(NUM_ROLES, bool) if prompt.reads is None else np.asarray(prompt.reads, bool)
    arrays: dict[str, Any] = {
        "tokens": np.asarray(prompt.tokens[-1:], np.int32),
        "roles": np.asarray(prompt.roles[-1:], np.int32),
        "lengths": np.array([len(prompt.tokens) - 1], np.int32),
        "live": np.ones(1, bool),
        "mixture": mixture,
        "reads": reads[None],
        "seen": seen,
        "counts": np.zeros((1, V), np.int32),
        "bias": bias,
        "frequency": np.array([job.frequency_penalty], np.float32),
        "presence": np.array([job.presence_penalty], np.float32),
        "ignore_eos": np.array([job.ignore_eos]),
        "told": np.array([job.logprobs is not None]),
        "user": np.array([user], np.int32),
        "known": None if known is None else np.zeros((1, known), np.int32),
    }
    if known is not None:
        arrays["known"][0, : len(prompt.tokens)] = prompt.tokens
    drawn = prompt.sampling
    settings: dict[str, Any] = {
        name: np.array([getattr(drawn, name)], _DRAWN.get(name, np.float32)) for name in Sampling.__dataclass_fields__
    }
    return Slots(sampling=Sampling(**settings), **arrays)
