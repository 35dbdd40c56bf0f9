"""Guessed tokens: an answer is what it would be without them, token by token and bit by bit."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.engine.lookup import Lookup
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.scheduler import Scheduler, Ticket, Token
from tests.serve.jobs import run
from tests.serve.test_paged import (
    SIZES,
    VOICES,
    Every,
    answers,
    ask,
    engine,
    forms,
    mixed_jobs,
    one_and_many,
    programs,
)
from tests.thorough import usual

pytestmark = pytest.mark.optimized  # bits are those that users get

GUESSING = replace(SIZES, lookup=4)  # five rows a slot: twenty, which is no multiple of eight
NEVER_RIGHT = replace(GUESSING, lookup_min=32, lookup_max=32)  # the same program, and nothing is ever found


def told(of: PagedEngine, jobs: Sequence[Job]) -> tuple[list[list[Token]], list[Ticket]]:
    """Tokens with their log-probabilities, and tickets."""
    scheduler, tickets = Scheduler(of), [Ticket(job) for job in jobs]
    for ticket in tickets:
        scheduler.submit(ticket)
    events = run(scheduler)
    return [[e for o, e in events if o is t and isinstance(e, Token)] for t in tickets], tickets


def repeating(n: int = 24, seed: int = 0, **options: Any) -> Job:
    """A prompt of six tokens, again and again."""
    job = ask(n, seed, **options)
    return replace(job, prompt=replace(job.prompt, tokens=np.resize(job.prompt.tokens[:6], n)))


# --- guesses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5]),
        ([1, 2, 3, 9, 2, 4, 9, 1, 2], [3, 9, 2]),  # two tokens in common go before one that came later
        ([1, 2, 7, 1, 2, 8, 1, 2], [8, 1, 2]),  # the latest of two places
        ([5, 1, 1], [1, 1, 1]),  # what follows is short, and comes again
        ([4, 6, 8, 6, 8], [6, 8, 6]),
        ([1, 2, 3, 4], None),
        ([1], None),
    ],
)
def test_what_followed_is_guessed_to_follow(row: list[int], expected: list[int] | None) -> None:
    known = np.zeros((2, 12), np.int32)  # zeros behind a row's end are not of the row
    known[1, : len(row)] = row
    guesses, found = Lookup(3, 1, 3).guess(jnp.asarray(known), jnp.array([0, len(row) - 1]))
    assert found.tolist() == [False, expected is not None]
    assert expected is None or guesses[1].tolist() == expected


def test_fewer_tokens_in_common_than_asked_for_are_no_reason() -> None:
    known = jnp.array([[1, 2, 3, 9, 2, 3, 4, 3]])
    assert Lookup(2, 1, 2).guess(known, jnp.array([7]))[1].tolist() == [True]
    assert Lookup(2, 2, 2).guess(known, jnp.array([7]))[1].tolist() == [False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lookup": -1}, "lookup = -1; expected 0"),
        ({"lookup": 33}, "lookup = 33"),
        ({"lookup_min": 0}, "lookup_min = 0 and lookup_max = 3"),
        ({"lookup_min": 4}, "lookup_min = 4 and lookup_max = 3"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EngineConfig(**settings)


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", usual(["llama", "gpt2", "gemma2"], ["llama"]))
def test_it_makes_no_difference_whether_guesses_come_true(name: str) -> None:
    """Bit by bit; and beside an engine that guesses nothing, which adds up in another order, token by token."""
    jobs = [replace(job, logprobs=3) for job in mixed_jobs(24, random.Random(1))]
    for n, bias in ((9, 0.0), (20, 4.0), (25, 4.0), (30, 8.0), (28, 100.0)):
        jobs.append(repeating(n, n, max_tokens=20, mixture=VOICES[n % 4], logprobs=3, logit_bias={5: bias, 6: bias}))
    guessed, tickets = told(engine(name, GUESSING), jobs)
    plain, others = told(engine(name, NEVER_RIGHT), jobs)
    assert sum(t.accepted for t in tickets) > 20 and sum(t.guessed for t in others) == 0
    assert sum(t.guessed for t in tickets) > sum(t.accepted for t in tickets)
    assert guessed == plain
    assert [[e.id for e in tokens] for tokens in guessed] == answers(engine(name), jobs)


def test_it_makes_none_beside_a_cache_of_codes_either() -> None:
    """Whose keys are those of codes from the next token on, in the same step as in later ones."""
    codes: dict[str, Any] = {"quantization": "int8", "kv_cache_dtype": "int8"}
    jobs = [repeating(n, n, max_tokens=20, mixture=VOICES[n % 4], logprobs=3, logit_bias={5: 8.0}) for n in (9, 20, 28)]
    guessed, tickets = told(engine(settings=replace(GUESSING, **codes)), jobs)
    assert sum(t.accepted for t in tickets) > 10
    assert guessed == told(engine(settings=replace(NEVER_RIGHT, **codes)), jobs)[0]


def test_random_requests_get_exactly_what_each_gets_alone_and_nothing_is_compiled_later() -> None:
    rng = random.Random(0)
    of = engine(settings=GUESSING, stop_ids=(7, 9))
    of.warm_up()
    before = programs(of)
    scheduler, cancelled = Scheduler(of), set()
    tickets: list[Ticket] = []
    jobs = [*mixed_jobs(60, rng), *(repeating(rng.randrange(9, 40), i, max_tokens=16) for i in range(20))]
    rng.shuffle(jobs)
    events = []
    while len(tickets) < len(jobs) or not scheduler.idle:
        if len(tickets) < len(jobs):
            tickets.append(Ticket(jobs[len(tickets)]))
            scheduler.submit(tickets[-1])
        if rng.random() < 0.05 and tickets[-1].ended is None:
            cancelled.add(tickets[-1])
            scheduler.cancel(tickets[-1])
        events += scheduler.step()
    assert cancelled and of.usage().used == 0
    for ticket in tickets:
        of._pool.clear()
        ((expected,), _) = told(of, [ticket.job])
        got = [e for o, e in events if o is ticket and isinstance(e, Token)]
        assert got == (expected[: len(got)] if ticket in cancelled else expected)
    assert programs(of) == before


def test_an_answer_that_repeats_itself_takes_fewer_steps() -> None:
    job = repeating(12, max_tokens=40, logit_bias={5: 100.0})  # says one word
    scheduler, ticket = Scheduler(engine(settings=GUESSING)), Ticket(job)
    scheduler.submit(ticket)
    steps = 0
    while not scheduler.idle:
        scheduler.step()
        steps += 1
    assert ticket.produced == 40 and ticket.accepted > 25 and steps < 16


@pytest.mark.parametrize("max_tokens", range(1, 12))
def test_a_length_in_the_middle_of_guesses_that_came_true_is_kept(max_tokens: int) -> None:
    job = repeating(12, max_tokens=max_tokens, logit_bias={5: 100.0})
    assert answers(engine(settings=GUESSING), [job] * 3) == [[5] * max_tokens] * 3


def test_the_end_of_the_context_in_the_middle_of_guesses_is_kept() -> None:
    for length in range(50, 58):
        job = repeating(length, max_tokens=1000, logit_bias={5: 100.0})
        assert answers(engine(settings=GUESSING), [job]) == [[5] * (64 - length)]
    short = replace(GUESSING, max_length=37)
    assert answers(engine(settings=short), [repeating(20, max_tokens=99, logit_bias={5: 100.0})]) == [[5] * 17]


def test_an_end_token_in_the_middle_of_guesses_ends_the_answer() -> None:
    free = answers(engine(), [repeating(12, max_tokens=30)])[0]
    for end in set(free[2:]):
        stopping = engine(settings=GUESSING, stop_ids=(end,))
        assert answers(stopping, [repeating(12, max_tokens=30)]) == [free[: free.index(end)]]


def test_a_penalty_counts_what_was_said_in_the_same_step() -> None:
    settings: dict[str, Any] = {"frequency_penalty": 2.0, "presence_penalty": 1.0, "logit_bias": {5: 30.0, 6: 25.0}}
    job = repeating(12, max_tokens=30, **settings)
    (plain,) = answers(engine(), [job])
    assert len(set(plain)) > 1
    assert answers(engine(settings=GUESSING), [job]) == [plain]


def test_nothing_is_guessed_where_a_grammar_speaks_and_who_speaks_beside_it_is_guessed() -> None:
    jobs = [repeating(20, 1, max_tokens=12, grammar=Every(3)), repeating(12, max_tokens=30, logit_bias={5: 100.0})]
    found, (constrained, free) = told(engine(settings=GUESSING), jobs)
    assert [[e.id for e in tokens] for tokens in found] == answers(engine(), jobs)
    assert constrained.guessed == 0 and free.accepted > 15


def test_what_was_guessed_wrongly_is_in_nobodys_pages() -> None:
    """The chunks that others read are as they were, and the next prompt finds them."""
    of = engine(settings=replace(GUESSING, pages=12))
    first = repeating(33, 3, max_tokens=10)
    expected = answers(of, [first])
    before = [np.asarray(x) for x in of._state.pages.keys]
    shared = [page for chunk in of._pool._chunks.values() for page in chunk.pages]
    assert shared
    assert answers(of, [first, replace(first, max_tokens=5)]) == [expected[0], expected[0][:5]]
    for old, new in zip(before, of._state.pages.keys, strict=True):
        assert np.array_equal(old[shared], np.asarray(new)[shared])


def test_pages_that_ran_out_make_jobs_wait_and_change_nothing() -> None:
    jobs = [replace(job, max_tokens=20) for job in forms()]
    assert answers(engine(settings=replace(GUESSING, pages=12)), jobs) == answers(engine(), jobs)


@pytest.mark.thorough  # tests/serve/test_led.py has it over two processes
def test_on_a_mesh_answers_are_those_of_one_device_and_nothing_is_compiled_later() -> None:
    jobs = [repeating(n, n, mixture=v, max_tokens=12) for n, v in zip((9, 30, 45, 20), VOICES, strict=True)]
    one, many = one_and_many(SIZES, GUESSING)
    before = programs(many)
    assert answers(many, jobs) == answers(one, jobs)
    assert programs(many) == before
