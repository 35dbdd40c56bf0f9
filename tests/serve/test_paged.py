"""The engine: slots over pages give each answer as it would be alone."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.generate import Generator, Prompt
from abi_jax.model.inputs import Inputs, gated_mixture
from abi_jax.model.sampling import SamplingConfig
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.engine.seam import Job, TokenLogprobs
from abi_jax.serve.scheduler import PromptRead, Scheduler, Ticket, Token
from abi_jax.sharding.mesh import MeshConfig, make_mesh
from abi_jax.text.roles import NUM_ROLES, Role
from tests.model.cases import program, trained
from tests.model.meshes import wide
from tests.serve.jobs import run, said

pytestmark = pytest.mark.optimized  # bits are those that users get

SIZES = EngineConfig(slots=4, page_size=8, chunk=16)
NO_HISTORY = np.arange(NUM_ROLES) != Role.HISTORY
VOICES: list[np.ndarray | None] = [
    None,
    np.array([0, 1, 0, 0], np.float32),
    np.array([0.5, 0.2, 0.3, 0], np.float32),
    np.array([0, 0, 0, 1], np.float32),
]


def ask(n: int, seed: int = 0, max_tokens: int = 8, sampling: SamplingConfig | None = None, **options: Any) -> Job:
    """A prompt of `n` tokens, some policy, some history, some input; `options` are of `Prompt` and `Job`."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 64, n).astype(np.int32)
    roles = np.sort(rng.choice([Role.POLICY, Role.HISTORY, Role.INPUT], n)).astype(np.int32)
    of_prompt = {k: options.pop(k) for k in ("mixture", "reads", "prompt_reads", "response_only") if k in options}
    return Job(Prompt(tokens, roles, sampling=sampling or SamplingConfig(), **of_prompt), max_tokens, **options)


@cache
def engine(name: str = "llama", settings: EngineConfig = SIZES, stop_ids: tuple[int, ...] = ()) -> PagedEngine:
    return PagedEngine(*trained(name), settings=settings, stop_ids=stop_ids)


def answers(of: PagedEngine, jobs: Sequence[Job]) -> list[list[int]]:
    scheduler, tickets = Scheduler(of), [Ticket(job) for job in jobs]
    for ticket in tickets:
        scheduler.submit(ticket)
    events = run(scheduler)
    return [said(events, ticket)[0] for ticket in tickets]


def programs(of: PagedEngine) -> list[int]:
    made: Any = of._programs
    return [p._cache_size() for p in (made.read, made.score, made.insert, made.decode)]


def forms() -> list[Job]:
    """One job of each kind of prompt."""
    mixed, single = VOICES[2], VOICES[1]
    return [
        ask(30, 0, mixture=mixed),
        ask(4, 1),
        ask(45, 2, mixture=single, reads=NO_HISTORY),
        ask(1, 3, mixture=VOICES[3], response_only=False),
        ask(17, 4, mixture=mixed, reads=NO_HISTORY, prompt_reads=NO_HISTORY),
        ask(40, 5, mixture=single, reads=NO_HISTORY, response_only=False),
    ]


# --- one answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_answers_are_those_of_the_generator(name: str) -> None:
    """Which keeps its cache in one piece; gemma2 has windows and soft caps, gpt2 learned positions."""
    generator = Generator(*trained(name))
    jobs = forms()
    assert answers(engine(name), jobs) == generator.generate([j.prompt for j in jobs], 8)


def test_an_answer_ends_at_an_end_token_or_not_as_it_is_asked() -> None:
    free = answers(engine(), [ask(9, max_tokens=12)])[0]
    end = free[5]
    stopping = engine(stop_ids=(end,))
    assert answers(stopping, [ask(9, max_tokens=12)]) == [free[: free.index(end)]]
    assert answers(stopping, [ask(9, max_tokens=12, ignore_eos=True)]) == [free]


def test_an_answer_fills_the_context_and_no_more() -> None:
    prompt = ask(40, max_tokens=1000)
    (answer,) = answers(engine(), [prompt])
    assert len(answer) == engine().max_length - 40
    assert answers(engine(), [ask(40, max_tokens=8)])[0] == answer[:8]


