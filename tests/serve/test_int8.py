"""Weights and cache as int8: options of the engine that keep every promise of it, and cost little."""

import gc
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.config import load
from abi_jax.errors import InputError
from abi_jax.model.decoder import Decoder
from abi_jax.model.int8 import encode_weights
from abi_jax.model.weight import describe, initialize
from abi_jax.serve.config import ServeConfig
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.receipt import engine_section, read
from abi_jax.serve.replay import Replayer, differences
from abi_jax.serve.scheduler import PromptRead, Scheduler, Ticket, Token
from tests.model.cases import LLAMA, busy
from tests.model.cases import trained as model
from tests.model.test_int8 import decoded
from tests.serve.jobs import run
from tests.serve.test_paged import SIZES, VOICES, answers, ask, cached, forms, mixed_jobs, one_and_many, programs
from tests.serve.test_replay import Server
from tests.thorough import usual

WEIGHTS = replace(SIZES, quantization="int8")
CACHE = replace(SIZES, kv_cache_dtype="int8")
BOTH = replace(WEIGHTS, kv_cache_dtype="int8")
EACH = pytest.mark.parametrize("settings", usual([WEIGHTS, CACHE, BOTH], [BOTH]), ids=["weights", "cache", "both"])


@cache
def engine(settings: EngineConfig, name: str = "llama") -> PagedEngine:
    of = PagedEngine(*model(name), settings=settings, stop_ids=(7, 9))
    of.warm_up()
    return of


def logprobs(of: PagedEngine, jobs: Sequence[Job]) -> list[np.ndarray]:
    """The log-probability of each prompt's own tokens, one array a job."""
    scheduler, tickets = Scheduler(of), [Ticket(replace(job, prompt_logprobs=0)) for job in jobs]
    for ticket in tickets:
        scheduler.submit(ticket)
    events = run(scheduler)
    told = [e.prompt_logprobs for t in tickets for o, e in events if o is t and isinstance(e, PromptRead)]
    return [np.array([p.logprob for p in of_prompt or [] if p is not None]) for of_prompt in told]


# --- what holds with other types holds with these --------------------------------------------------


@EACH
def test_random_requests_get_exactly_what_each_gets_alone(settings: EngineConfig) -> None:
    """Personas, settings, grammars, prefixes that others read: tokens and log-probabilities, bit by bit."""
    of = engine(settings)
    before = programs(of)
    of._pool.clear()
    scheduler, tickets = Scheduler(of), [Ticket(job) for job in mixed_jobs(60, random.Random(1))]
    for ticket in tickets:
        scheduler.submit(ticket)
    events = run(scheduler)
    assert sum(e.cached_tokens > 0 for _, e in events if isinstance(e, PromptRead)) > 5
    for ticket in tickets:
        of._pool.clear()
        alone, one = Ticket(ticket.job), Scheduler(of)
        one.submit(alone)
        expected = [e for _, e in run(one) if isinstance(e, Token)]
        assert [e for o, e in events if o is ticket and isinstance(e, Token)] == expected
    assert programs(of) == before, "something was compiled after warm-up"


@EACH
def test_without_a_prefix_cache_answers_are_the_same(settings: EngineConfig) -> None:
    jobs = [ask(n, seed=5, mixture=v) for n in (33, 50) for v in VOICES[:3]]
    with_it = engine(settings)
    without = PagedEngine(*model("llama"), settings=replace(settings, prefix_cache=False), stop_ids=(7, 9))
    assert answers(without, jobs) == answers(with_it, jobs)
    assert cached(without, jobs[-1]) == 0 < cached(with_it, jobs[-1])


