"""Which job is read, which speaks, and what each said: continuous batching over an engine.

First come, first served; only who waits for its user's adaptation, which others may speak with for long, is passed by
others, a few times. While slots speak, one chunk of a waiting prompt is read between two decode steps, so that
a long prompt delays nobody by more than a chunk. A decode step is dispatched before the last one is read, unless a
slot has a grammar, which must see a token before the next can be chosen. A step makes one token or more for each slot;
those beyond the length that was asked for are told to nobody.
"""

import logging
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Literal

from abi_jax.errors import InputError
from abi_jax.serve.engine.seam import ENDED, NONE, Engine, Job, NoRow, Pending, Step, TokenLogprobs, Work

LOG = logging.getLogger("abi_jax.serve")
PASSES = 32  # how often, so that nobody waits for ever
Reason = Literal["stop", "length", "cancelled", "error", "form"]


@dataclass(frozen=True, slots=True)
class PromptRead:
    """The first token comes next. cached_tokens: of the prompt's, those found in the prefix cache.

    adaptation: the digest of the user's own, with which the answer is spoken.
    """

    cached_tokens: int
    prompt_logprobs: list[TokenLogprobs | None] | None
    adaptation: str | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """One more token."""

    id: int
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more comes. `error` says what went wrong, with the engine or with the form of the answer."""

    reason: Reason
    error: str = ""


Event = PromptRead | Token | Ended


@dataclass(eq=False, slots=True)
class Ticket:
    """A job in the scheduler's hands. Times are `time.monotonic` seconds, None where it has not come to that.

    whose: with whom it shares places of the queue; empty for nobody. passed: how many that came later have begun
    before it.
    guessed, accepted: tokens that steps guessed of it, and how many of those it is made of.
    """

    job: Job
    whose: str = ""
    arrived: float = field(default_factory=monotonic)
    begun: float | None = None
    read: float | None = None
    ended: float | None = None
    produced: int = 0
    passed: int = 0
    guessed: int = 0
    accepted: int = 0
    work: Work | None = None
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How many jobs wait, have their prompt read, and speak; and how many wait by whose they are."""

    waiting: int
    reading: int
    speaking: int
    shares: Mapping[str, int] = field(default_factory=dict)


