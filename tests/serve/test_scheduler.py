"""Continuous batching over an engine that needs no model."""

import random
from typing import Any

import numpy as np
import pytest

from abi_jax.serve.engine.fake import FakeEngine, FakeWork
from abi_jax.serve.engine.seam import NO_ROW, NoRow, TokenLogprobs
from abi_jax.serve.scheduler import PASSES, Ended, Load, PromptRead, Scheduler, Ticket, Token
from tests.serve.jobs import job, run, said

pytestmark = pytest.mark.smoke


def alone(ticket: Ticket) -> tuple[list[int], str | None]:
    scheduler, again = Scheduler(FakeEngine()), Ticket(ticket.job)
    scheduler.submit(again)
    return said(run(scheduler), again)


def test_an_answer_is_read_then_told_token_by_token_then_ended() -> None:
    scheduler, ticket = Scheduler(FakeEngine(script=(7, 8, 9))), Ticket(job(max_tokens=10))
    scheduler.submit(ticket)
    events = run(scheduler)
    assert isinstance(events[0][1], PromptRead)
    assert said(events, ticket) == ([7, 8, 9], "stop")
    assert ticket.begun is not None and ticket.read is not None and ticket.ended is not None
    assert ticket.arrived <= ticket.begun <= ticket.read <= ticket.ended


def test_max_tokens_ends_an_answer_and_no_step_is_made_for_nothing() -> None:
    engine = FakeEngine()
    scheduler, ticket = Scheduler(engine), Ticket(job(max_tokens=4))
    steps = 0
    decode = engine.decode

    def counted() -> Any:
        nonlocal steps
        steps += 1
        return decode()

    engine.decode = counted  # type: ignore[method-assign]
    scheduler.submit(ticket)
    tokens, reason = said(run(scheduler), ticket)
    assert (len(tokens), reason, steps) == (4, "length", 4)