@pytest.mark.slow
def test_on_a_mesh_answers_are_those_of_one_device() -> None:
    jobs = [ask(n, seed=n, mixture=v) for n, v in zip((5, 30, 45, 20), VOICES, strict=True)]
    one, many = one_and_many(BOTH, BOTH)
    config = many.config
    before = programs(many)
    assert answers(many, jobs) == answers(one, jobs)
    for here, there in zip(logprobs(one, jobs), logprobs(many, jobs), strict=True):
        np.testing.assert_allclose(here, there, atol=1e-4)
    assert programs(many) == before
    keys: Any = many._state.pages.keys[0]
    assert keys.codes.sharding.spec[1] == keys.scales.sharding.spec[1] == "tensor"
    shards = {x.sharding.shard_shape(x.shape) for x in many._weights if x.dtype == jnp.int8}
    assert (config.d_ff // 8, config.d_model) in shards and (config.d_model, config.d_ff // 8) in shards


# --- and what is said is what the numbers say ------------------------------------------------------


def test_answers_are_those_of_the_numbers_that_the_codes_stand_for() -> None:
    config, params = model("llama")
    plain = PagedEngine(config, decoded(encode_weights(params)), settings=SIZES, stop_ids=(7, 9))
    assert answers(engine(WEIGHTS), forms()) == answers(plain, forms())


@EACH
def test_log_probabilities_are_nearly_those_of_floats(settings: EngineConfig) -> None:
    floats = PagedEngine(*model("llama"), settings=SIZES, stop_ids=(7, 9))
    pairs = zip(logprobs(engine(settings), forms()), logprobs(floats, forms()), strict=True)
    changes = np.concatenate([a - b for a, b in pairs])
    assert 0 < np.abs(changes).max() < 0.4 and abs(changes.mean()) < 0.02


@pytest.mark.thorough
def test_bfloat16_with_codes_is_bfloat16() -> None:
    of = PagedEngine(*model("llama"), settings=BOTH, dtype=jnp.bfloat16)
    floats = PagedEngine(*model("llama"), settings=SIZES)
    kinds = {x.dtype for x in of._weights if x.ndim > 1}
    assert kinds == {jnp.dtype(jnp.int8), jnp.dtype(jnp.bfloat16)}, "the matrices, and what personas own"
    for a, b in zip(logprobs(of, forms()), logprobs(floats, forms()), strict=True):
        np.testing.assert_allclose(a, b, atol=0.6)


# --- memory ----------------------------------------------------------------------------------------


def floats_of(shape: tuple[int, int]) -> int:
    """How many arrays of numbers of this shape there are anywhere."""
    gc.collect()
    return sum(x.shape == shape and jnp.issubdtype(x.dtype, jnp.floating) for x in jax.live_arrays())


def test_no_matrix_of_numbers_stays_on_the_device_at_the_start_nor_after_other_weights_came() -> None:
    config = replace(LLAMA, d_ff=56)  # a shape that no other test has
    shape = (config.d_ff, config.d_model)

    def made() -> tuple[Any, Any]:
        _, weights = describe(lambda: Decoder(config))
        return busy(config, initialize(weights, jax.random.key(0)))

    spoken, params = made()
    of = PagedEngine(spoken, params, settings=WEIGHTS)
    assert floats_of(shape) > 0
    del params
    assert floats_of(shape) == 0
    of.replace_weights(of.prepared(made()[1]))
    assert floats_of(shape) == 0
    codes = [x for x in of._weights if x.shape == shape]
    assert len(codes) == 2 * config.num_layers and all(x.dtype == jnp.int8 for x in codes)


# --- receipts --------------------------------------------------------------------------------------


def test_a_receipt_names_the_options_and_a_replay_has_them(trained: Path) -> None:
    server = Server.open(trained / "personas", settings=replace(BOTH, page_size=16, chunk=32))
    mixture = {"abbey": 1.0}
    job = server.ask("My build fails.", mixture, temperature=1.0, seed=7, ignore_eos=True)
    (tokens,) = server.answer([job])
    told = server.receipt(job, tokens, mixture)
    assert told["engine"]["settings"]["quantization"] == told["engine"]["settings"]["kv_cache_dtype"] == "int8"
    assert Replayer(server.directory).replay(read(told, "receipt")).identical
    told["engine"]["settings"] |= {"kv_cache_dtype": "auto", "quantization": None}
    found = Replayer(server.directory).replay(read(told, "receipt"))
    assert "'engine' was changed" in found.wrong[0]


def test_other_options_are_named_and_a_receipt_older_than_they_are_is_of_none() -> None:
    then, now = engine_section(engine(BOTH)), engine_section(engine(CACHE))
    assert differences(then, now) == ["settings.quantization was 'int8', and is None"]
    assert differences(then, then) == []
    older = {k: v for k, v in now["settings"].items() if k not in ("quantization", "kv_cache_dtype")}
    assert differences(now | {"settings": older}, now) == []
    assert EngineConfig(**older) == SIZES


# --- configuration ---------------------------------------------------------------------------------


def test_options_are_set_by_the_names_that_other_servers_have(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: runs/base\nengine: {quantization: int8}\n")
    config = load(ServeConfig, file, ["engine.kv_cache_dtype=int8"], env={})
    assert (config.engine.quantization, config.engine.kv_cache_dtype) == ("int8", "int8")
    config = load(ServeConfig, file, ["engine.quantization=null"], env={})
    assert (config.engine.quantization, config.engine.kv_cache_dtype) == (None, "auto")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("engine.quantization=int4", "engine.quantization"),
        ("engine.kv_cache_dtype=fp8", "engine.kv_cache_dtype"),
        ("dtype=int8", "engine.quantization, engine.kv_cache_dtype"),
    ],
)
def test_what_there_is_not_is_refused_by_name(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(ServeConfig, None, ["model=runs/base", override], env={})


def test_an_engine_refuses_types_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="quantization = 'int4'; expected null or int8"):
        EngineConfig(quantization="int4")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dtype = int8; expected a floating type"):
        PagedEngine(*model("llama"), settings=SIZES, dtype=jnp.int8)
