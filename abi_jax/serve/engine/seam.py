"""What the scheduler asks of an engine: `begin`, `prefill`, `insert`, `decode`, `release`.

    work = engine.begin(job)          pages are reserved; None while there are too few
    while not engine.prefill(work):   one chunk of the prompt at a time, decode steps in between
        ...
    engine.insert(work, slot)         the slot's next decode step makes the first token
    step = engine.decode().read()     one token or more for every slot; dispatched before the last one is read
    engine.release(work)              at any time after `begin`: done, cancelled, failed

An engine is used by one thread. Every call but `read` returns before the device has done what it asks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from abi_jax.errors import InputError
from abi_jax.model.generate import Prompt

ENDED = -1  # stands for a token where an answer is over, or a slot has none
NONE = -2  # and where a step made no more for a slot


class Grammar(Protocol):
    """What the next token may be, one object an answer. source: what makes it anew, at its beginning."""

    source: str

    @property
    def failed(self) -> str | None:
        """Why nobody can say any more what may come next; None while that is known."""

    def mask(self) -> np.ndarray:
        """Bits of the tokens that may come next, int32 `[ceil(V / 32)]`, the lowest bit first."""

    def accept(self, token: int) -> None:
        """Goes on by one token."""


@dataclass(frozen=True)
class Job:
    """One generation, as tokens.

    prompt: what was said, who answers and how it is drawn. frequency_penalty and presence_penalty are OpenAI's,
    of the tokens generated so far; logit_bias: token id -> what is added to its logit. ignore_eos: end tokens do
    not end it. logprobs: how many alternatives to tell with each token's log-probability, None for neither;
    prompt_logprobs: the same for the prompt's own tokens (their keys and values are then computed anew).
    scope: prompts share cached prefixes within one scope only. user: whose own adaptation speaks, if there is one.
    """

    prompt: Prompt
    max_tokens: int
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    scope: bytes = b""
    user: str = ""


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities of one position: of the token that stands there, and of the likeliest, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """What a decode step made, by slot: tokens int32 `[B, T]`, from one to T a slot, then `ENDED` or `NONE`.

    guessed int32 `[B]`: how many were guessed; all tokens but the first of a slot are guesses that came true. None
    where nothing is guessed. logprobs f32 `[B, T]`, top_ids int32 and top_logprobs f32 `[B, T, MAX_LOGPROBS]`: None
    where no slot asked for them.
    """

    tokens: np.ndarray
    guessed: np.ndarray | None = None
    logprobs: np.ndarray | None = None
    top_ids: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None

    def of(self, slot: int, at: int, count: int) -> TokenLogprobs | None:
        """The log-probabilities of a slot's token number `at` of this step, with `count` alternatives."""
        if self.logprobs is None or self.top_ids is None or self.top_logprobs is None:
            return None
        ids, values = self.top_ids[slot, at, :count].tolist(), self.top_logprobs[slot, at, :count].tolist()
        return TokenLogprobs(float(self.logprobs[slot, at]), tuple(zip(ids, values, strict=True)))


MAX_LOGPROBS = 20  # alternatives with each token, OpenAI's most


class Work(Protocol):
    """A job on its way through an engine."""

    @property
    def cached_tokens(self) -> int:
        """How many of the prompt's tokens were found in the prefix cache."""

    @property
    def adaptation(self) -> str | None:
        """The digest of the adaptation of the job's user, None where there is none."""

    @property
    def prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        """Of every prompt token, None for the first, where the job asked for them; None before the prefill is over."""


class Pending(Protocol):
    """A decode step that was dispatched."""

    def read(self) -> Step:
        """Waits for the step."""


W = TypeVar("W")  # what an engine makes of a job: a `Work` of its own


class NoRow:
    """Instead of a work: all rows of users' adaptations are in use. Jobs of others may begin before this one."""


NO_ROW = NoRow()


@dataclass(frozen=True)
class Usage:
    """Pages of the key-value cache: how many there are, are held by jobs, and are kept for prompts to come."""

    pages: int
    used: int
    cached: int


class Engine(Protocol[W]):
    """See the module."""

    slots: int
    max_length: int
    vocab_size: int

    def check(self, job: Job) -> None:
        """Raises `InputError` for a job that it can never do; any thread may ask."""

    def begin(self, job: Job) -> W | NoRow | None:
        """Takes a job that passes `check` on, or returns None while there is no room for it, `NO_ROW` for its user.

        `InputError` for one that turns out to be impossible: nothing of it is kept then.
        """

    def prefill(self, work: W) -> bool:
        """Reads one more chunk of the prompt; True when all of it is read."""

    def insert(self, work: W, slot: int) -> None:
        """Puts a job whose prompt is read into a free slot."""

    def decode(self) -> Pending:
        """Makes the next tokens of every slot, at least one."""

    def release(self, work: W) -> None:
        """Frees the job's slot, if it has one, and its pages."""

    def usage(self) -> Usage:
        """How full the cache is."""


def check_sizes(job: Job, max_length: int, vocab_size: int) -> None:
    """Raises `InputError` for a job that no engine of these sizes can do."""
    tokens = job.prompt.tokens
    if not 1 <= len(tokens) < max_length:
        raise InputError(
            f"prompt of {len(tokens)} tokens does not fit: the model's context is {max_length} tokens, "
            f"and an answer needs at least one of them"
        )
    named = np.concatenate([tokens, np.fromiter(job.logit_bias, np.int64, len(job.logit_bias))])
    outside = named[(named < 0) | (named >= vocab_size)]
    if len(outside):
        raise InputError(f"token id {outside[0]} is outside the model's vocabulary of {vocab_size}")
    if job.max_tokens < 1 and job.prompt_logprobs is None:
        raise InputError(f"max_tokens = {job.max_tokens}; expected at least 1")
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(job, name)
        if count is not None and not 0 <= count <= MAX_LOGPROBS:
            raise InputError(f"{name} = {count}; expected 0 to {MAX_LOGPROBS}")
    for name in ("frequency_penalty", "presence_penalty"):
        value = getattr(job, name)
        if not -2 <= value <= 2:
            raise InputError(f"{name} = {value}; expected a number from -2 to 2")
    for token, bias in job.logit_bias.items():
        if not -100 <= bias <= 100:
            raise InputError(f"logit_bias of token {token} is {bias}; expected a number from -100 to 100")