def test_an_engine_shorter_than_its_model_ends_answers_at_its_own_length_and_nobody_sees_beyond() -> None:
    """A length that is no multiple of a chunk: what lies behind the row's pages is others'."""
    of = engine(settings=replace(SIZES, max_length=36))
    jobs = [ask(20, seed=i, mixture=VOICES[i], max_tokens=100, logprobs=2) for i in range(4)]
    generator = Generator(*trained("llama"))
    alone = answers(of, jobs[:1])[0]
    assert len(alone) == 16 and alone == generator.generate([jobs[0].prompt], 16)[0]
    assert answers(of, jobs)[0] == alone


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (ask(64), "prompt of 64 tokens"),
        (ask(5, logit_bias={64: 1.0}), "token id 64"),
        (ask(5, logit_bias={3: 101.0}), "logit_bias of token 3 is 101"),
        (ask(5, max_tokens=0), "max_tokens = 0"),
        (ask(5, logprobs=21), "logprobs = 21"),
        (ask(5, frequency_penalty=2.5), "frequency_penalty = 2.5"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(job: Job, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine().check(job)


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="pages = 5; expected at least 9"):
        PagedEngine(*trained("llama"), settings=replace(SIZES, pages=5))
    with pytest.raises(InputError, match="chunk = 24; expected a multiple of page_size = 16"):
        EngineConfig(page_size=16, chunk=24)


# --- many ----------------------------------------------------------------------------------------


def mixed_jobs(count: int, rng: random.Random) -> list[Job]:
    jobs = []
    for i in range(count):
        sampling = SamplingConfig(
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([0, 5]),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            seed=rng.randrange(1000),
        )
        job = ask(
            rng.choice([1, 9, 20, 33, 34, 47, 50]),
            rng.randrange(5),
            rng.randrange(1, 12),
            sampling,
            mixture=rng.choice(VOICES),
            reads=rng.choice([None, NO_HISTORY]),
            response_only=rng.random() < 0.8,
            frequency_penalty=rng.choice([0.0, 0.0, 1.5]),
            presence_penalty=rng.choice([0.0, 0.0, -1.0]),
            logit_bias=rng.choice([{}, {}, {i % 64: 5.0}]),
            logprobs=rng.choice([None, None, 3]),
            grammar=Every(3) if rng.random() < 0.2 else None,
            prompt_logprobs=2 if rng.random() < 0.1 else None,
        )
        jobs.append(job)
    return jobs


class Every:
    """A grammar of the multiples of a number."""

    source, failed = "multiples", None

    def __init__(self, number: int) -> None:
        self.number = number

    def mask(self) -> np.ndarray:
        bits = np.arange(64) % self.number == 0
        return np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token: int) -> None:
        assert token % self.number == 0


def test_500_random_requests_get_exactly_what_each_gets_alone() -> None:
    """Mixed personas, settings, seeds, lengths, grammars, prefixes that others read, cancellations: bit by bit."""
    rng = random.Random(0)
    of = engine(stop_ids=(7, 9))
    of.warm_up()
    before = programs(of)
    scheduler, cancelled = Scheduler(of), set()
    tickets: list[Ticket] = []
    jobs = mixed_jobs(500, rng)
    events = []
    while len(tickets) < len(jobs) or not scheduler.idle:
        for _ in range(rng.choice([0, 0, 1, 3])):
            if len(tickets) < len(jobs):
                tickets.append(Ticket(jobs[len(tickets)]))
                scheduler.submit(tickets[-1])
        if tickets and rng.random() < 0.05:
            ticket = rng.choice(tickets[-6:])
            if ticket.ended is None:
                cancelled.add(ticket)
            scheduler.cancel(ticket)
        events += scheduler.step()
    assert len(cancelled) > 10 and of.usage().used == 0
    told = {ticket: [e for of_ticket, e in events if of_ticket is ticket] for ticket in tickets}
    hits = sum(e.cached_tokens > 0 for t in tickets for e in told[t] if isinstance(e, PromptRead))
    assert hits > 50
    for ticket in tickets:
        alone = Ticket(ticket.job)
        of._pool.clear()
        one = Scheduler(of)
        one.submit(alone)
        expected = [e for _, e in run(one) if isinstance(e, Token)]
        got = [e for e in told[ticket] if isinstance(e, Token)]
        assert got == (expected[: len(got)] if ticket in cancelled else expected)
    assert programs(of) == before, "something was compiled after warm-up"


def test_pages_that_ran_out_make_jobs_wait_and_change_nothing() -> None:
    small = engine(settings=replace(SIZES, pages=12))
    jobs = [replace(job, max_tokens=20) for job in forms()]
    assert answers(small, jobs) == answers(engine(), jobs)
    assert small.usage().used == 0


# --- prefixes ------------------------------------------------------------------------------------


def cached(of: PagedEngine, job: Job) -> int:
    scheduler, ticket = Scheduler(of), Ticket(job)
    scheduler.submit(ticket)
    (read,) = (e for _, e in run(scheduler) if isinstance(e, PromptRead))
    return read.cached_tokens


