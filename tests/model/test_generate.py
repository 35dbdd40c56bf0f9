"""Generation: with and without cache, alone and in a batch, on one device and on many."""

import warnings
from dataclasses import replace
from functools import cache
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model import generate
from abi_jax.model.config import ModelConfig
from abi_jax.model.generate import DecodeState, Generator, Prompt, bucket
from abi_jax.model.inputs import Inputs, gated_mixture
from abi_jax.model.sampling import SamplingConfig
from abi_jax.model.weight import Tree
from abi_jax.sharding.context import use
from abi_jax.text.roles import NUM_ROLES, Role
from tests.model.cases import base, one_hot, program, trained, untrained
from tests.model.meshes import EACH_MESH, MESHES, sharded, wide

NO_HISTORY = np.arange(NUM_ROLES) != Role.HISTORY
NO_POLICY = np.arange(NUM_ROLES) != Role.POLICY
MIX = np.array([0.5, 0.2, 0.3, 0], np.float32)
NEW = 10


def ask(n: int, seed: int, **options: object) -> Prompt:
    """A prompt of `n` tokens: some policy, some history, then input."""
    tokens = np.random.default_rng(seed).integers(1, 64, n).astype(np.int32)
    roles = np.sort(np.random.default_rng(seed).choice([Role.POLICY, Role.HISTORY, Role.INPUT], n)).astype(np.int32)
    return Prompt(tokens, roles, **options)  # type: ignore[arg-type]


PROMPTS = (
    ask(9, 0, mixture=MIX),
    ask(4, 1),
    ask(14, 2, mixture=one_hot(1)[0], reads=NO_HISTORY),
    ask(1, 3, mixture=one_hot(3)[0], response_only=False),
    ask(12, 4, mixture=MIX, reads=NO_HISTORY, prompt_reads=NO_POLICY),
    ask(11, 5, mixture=one_hot(2)[0], reads=NO_HISTORY, response_only=False),
)


def compiled(run: Generator) -> tuple[int, int]:
    """How many programs there are to prefill, and to decode."""
    prefill, step = cast(Any, run._prefill), cast(Any, run._step)
    return prefill._cache_size(), step._cache_size()


@cache
def generator(name: str) -> Generator:
    return Generator(*trained(name))