class Scheduler:
    """Jobs in, events out; one thread calls it."""

    def __init__(self, engine: Engine[Any]) -> None:
        self.engine = engine
        self.paused = False  # while set, nobody who waits is taken on
        self._waiting: deque[Ticket] = deque()
        self._shares: Counter[str] = Counter()
        self._reading: deque[Ticket] = deque()
        self._speaking: dict[int, Ticket] = {}
        self._free = list(range(engine.slots))[::-1]
        self._pending: tuple[Pending, dict[int, Ticket]] | None = None
        self._events: list[tuple[Ticket, Event]] = []

    def load(self) -> Load:
        """What there is to do."""
        return Load(len(self._waiting), len(self._reading), len(self._speaking), dict(self._shares))

    @property
    def idle(self) -> bool:
        """True when a step would do nothing."""
        return not (self._waiting or self._reading or self._speaking or self._pending)

    @property
    def quiet(self) -> bool:
        """True when no answer has begun that has not ended."""
        return not (self._reading or self._speaking or self._pending)

    def submit(self, ticket: Ticket) -> None:
        """Takes a ticket on; its events come from `step`."""
        self._waiting.append(ticket)
        if ticket.whose:
            self._shares[ticket.whose] += 1

    def cancel(self, ticket: Ticket) -> None:
        """Ends a ticket now; one that has ended stays as it is."""
        if ticket.ended is None:
            self._end(ticket, "cancelled")

    def step(self) -> list[tuple[Ticket, Event]]:
        """Reads one chunk of a prompt, and makes the next tokens of all who speak."""
        self._admit()
        if self._reading:
            self._read_chunk()
        dispatched = self._dispatch()
        if self._pending is not None:
            self._deliver(*self._pending)
        self._pending = dispatched
        events, self._events = self._events, []
        return events

    def fail(self, error: str) -> list[tuple[Ticket, Event]]:
        """Ends all tickets with an error, whatever state the engine is in."""
        self._pending = None
        for ticket in [*self._waiting, *self._reading, *self._speaking.values()]:
            ticket.work = None
            self._end(ticket, "error", error)
        events, self._events = self._events, []
        return events

    def _admit(self) -> None:
        # a slot is kept for each job that is read, so that none waits with its prompt read
        held: list[Ticket] = []
        while self._waiting and not self.paused and len(self._reading) < len(self._free):
            ticket = self._waiting[0]
            try:
                work = self.engine.begin(ticket.job)
            except Exception as error:  # it is this job's, whatever it is, and the engine goes on
                if not isinstance(error, InputError):
                    LOG.exception("a job could not be begun")
                self._end(ticket, "error", str(error))
                continue
            if work is None or (isinstance(work, NoRow) and ticket.passed >= PASSES):
                break
            if isinstance(work, NoRow):
                held.append(self._waiting.popleft())
                continue
            self._waiting.popleft()
            self._waits_no_more(ticket)
            ticket.work, ticket.begun = work, monotonic()
            self._reading.append(ticket)
            for each in held:
                each.passed += 1
            if held and held[0].passed >= PASSES:
                break
        self._waiting.extendleft(reversed(held))

    def _read_chunk(self) -> None:
        ticket = self._reading[0]
        assert ticket.work is not None
        if not self.engine.prefill(ticket.work):
            return
        self._reading.popleft()
        ticket.read = monotonic()
        work = ticket.work
        self._events.append((ticket, PromptRead(work.cached_tokens, work.prompt_logprobs, work.adaptation)))
        if ticket.job.max_tokens < 1:
            self._end(ticket, "length")
            return
        ticket.slot = self._free.pop()
        self._speaking[ticket.slot] = ticket
        self.engine.insert(ticket.work, ticket.slot)

    def _dispatch(self) -> tuple[Pending, dict[int, Ticket]] | None:
        if any(t.job.grammar is not None for t in self._speaking.values()) and self._pending is not None:
            self._deliver(*self._pending)
            self._pending = None
        in_flight = {} if self._pending is None else self._pending[1]
        wanted = {
            slot: ticket
            for slot, ticket in self._speaking.items()
            if ticket.produced + (in_flight.get(slot) is ticket) < ticket.job.max_tokens
        }
        return (self.engine.decode(), wanted) if wanted else None

    def _deliver(self, pending: Pending, tickets: dict[int, Ticket]) -> None:
        step = pending.read()
        tokens = step.tokens.tolist()
        for slot, ticket in tickets.items():
            if ticket.ended is not None:
                continue
            if step.guessed is not None:
                ticket.guessed += int(step.guessed[slot])
            for at, token in enumerate(tokens[slot]):
                if token == NONE:
                    break
                if token == ENDED:
                    length = len(ticket.job.prompt.tokens) + ticket.produced
                    if not self._lost(ticket):
                        self._end(ticket, "length" if length >= self.engine.max_length else "stop")
                    break
                self._tell(ticket, token, step, at)
                if self._lost(ticket):
                    break
                if ticket.produced >= ticket.job.max_tokens:
                    self._end(ticket, "length")
                    break

    def _tell(self, ticket: Ticket, token: int, step: Step, at: int) -> None:
        job, slot = ticket.job, ticket.slot
        assert slot is not None
        ticket.produced += 1
        ticket.accepted += at > 0
        told = None if job.logprobs is None else step.of(slot, at, job.logprobs)
        self._events.append((ticket, Token(token, told)))
        if job.grammar is not None:
            job.grammar.accept(token)

    def _waits_no_more(self, ticket: Ticket) -> None:
        if ticket.whose:
            self._shares[ticket.whose] -= 1
            if not self._shares[ticket.whose]:
                del self._shares[ticket.whose]

    def _lost(self, ticket: Ticket) -> bool:
        """Ends an answer that its grammar has no way on for; True if there was none."""
        grammar = ticket.job.grammar
        if grammar is None or (why := grammar.failed) is None:
            return False
        LOG.warning("a form could not be followed to its end: %s", why)
        self._end(ticket, "form", f"the form of the answer could not be followed to its end: {why}")
        return True

    def _end(self, ticket: Ticket, reason: Reason, error: str = "") -> None:
        ticket.ended = monotonic()
        if ticket.begun is None:
            self._waits_no_more(ticket)
        if ticket.work is not None:
            self.engine.release(ticket.work)
            ticket.work = None
        if ticket.slot is not None:
            del self._speaking[ticket.slot]
            self._free.append(ticket.slot)
        else:
            _drop(self._reading, ticket)
            _drop(self._waiting, ticket)
        self._events.append((ticket, Ended(reason, error)))


def _drop(queue: deque[Ticket], ticket: Ticket) -> None:
    if ticket in queue:
        queue.remove(ticket)