def test_what_was_read_is_not_read_again_whoever_answers() -> None:
    of = engine()
    of._pool.clear()
    first = ask(45, seed=77, mixture=VOICES[1])
    assert cached(of, first) == 0
    for voice in VOICES:
        assert cached(of, ask(45, seed=77, mixture=voice)) == 32  # two chunks of 16; the rest is the row's own
    longer = replace(first, prompt=replace(first.prompt, tokens=np.append(first.prompt.tokens, [1, 2, 3, 4, 5])))
    longer = replace(longer, prompt=replace(longer.prompt, roles=np.append(first.prompt.roles, [Role.INPUT] * 5)))
    assert cached(of, longer) == 32


@pytest.mark.parametrize(
    "change",
    [
        {"scope": b"another user"},
        {"prompt_reads": NO_HISTORY},
        {"mixture": VOICES[1], "response_only": False},
        {"mixture": VOICES[2], "response_only": False, "reads": NO_HISTORY},
    ],
    ids=str,
)
def test_what_was_read_otherwise_or_for_others_is_not_found(change: dict[str, Any]) -> None:
    of = engine()
    of._pool.clear()
    assert cached(of, ask(45, seed=78)) == 0
    assert cached(of, ask(45, seed=78, **change)) == 0
    assert cached(of, ask(45, seed=78, **change)) == 32
    roles = ask(45, seed=78).prompt.roles % 4 + 1
    assert cached(of, replace(ask(45), prompt=replace(ask(45, seed=78).prompt, roles=roles))) == 0


def test_without_a_prefix_cache_answers_are_the_same() -> None:
    jobs = [ask(n, seed=5, mixture=v) for n in (20, 33, 50) for v in VOICES]
    without = engine(settings=replace(SIZES, prefix_cache=False))
    assert answers(without, jobs) == answers(engine(), jobs)
    assert cached(without, jobs[-1]) == cached(without, jobs[-1]) == 0


def test_a_prompt_that_waits_finds_what_the_one_before_it_reads() -> None:
    of = engine()
    of._pool.clear()
    scheduler, tickets = Scheduler(of), [Ticket(ask(50, seed=80, max_tokens=3)) for _ in range(3)]
    for ticket in tickets:
        scheduler.submit(ticket)
    events = run(scheduler)
    found = [[e.cached_tokens for o, e in events if o is t and isinstance(e, PromptRead)] for t in tickets]
    assert found == [[0], [48], [48]]


def test_other_weights_forget_what_was_read() -> None:
    config, params = trained("llama")
    of = PagedEngine(config, params, settings=SIZES)
    before = answers(of, [ask(45)])
    other = jax.tree.map(lambda x: x * 1.1, params)
    of.replace_weights(of.prepared(other))
    assert cached(of, ask(45)) == 0
    changed = answers(of, [ask(45)])
    assert changed == Generator(config, other).generate([ask(45).prompt], 8) != before
    of.replace_weights(of.prepared(params))
    assert answers(of, [ask(45)]) == before


def test_what_is_not_finite_in_one_row_is_nothing_to_the_others() -> None:
    """Pages go from hand to hand, and what is left in them has a weight of zero, which is not nothing beside a NaN."""
    config, params = trained("llama")
    broken = params | {"embedding": params["embedding"].at[50].set(jnp.nan)}
    of = PagedEngine(config, broken, settings=replace(SIZES, pages=9, slots=1, prefix_cache=False))
    fine = ask(20, max_tokens=10)
    clean = replace(fine, prompt=replace(fine.prompt, tokens=fine.prompt.tokens % 50))
    expected = answers(of, [clean])
    answers(of, [replace(fine, prompt=replace(fine.prompt, tokens=np.full(20, 50, np.int32)), max_tokens=30)])
    assert answers(of, [clean]) == expected


# --- settings, against the same formula written naively -------------------------------------------


def logits_of(job: Job, answer: Sequence[int]) -> np.ndarray:
    """Logits of every position of prompt and answer, the whole row computed at once: f32 `[T, V]`."""
    config, params = trained("llama")
    prompt = job.prompt
    n = len(prompt.tokens)
    tokens = np.concatenate([prompt.tokens, answer]).astype(np.int32)[None]
    roles = np.concatenate([prompt.roles, np.full(len(answer), Role.RESPONSE)]).astype(np.int32)[None]
    speaks = np.arange(tokens.shape[1])[None] >= (n - 1 if prompt.response_only else 0)
    mixture = None if prompt.mixture is None else gated_mixture(prompt.mixture[None], speaks)
    positions = np.arange(tokens.shape[1], dtype=np.int32)[None]
    arrays = [jnp.asarray(x) for x in (tokens, positions, np.ones_like(tokens), roles)]
    inputs = Inputs(arrays[0], arrays[1], arrays[2], arrays[3], mixture, packed=False)
    return np.array(program(config)(params, inputs))[0]