def without_cache(config: ModelConfig, params: Tree, prompts: tuple[Prompt, ...], new: int) -> list[list[int]]:
    """Greedy tokens, the whole row computed again for each: what a prompt's settings mean."""
    P, T = config.persona.capacity if config.persona else 0, 32
    tokens = np.zeros((len(prompts), T), np.int32)
    roles = np.full_like(tokens, Role.RESPONSE)
    lengths = np.array([len(p.tokens) for p in prompts])
    for row, prompt in enumerate(prompts):
        tokens[row, : lengths[row]], roles[row, : lengths[row]] = prompt.tokens, prompt.roles
    at = np.arange(T)
    answering = at >= lengths[:, None] - 1
    speaking = answering | np.array([[not p.response_only] for p in prompts])
    everything = np.ones(NUM_ROLES, bool)
    reads = np.array([everything if p.reads is None else p.reads for p in prompts])
    of_prompt = np.array([everything if p.prompt_reads is None else p.prompt_reads for p in prompts])
    w = np.array([np.zeros(P, np.float32) if p.mixture is None else p.mixture for p in prompts])
    for _ in range(new):
        inputs = Inputs(
            jnp.asarray(tokens),
            jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), tokens.shape),
            jnp.asarray(at < lengths[:, None], jnp.int32),
            jnp.asarray(roles),
            gated_mixture(w, speaking),
            jnp.where(speaking[..., None], reads[:, None], of_prompt[:, None]),
            packed=False,
        )
        logits = np.asarray(program(config)(params, inputs))
        rows = np.arange(len(prompts))
        tokens[rows, lengths] = np.argmax(logits[rows, lengths - 1], axis=-1)
        lengths = lengths + 1
    return [tokens[row, len(p.tokens) : lengths[row]].tolist() for row, p in enumerate(prompts)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3"])
def test_greedy_tokens_are_those_of_whole_rows(name: str) -> None:
    expected = without_cache(*trained(name), PROMPTS, NEW)
    assert generator(name).generate(PROMPTS, NEW) == expected
    assert len({tuple(row) for row in expected}) == len(PROMPTS)
    assert len({token for row in expected for token in row}) > len(PROMPTS)


def test_settings_of_a_prompt_change_its_answer() -> None:
    """Or the test above would prove little."""
    prompt = ask(12, 4)
    variants = [
        prompt,
        replace(prompt, mixture=MIX),
        replace(prompt, mixture=MIX, response_only=False),
        replace(prompt, mixture=MIX, reads=NO_HISTORY),
        replace(prompt, mixture=MIX, reads=NO_HISTORY, prompt_reads=NO_HISTORY),
    ]
    rows = generator("llama").generate(variants, 20)
    assert len({tuple(row) for row in rows}) == len(variants)


# --- neighbours ----------------------------------------------------------------------------------------


def test_a_prompt_is_answered_alone_as_in_a_batch() -> None:
    settings = [
        SamplingConfig(),
        SamplingConfig(1.0, seed=3),
        SamplingConfig(1.5, top_k=20, top_p=0.9, seed=4),
        SamplingConfig(0.8, min_p=0.02, repetition_penalty=1.3, seed=5),
    ]
    prompts = [replace(p, sampling=s) for p, s in zip(PROMPTS, settings, strict=False)]
    run = generator("llama")
    together = run.generate(prompts, NEW)
    assert [run.generate([p], NEW)[0] for p in prompts] == together
    assert run.generate(prompts[::-1], NEW)[::-1] == together


def test_seeds_choose_the_answer() -> None:
    prompts = [replace(PROMPTS[0], sampling=SamplingConfig(1.0, seed=seed)) for seed in (1, 1, 2, 3)]
    same, again, *others = generator("llama").generate(prompts, NEW)
    assert same == again and same not in others and others[0] != others[1]


def test_a_penalty_sees_the_prompt_and_the_answer() -> None:
    run = generator("llama")
    hot = replace(PROMPTS[0], sampling=SamplingConfig(repetition_penalty=1e9))
    out = run.generate([hot], 30)[0]
    assert len({*out, *hot.tokens.tolist()}) == len(out) + len(set(hot.tokens.tolist()))


# --- the end ---------------------------------------------------------------------------------------------


def test_a_stop_token_ends_its_row_alone_and_is_not_given() -> None:
    free = generator("llama").generate(PROMPTS, NEW)
    stop = free[0][3]
    stopped = Generator(*trained("llama"), stop_ids=[stop]).generate(PROMPTS, NEW)
    for out, whole in zip(stopped, free, strict=True):
        assert out == (whole[: whole.index(stop)] if stop in whole else whole)
    assert {len(row) for row in stopped} > {NEW}


def test_the_stream_ends_when_every_row_has() -> None:
    config, params = trained("llama")
    first = [row[0] for row in generator("llama").generate(PROMPTS, 1)]
    assert list(Generator(config, params, stop_ids=first).stream(PROMPTS, NEW)) == []


def test_the_stream_ends_when_the_context_is_full() -> None:
    run = generator("llama")
    full = run.config.max_length
    assert [len(row) for row in run.generate([ask(full - 3, 7), ask(5, 8)], NEW)] == [3, NEW]
    alone, long = run.generate([ask(5, 8)], full)[0], run.generate([ask(full - 3, 7), ask(5, 8)], full)[1]
    assert alone == long and len(alone) == full - 5
    assert [len(row) for row in run.generate([ask(full - 1, 7)], NEW)] == [1]
    assert run.generate([ask(5, 8)], 0) == [[]]


def test_a_cache_that_grows_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    roomy = generator("llama").generate(PROMPTS, 25)
    monkeypatch.setattr(generate, "ROOM", 1)
    sizes: list[int] = []
    tight = Generator(*trained("llama"))
    step = tight.step

    def watched(state: DecodeState) -> tuple[DecodeState, jax.Array]:
        sizes.append(state.cache.size)
        return step(state)

    monkeypatch.setattr(tight, "step", watched)
    assert tight.generate(PROMPTS, 25) == roomy
    assert sorted(set(sizes)) == [16, 32, 64]


def test_buckets() -> None:
    assert [bucket(n, 100) for n in (1, 16, 17, 64, 65, 100)] == [16, 16, 32, 64, 100, 100]
    assert bucket(5000, 3000) == 3000


# --- the programs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("placed", [True, False])
def test_steady_state_compiles_nothing_and_uses_the_donated_state(placed: bool) -> None:
    config, params = trained("llama")
    run = Generator(config, jax.device_put(params, jax.devices()[0]) if placed else params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "some donated buffers were not usable"
        run.generate(PROMPTS, 3)
        assert compiled(run) == (1, 1)
        others = [replace(p, sampling=SamplingConfig(1.0, top_p=0.9, seed=i)) for i, p in enumerate(PROMPTS[::-1])]
        run.generate(others, 12)
        assert compiled(run) == (1, 1)
        state = run.start(PROMPTS)
        after, _ = run.step(state)
    assert all(x.is_deleted() for x in (*state.cache.keys, *state.cache.values, state.seen))
    assert not after.seen.is_deleted()


def test_untrained_personas_answer_as_the_base_model_in_every_dtype() -> None:
    for dtype in (jnp.float32, jnp.bfloat16):
        answers = [Generator(*model("gpt2"), dtype=dtype).generate(PROMPTS[:4], NEW) for model in (base, untrained)]
        assert answers[0] == answers[1]


def test_the_prompts_cache_is_the_base_models_whoever_answers() -> None:
    """Response-only mode: one prefill serves the router and every persona."""
    prompts = [ask(12, seed, mixture=one_hot(seed)[0]) for seed in range(4)]
    nobody = [replace(p, mixture=None) for p in prompts]
    speaking, silent = (generator("llama").start(p).cache for p in (prompts, nobody))
    plain = Generator(*base("llama")).start(nobody).cache
    everywhere = generator("llama").start([replace(p, response_only=False) for p in prompts]).cache
    for part in ("keys", "values"):
        for a, b, c, d in zip(*(getattr(x, part) for x in (speaking, silent, plain, everywhere)), strict=True):
            assert np.array_equal(a, b) and np.array_equal(a, c)
            assert not np.array_equal(a, d)
    assert speaking.lengths.tolist() == [11] * 4


def test_the_answer_ignores_what_its_persona_may_not_read() -> None:
    strict = ask(14, 2, mixture=one_hot(1)[0], reads=NO_HISTORY, prompt_reads=NO_HISTORY)
    other = replace(strict, tokens=np.where(strict.roles == Role.HISTORY, 63 - strict.tokens, strict.tokens))
    assert (other.tokens != strict.tokens).sum() > 2
    first, second, free, changed = generator("llama").generate(
        [strict, other, *(replace(p, reads=None, prompt_reads=None) for p in (strict, other))], NEW
    )
    assert first == second and free != changed


def test_a_row_that_fills_its_cache_ends_and_overwrites_nothing() -> None:
    run = generator("llama")
    state = run.start([ask(9, 0), ask(15, 1)], room=1)
    size, written = state.cache.size, []
    for _ in range(size):
        state, tokens = run.step(state)
        written.append(np.asarray(tokens))
    rows = np.stack(written, axis=1)
    assert ((rows >= 0).sum(axis=1) == [size - 8, size - 14]).all()
    assert state.cache.lengths.tolist() == [size, size]
    assert [row[row >= 0].tolist() for row in rows] == [
        out[: size - n] for out, n in zip(run.generate([ask(9, 0), ask(15, 1)], size), (8, 14), strict=True)
    ]


# --- many devices ------------------------------------------------------------------------------------------


@cache
def one_device_answers() -> list[list[int]]:
    return Generator(*wide()).generate((*PROMPTS, *PROMPTS[:2]), NEW)


@pytest.mark.slow
@EACH_MESH
def test_every_mesh_generates_the_same_tokens(mesh: str) -> None:
    with use(MESHES[mesh]()):
        run = Generator(*sharded(mesh))
        assert run.generate((*PROMPTS, *PROMPTS[:2]), NEW) == one_device_answers()
        assert compiled(run)[1] <= 2  # the first state is not on the mesh yet


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        (ask(64, 0), "prompt of 64 tokens does not fit: the model's context is 64 tokens"),
        (ask(0, 0), "prompt of 0 tokens does not fit"),
        (replace(ask(3, 0), tokens=np.array([1, 64, 2])), "token id 64 is outside the model's vocabulary of 64"),
        (replace(ask(3, 0), tokens=np.array([1, -1, 2])), "token id -1 is outside the model's vocabulary of 64"),
    ],
)
def test_a_prompt_the_model_cannot_take_is_refused(prompt: Prompt, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        generator("llama").generate([PROMPTS[0], prompt], NEW)