@pytest.mark.parametrize("at_once", [2, 3, 8])
def test_a_step_of_several_tokens_makes_the_same_answers(at_once: int) -> None:
    """Tokens beyond an answer's length are told to nobody, and all but the first of a step were guessed."""
    tickets = [Ticket(job(max_tokens=n, seed=n)) for n in range(1, 12)]
    scheduler = Scheduler(FakeEngine(slots=3, at_once=at_once))
    for ticket in tickets:
        scheduler.submit(ticket)
    events = run(scheduler)
    for n, ticket in enumerate(tickets, 1):
        assert said(events, ticket) == alone(ticket) and ticket.produced == n
        steps = -(-n // at_once)
        assert ticket.accepted == n - steps and ticket.guessed == steps * (at_once - 1)


def test_an_end_among_several_tokens_ends_the_answer() -> None:
    scheduler, ticket = Scheduler(FakeEngine(script=(7, 8, 9, 10), at_once=3)), Ticket(job(max_tokens=10, logprobs=1))
    scheduler.submit(ticket)
    assert said(run(scheduler), ticket) == ([7, 8, 9, 10], "stop")


def test_more_jobs_than_slots_are_served_in_their_order() -> None:
    scheduler = Scheduler(FakeEngine(slots=2))
    tickets = [Ticket(job(seed=i)) for i in range(7)]
    for ticket in tickets:
        scheduler.submit(ticket)
    assert scheduler.load() == Load(7, 0, 0)
    events = run(scheduler)
    ended = [of for of, event in events if type(event).__name__ == "Ended"]
    assert ended == tickets
    assert [said(events, t) for t in tickets] == [alone(t) for t in tickets]


def test_a_job_waits_while_there_are_no_pages_for_it() -> None:
    engine = FakeEngine(slots=4, pages=3, page_size=64)
    scheduler = Scheduler(engine)
    large, small = Ticket(job(100, 60)), Ticket(job(10, 5))
    scheduler.submit(large)
    scheduler.submit(small)
    scheduler.step()
    assert scheduler.load().waiting == 1 and small.begun is None
    events = run(scheduler)
    assert said(events, small) == alone(small) and engine.used == 0


class Adapted(FakeEngine):
    """One user at a time may be spoken as."""

    speaking: Any = None

    def begin(self, job: Any) -> FakeWork | NoRow | None:
        """Takes a job on unless another user's is."""
        if job.user and self.speaking is not None:
            return NO_ROW
        work = super().begin(job)
        if job.user and isinstance(work, FakeWork):
            self.speaking = work
        return work

    def release(self, work: FakeWork) -> None:
        """Lets the next user speak."""
        super().release(work)
        if self.speaking is work:
            self.speaking = None


def test_who_waits_for_a_users_adaptation_is_passed_by_others() -> None:
    scheduler = Scheduler(Adapted(slots=4))
    ada, bob, eve = (Ticket(job(max_tokens=40, seed=i, user=name)) for i, name in enumerate(("ada", "bob", "eve")))
    others = [Ticket(job(max_tokens=3, seed=9 + i)) for i in range(3)]
    for ticket in (ada, bob, eve, *others):
        scheduler.submit(ticket)
    events = run(scheduler)
    ended = [of for of, event in events if type(event).__name__ == "Ended"]
    assert ended == [*others, ada, bob, eve]
    assert all(said(events, ticket) == alone(ticket) for ticket in (ada, bob, eve))


def test_nobody_is_passed_for_ever() -> None:
    engine = Adapted(slots=2)
    scheduler = Scheduler(engine)
    engine.speaking = FakeWork(job(), 0, 0)  # somebody whose answer does not end
    waits = Ticket(job(user="ada"))
    scheduler.submit(waits)
    for i in range(PASSES + 20):
        scheduler.submit(Ticket(job(max_tokens=1, seed=i)))
    for _ in range(500):
        scheduler.step()
    assert waits.passed == PASSES and scheduler.load() == Load(21, 0, 0)
    engine.speaking = None
    run(scheduler)
    assert waits.produced == 5 and engine.used == 0


def test_who_waits_for_pages_is_passed_by_nobody() -> None:
    engine = FakeEngine(slots=4, pages=2)
    scheduler = Scheduler(engine)
    first, large, small = Ticket(job(max_tokens=40)), Ticket(job(100, 20, user="ada")), Ticket(job(max_tokens=1))
    for ticket in (first, large, small):
        scheduler.submit(ticket)
    scheduler.step()
    assert engine.used == 1 and scheduler.load().waiting == 2
    events = run(scheduler)
    assert [of for of, event in events if isinstance(event, Ended)][:1] == [first]
    assert large.begun is not None and small.begun is not None and large.begun < small.begun and large.passed == 0


def test_an_answer_that_fills_the_context_was_cut_off() -> None:
    full, ended = FakeEngine(script=(7,) * 6, max_length=16), FakeEngine(script=(7,) * 5, max_length=16)
    for engine, reason in ((full, "length"), (ended, "stop")):
        scheduler, ticket = Scheduler(engine), Ticket(job(10, 40))
        scheduler.submit(ticket)
        assert said(run(scheduler), ticket)[1] == reason


def test_a_long_prompt_is_read_in_chunks_between_the_steps_of_others() -> None:
    scheduler = Scheduler(FakeEngine(chunk=16))
    first, late = Ticket(job(8, 40)), Ticket(job(100, 5, seed=1))
    scheduler.submit(first)
    scheduler.step()
    scheduler.submit(late)
    before = 0
    while late.read is None:
        before += sum(isinstance(event, Token) and of is first for of, event in scheduler.step())
    assert before >= 6  # a token for each of the seven chunks but the first


def test_a_cancelled_job_frees_its_slot_and_pages_at_once() -> None:
    engine = FakeEngine(slots=1)
    scheduler = Scheduler(engine)
    spoken, waiting, reading = (Ticket(job(max_tokens=100, seed=i)) for i in range(3))
    for ticket in (spoken, waiting, reading):
        scheduler.submit(ticket)
    for _ in range(3):
        scheduler.step()
    scheduler.cancel(spoken)
    assert engine.used == 0 and not engine.works
    scheduler.cancel(waiting)
    scheduler.cancel(waiting)
    events = run(scheduler)
    assert said(events, spoken)[1] == "cancelled" and said(events, waiting) == ([], "cancelled")
    assert said(events, reading) == alone(reading)


def test_a_grammar_sees_every_token_before_the_next_is_chosen() -> None:
    class Watching(FakeEngine):
        seen: list[int]

        def decode(self) -> Any:
            for work in self.works.values():
                assert isinstance(work, FakeWork) and isinstance(work.job.grammar, Recorder)
                assert len(work.job.grammar.tokens) == work.said
            return super().decode()

    class Recorder:
        source, failed = "anything", None

        def __init__(self) -> None:
            self.tokens: list[int] = []

        def mask(self) -> np.ndarray:
            return np.full(8, -1, np.int32)

        def accept(self, token: int) -> None:
            self.tokens.append(token)

    grammar = Recorder()
    scheduler, ticket = Scheduler(Watching()), Ticket(job(max_tokens=6, grammar=grammar))
    scheduler.submit(ticket)
    tokens, _ = said(run(scheduler), ticket)
    assert grammar.tokens == tokens and len(tokens) == 6


@pytest.mark.parametrize("where", ["accept", "mask"])
def test_an_answer_whose_grammar_gives_up_has_not_stopped_by_itself(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Lost:
        source = "anything"

        def __init__(self) -> None:
            self.failed: str | None = None
            self.known = 0

        def mask(self) -> np.ndarray:
            if where == "mask" and self.known == 3:
                self.failed = "too large"
            return np.full(8, -1, np.int32)

        def accept(self, token: int) -> None:
            self.known += 1
            if where == "accept" and self.known == 3:
                self.failed = "too large"

    class Masking(FakeEngine):
        def decode(self) -> Any:
            for work in self.works.values():
                if work.job.grammar is not None:
                    work.job.grammar.mask()
            return super().decode()

    scheduler = Scheduler(Masking(script=(5, 6, 7) if where == "mask" else (5, 6, 7, 8)))
    lost, other = Ticket(job(max_tokens=9, grammar=Lost())), Ticket(job(max_tokens=1))
    scheduler.submit(lost)
    scheduler.submit(other)
    events = run(scheduler)
    assert said(events, lost) == ([5, 6, 7], "form") and said(events, other) == ([5], "length")
    (error,) = [event.error for of, event in events if of is lost and isinstance(event, Ended)]
    assert error.endswith("could not be followed to its end: too large") and "too large" in caplog.text


def test_log_probabilities_are_told_where_they_are_asked_for() -> None:
    scheduler = Scheduler(FakeEngine())
    plain, asked, prompt = Ticket(job()), Ticket(job(logprobs=2)), Ticket(job(max_tokens=0, prompt_logprobs=1))
    for ticket in (plain, asked, prompt):
        scheduler.submit(ticket)
    events = run(scheduler)
    told = {id(t): [e.logprobs for of, e in events if of is t and isinstance(e, Token)] for t in (plain, asked)}
    assert told[id(plain)] == [None] * 5
    assert told[id(asked)] == [TokenLogprobs(-1.0, ((0, -1.0), (1, -2.0)))] * 5
    (read,) = (e for of, e in events if of is prompt and isinstance(e, PromptRead))
    assert read.prompt_logprobs == [None] + [TokenLogprobs(-1.0, ((0, -1.0),))] * 9
    assert said(events, prompt) == ([], "length")


def test_a_failure_ends_all_jobs() -> None:
    scheduler = Scheduler(FakeEngine(slots=1))
    tickets = [Ticket(job(seed=i, max_tokens=50)) for i in range(3)]
    for ticket in tickets:
        scheduler.submit(ticket)
    events = scheduler.step() + scheduler.step() + scheduler.fail("it broke")
    assert [said(events, t)[1] for t in tickets] == ["error"] * 3
    assert scheduler.idle


@pytest.mark.parametrize("seed", range(5))
def test_whatever_comes_and_goes_each_answer_is_what_it_would_be_alone(seed: int) -> None:
    rng = random.Random(seed)
    engine = FakeEngine(slots=rng.choice([1, 3, 8]), pages=40, chunk=rng.choice([8, 64]))
    scheduler, cancelled = Scheduler(engine), set()
    tickets: list[Ticket] = []
    events = []
    while len(tickets) < 60 or not scheduler.idle:
        if len(tickets) < 60 and rng.random() < 0.5:
            tickets.append(Ticket(job(rng.randrange(1, 200), rng.randrange(1, 40), seed=rng.randrange(1000))))
            scheduler.submit(tickets[-1])
        if tickets and rng.random() < 0.1:
            ticket = rng.choice(tickets)
            if ticket.ended is None:
                cancelled.add(ticket)
            scheduler.cancel(ticket)
        events += scheduler.step()
        assert len(engine.works) <= engine.slots and engine.used <= engine.pages
    assert engine.used == 0 and not engine.works
    for ticket in tickets:
        tokens, reason = said(events, ticket)
        expected, expected_reason = alone(ticket)
        if ticket in cancelled:
            assert reason == "cancelled" and tokens == expected[: len(tokens)]
        else:
            assert (tokens, reason) == (expected, expected_reason)