def naive(logits: np.ndarray, count: int) -> list[tuple[float, list[tuple[int, float]]]]:
    logprobs = (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )
    return [(row, [(int(i), float(row[i])) for i in np.argsort(-row)[:count]]) for row in logprobs]


def check_told(told: TokenLogprobs | None, token: int, expected: Any) -> None:
    row, top = expected
    assert told is not None
    np.testing.assert_allclose(told.logprob, row[token], atol=1e-3)
    assert [i for i, _ in told.top] == [i for i, _ in top]
    np.testing.assert_allclose([p for _, p in told.top], [p for _, p in top], atol=1e-3)


@pytest.mark.parametrize("response_only", [True, False])
def test_log_probabilities_of_prompt_and_answer(response_only: bool) -> None:
    job = ask(40, seed=9, mixture=VOICES[2], response_only=response_only, logprobs=4, prompt_logprobs=3, max_tokens=5)
    scheduler, ticket = Scheduler(engine()), Ticket(job)
    scheduler.submit(ticket)
    events = [e for _, e in run(scheduler)]
    tokens = [e.id for e in events if isinstance(e, Token)]
    expected = naive(logits_of(job, tokens), 4)
    for e, at in zip((e for e in events if isinstance(e, Token)), range(39, 44), strict=True):
        check_told(e.logprobs, e.id, expected[at])
    (read,) = (e for e in events if isinstance(e, PromptRead))
    assert read.prompt_logprobs is not None and read.prompt_logprobs[0] is None
    expected = naive(logits_of(job, tokens), 3)
    assert len(read.prompt_logprobs) == 40
    for at, told in enumerate(read.prompt_logprobs[1:]):
        check_told(told, int(job.prompt.tokens[at + 1]), expected[at])


def test_penalties_and_biases_are_openais() -> None:
    job = ask(12, seed=3, mixture=VOICES[1], max_tokens=12, frequency_penalty=1.7, presence_penalty=0.9)
    job = replace(job, logit_bias={5: 3.0, 6: -100.0})
    (answer,) = answers(engine(), [job])
    counts = np.zeros(64)
    for at, token in enumerate(answer):
        logits = logits_of(job, answer[:at])[-1].astype(np.float64)
        logits -= 1.7 * counts + 0.9 * (counts > 0)
        logits[5] += 3
        logits[6] -= 100
        assert token == int(np.argmax(logits))
        counts[token] += 1
    assert answer != answers(engine(), [replace(job, frequency_penalty=0.0, presence_penalty=0.0, logit_bias={})])[0]


def test_a_grammar_leaves_the_likeliest_of_what_it_allows() -> None:
    job = ask(12, seed=4, max_tokens=8, grammar=Every(5))
    (answer,) = answers(engine(), [job])
    for at, token in enumerate(answer):
        logits = logits_of(job, answer[:at])[-1]
        logits[np.arange(64) % 5 != 0] = -np.inf
        assert token == int(np.argmax(logits))


# --- on a mesh -----------------------------------------------------------------------------------


def one_and_many(one: EngineConfig, many: EngineConfig) -> tuple[PagedEngine, PagedEngine]:
    """Engines of one model: on one device, and sharded over a mesh and warm."""
    mesh = make_mesh(MeshConfig(data=1, tensor=8))
    config, params = wide()
    sharded = PagedEngine(config, wide(mesh)[1], settings=many, mesh=mesh)
    sharded.warm_up()
    return PagedEngine(config, params, settings=one), sharded


@pytest.mark.slow
def test_on_a_mesh_answers_are_those_of_one_device_and_nothing_is_compiled_later() -> None:
    jobs = [ask(n, seed=n, mixture=v) for n, v in zip((5, 30, 45, 20), VOICES, strict=True)]
    one, many = one_and_many(SIZES, SIZES)
    before = programs(many)
    assert answers(many, jobs) == answers(one, jobs)
    assert answers(many, jobs[::-1]) == answers(one, jobs[::-1])
    assert programs(many) == before
    assert many._state.pages.keys[0].sharding.spec[1] == "tensor"


def test_a_step_leaves_the_state_as_it_found_it_so_that_it_is_traced_once() -> None:
    """A type that is only nearly the same would make JAX trace and compile the whole step again."""
    made = engine()
    turn = made._new_turn({})
    after, _ = jax.eval_shape(made._programs._decode, made._weights, made._state, turn)
    before = jax.eval_shape(lambda state: state, made._state)
    kinds = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)] for state in (before, after)]
    assert kinds[0] == kinds[1]
