"""One request's answers as they are made: its jobs are submitted, followed, and given up together."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from abi_jax.serve.answered import Answered, Ending
from abi_jax.serve.engine.seam import Job, TokenLogprobs
from abi_jax.serve.http.bridge import Mailbox
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.metrics import label
from abi_jax.serve.http.service import Service
from abi_jax.serve.scheduler import Ended, Event, PromptRead, Ticket, Token
from abi_jax.text import TextStream, Tokenizer

if TYPE_CHECKING:
    from abi_jax.serve.http.tracing import Trace

Operation = Literal["chat", "text_completion"]
LARGE = 4096  # tokens of an answer that is written on the event loop


@dataclass(eq=False)
class Choice:
    """One answer: what was said so far, and what of it `fresh` has not been told to the client.

    prompt: the number of its prompt in the request. fresh_from: the first token that was not told; opened: whether
    anything was. first, spoke: `time.monotonic` when its first and its last tokens came; timed: how many are in the
    metrics. counted: tokens that are in each of their counts. ended: why, in the metrics' words, once its end is in
    them.
    """

    index: int
    prompt: int
    job: Job
    text: TextStream
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    fresh: str = ""
    fresh_from: int = 0
    opened: bool = False
    cached_tokens: int = 0
    adaptation: str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish: str | None = None
    ticket: Ticket | None = None
    first: float | None = None
    spoke: float = 0.0
    timed: int = 0
    counted: tuple[int, int, int, int, int, int] = (0, 0, 0, 0, 0, 0)
    ended: str | None = None

    @classmethod
    def of(cls, index: int, prompt: int, job: Job, tokenizer: Tokenizer, stops: Sequence[str]) -> "Choice":
        """A choice of which nothing is said."""
        return cls(index, prompt, job, TextStream(tokenizer, stops))

    def told(self) -> None:
        """The client has been told everything."""
        self.fresh, self.fresh_from, self.opened = "", len(self.tokens), True

    def take(self, event: Event) -> bool:
        """Follows an event; True when the answer met a stop string, so that the engine may drop it."""
        if self.finish is not None:
            return False
        if isinstance(event, Token):
            self.tokens.append(event.id)
            self.logprobs.append(event.logprobs)
            self._say(self.text.push(event.id))
            if self.text.stopped:
                self.finish = "stop"
                return True
        elif isinstance(event, PromptRead):
            self.cached_tokens, self.prompt_logprobs = event.cached_tokens, event.prompt_logprobs
            self.adaptation = event.adaptation
        else:
            self._say(self.text.flush())
            self.finish = "stop" if self.text.stopped else event.reason
        return False

    def answered(self, asked: "Asked") -> Answered:
        """What a receipt is about."""
        ending = Ending("length" if self.finish == "length" else "stop", self.text.stop)
        about = (self.job, self.tokens, asked.mixture, ending, self.text.stops, asked.memories, self.adaptation)
        return Answered(*about)

    def _say(self, piece: str) -> None:
        if piece:
            self.said.append(piece)
            self.fresh += piece


@dataclass(frozen=True)
class Asked:
    """What an answer tells of its question. Times in seconds: `memory`, `moderation`. trace: what it is a part of."""

    operation: Operation
    model: str
    mixture: Mapping[str, float]
    seed: int
    memories: Sequence[Mapping[str, Any]] = ()
    memory: float = 0.0
    moderation: float = 0.0
    receipt: bool = False
    trace: "Trace | None" = None


class Generation:
    """The answers to one request. Belongs to the event loop's thread."""

    def __init__(
        self, service: Service, asked: Asked, choices: Sequence[Choice], *, id_: str, arrived: float, whose: str = ""
    ) -> None:
        """`arrived`: `time.monotonic` when the request did. whose: see `Worker.submit_all`."""
        self.service, self.asked, self.choices = service, asked, list(choices)
        self.id, self.arrived, self.created = id_, arrived, int(time.time())
        self._persona, self._whose = label(asked.mixture), whose
        self._box = Mailbox()
        self._by_ticket: dict[Ticket, Choice] = {}
        self._given_up: ApiError | None = None
        self._failed: str | None = None
        self._timer: asyncio.TimerHandle | None = None

    def submit(self) -> None:
        """Queues all jobs or none. Raises what `Worker.submit_all` raises."""
        if self.service.draining:
            raise ApiError(503, "the server is shutting down", code="unavailable", headers={"retry-after": "5"})
        tickets = self.service.worker.submit_all([choice.job for choice in self.choices], self._whose)
        for choice, ticket in zip(self.choices, tickets, strict=True):
            choice.ticket = ticket
            self.service.bridge.expect(ticket, self._box)
            self._by_ticket[ticket] = choice
        limit = self.service.limits.request_seconds
        self._timer = asyncio.get_running_loop().call_later(limit, self.give_up, _too_slow(limit))

    async def updates(self) -> AsyncIterator[list[Choice]]:
        """Yields the choices that changed, until all are finished. Raises `ApiError` where they cannot be."""
        left = len(self.choices)
        while left:
            events = await self._box.take()
            if self._given_up is not None:
                raise self._given_up
            changed: dict[Choice, None] = {}
            for ticket, event in events:
                choice = self._by_ticket[ticket]
                if choice.finish is None:
                    changed[choice] = None
                if isinstance(event, Ended) and event.error and choice.finish is None:
                    self._count(choice, "error")
                    raise self._failure(event)
                if choice.take(event):
                    self.service.worker.cancel(ticket)
                if choice.finish is not None:
                    self._count(choice, choice.finish)
            left -= sum(choice.finish is not None for choice in changed)
            self._measure(changed)
            if changed:
                yield list(changed)

    def _failure(self, event: Ended) -> ApiError:
        if event.reason == "form":  # asked again, it would be the same
            return ApiError(400, event.error, code="form_failed")
        self._failed = "engine_error"
        return ApiError(503, event.error, code="engine_error", headers={"retry-after": "5"})

    async def finish(self) -> None:
        """Waits for all choices."""
        async for _ in self.updates():
            pass

    def give_up(self, why: ApiError) -> None:
        """Frees the slots now; `updates` raises `why`."""
        if self._given_up is None:
            self._given_up = why
            self._drop_all()
            self._box.wake()

    def close(self) -> None:
        """Call it when the request is over, however it ended."""
        self.service.queries.ended(self)
        if self._timer is not None:
            self._timer.cancel()
        self._drop_all()
        for choice in self.choices:
            self._count(choice, "abort")
        if self.asked.trace is not None:
            self.asked.trace.generation(self)

    @property
    def failed(self) -> str | None:
        """The code of what it failed with; None where it did not, or nobody wanted it any more."""
        if self._given_up is not None and self._given_up.status >= 500:
            return self._given_up.code
        return self._failed

    @property
    def given_up(self) -> ApiError | None:
        """Why it was given up, if it was."""
        return self._given_up

    @property
    def large(self) -> bool:
        """Whether what is told of it takes so long to make that the event loop must not wait for it."""
        cost = 0
        for choice in self.choices:
            each = 1 if choice.job.logprobs is None else 16
            cost += each * (len(choice.tokens) + len(choice.job.prompt.tokens))
        return self.asked.receipt or cost > LARGE

    def usage(self) -> dict[str, Any]:
        """Tokens, as OpenAI counts them: a prompt once, whatever `n`."""
        first = {choice.prompt: choice for choice in reversed(self.choices)}
        prompt = sum(len(choice.job.prompt.tokens) for choice in first.values())
        said = sum(len(choice.tokens) for choice in self.choices)
        cached = sum(choice.cached_tokens for choice in first.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": said,
            "total_tokens": prompt + said,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def told(self) -> dict[str, Any]:
        """The extension field `abi` of an answer; once all choices are finished."""
        asked = self.asked
        answer: dict[str, Any] = {
            "mixture": dict(asked.mixture),
            "seed": asked.seed,
            "memories": list(asked.memories),
            "latency_ms": {name: round(1e3 * spent, 3) for name, spent in self.latency().items()},
        }
        # of several choices some may have begun before another step of the model was loaded, some after
        lineages = [self.service.lineage_at(c.ticket.begun if c.ticket else None) for c in self.choices]
        answer["lineage"] = dict(lineages[-1].told())
        if any(each is not lineages[0] for each in lineages):
            answer["lineages"] = [dict(each.told()) for each in lineages]
        if asked.receipt:
            answer["receipts"] = [
                lineage.receipt(choice.answered(asked)) for choice, lineage in zip(self.choices, lineages, strict=True)
            ]
        return answer

    def latency(self) -> dict[str, float]:
        """Seconds by part. `queue`: until the first prompt began to be read; `model`: from then on; `api`: the rest."""
        now = time.monotonic()
        tickets = [choice.ticket for choice in self.choices if choice.ticket is not None]
        arrived = min((t.arrived for t in tickets), default=now)
        begun = min((t.begun for t in tickets if t.begun is not None), default=now)
        ended = max((t.ended if t.ended is not None else now for t in tickets), default=now)
        queue, model = max(0.0, begun - arrived), max(0.0, ended - begun)
        parts = {"queue": queue, "model": model, "memory": self.asked.memory, "moderation": self.asked.moderation}
        return {"api": max(0.0, now - self.arrived - sum(parts.values())), **parts}

    def _measure(self, changed: Iterable[Choice]) -> None:
        now, metrics = time.monotonic(), self.service.metrics
        for choice in changed:
            metrics.count(self._persona, choice)
            new = len(choice.tokens) - choice.timed
            if not new:
                continue
            if choice.first is None:
                choice.first = now
                metrics.began(self._persona, now - self.arrived, new)
            else:
                metrics.spoke(self._persona, now - choice.spoke, new)
            choice.spoke, choice.timed = now, choice.timed + new

    def _count(self, choice: Choice, reason: str) -> None:
        if choice.ended is not None or choice.ticket is None:
            return
        # as vLLM calls what was given up
        choice.ended = "abort" if reason == "cancelled" else reason
        self.service.metrics.ended(self._persona, choice, self.arrived, choice.ended)

    def _drop_all(self) -> None:
        for choice in self.choices:
            if choice.ticket is not None and choice.ticket.ended is None:
                self.service.bridge.forget(choice.ticket)
                self.service.worker.cancel(choice.ticket)


def _too_slow(limit: float) -> ApiError:
    return ApiError(504, f"the answer took longer than {limit:g} seconds", code="timeout")
