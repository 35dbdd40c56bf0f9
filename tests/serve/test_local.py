"""The engine in this process: text in, text out, one voice or several at once."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.model.directory import ModelDirectory
from abi_jax.persona import Sampling
from abi_jax.serve.local import Answer, LocalEngine, Request
from abi_jax.sharding import current_mesh
from abi_jax.text.roles import Role
from tests.thorough import usual
from tests.train.tiny import MESHES, MODEL, mesh_of

QUESTION = "My build fails and I am stuck."
MIXTURES: list[Mapping[str, float]] = [{"abbey": 1.0}, {"aviva": 1.0}, {"abbey": 0.5, "aviva": 0.5}, {}]


def ask(mixture: Mapping[str, float] | None = None, text: str = QUESTION, **settings: Any) -> Request:
    """A request for 16 tokens, by default sampled, so that a model trained for seconds does not fall silent."""
    settings = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0, "max_tokens": 16, "seed": 3} | settings
    return Request([{"role": "user", "content": text}], mixture or {}, **settings)


@pytest.fixture(scope="module")
def engine(trained: Path) -> LocalEngine:
    return LocalEngine.open(trained / "personas")


def one(engine: LocalEngine, request: Request) -> Answer:
    return engine.answer([request])[0]


# --- answering -----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("mixture", MIXTURES, ids=str)
def test_a_stream_is_the_answer_piece_by_piece(
    engine: LocalEngine, mixture: Mapping[str, float], temperature: float
) -> None:
    request = ask(mixture, temperature=temperature, repetition_penalty=1.3)
    pieces = list(engine.stream(request))
    assert all(pieces) and "".join(pieces) == one(engine, request).text


def test_several_voices_share_a_batch_and_each_speaks_as_it_would_alone(engine: LocalEngine) -> None:
    requests = [ask(m, seed=i) for i, m in enumerate(MIXTURES)] + [ask({"abi": 1.0}, "Who are you?", max_tokens=5)]
    together = engine.answer(requests)
    assert together == [one(engine, r) for r in requests]
    assert together[-1].tokens <= 5
    assert len({a.text for a in together}) == len(together)


def test_voices_differ_where_nothing_else_does(engine: LocalEngine) -> None:
    texts = [a.text for a in engine.answer([ask(m, max_tokens=40) for m in MIXTURES])]
    assert len(set(texts)) == len(texts)


def test_the_seed_decides(engine: LocalEngine) -> None:
    first, again, other = engine.answer([ask(seed=1), ask(seed=1), ask(seed=2)])
    assert first == again and first.text != other.text


def test_an_answer_counts_its_tokens_and_says_why_it_ended(engine: LocalEngine) -> None:
    answers = engine.answer([ask(seed=i, max_tokens=24) for i in range(12)])
    prompt = len(engine.prompt(ask()).tokens)
    assert all(a.prompt_tokens == prompt and a.tokens <= 24 for a in answers)
    assert {a.finish for a in answers} == {"stop", "length"}
    assert all((a.tokens == 24) == (a.finish == "length") for a in answers)


def test_a_stop_string_ends_an_answer_and_is_not_shown(engine: LocalEngine) -> None:
    request = ask({"abbey": 1.0}, max_tokens=40)
    whole = one(engine, request)
    at = len(whole.text) // 2
    stop = whole.text[at : at + 3]
    cut = one(engine, replace(request, stop=("nowhere", stop)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish == "stop" and cut.tokens < whole.tokens
    assert "".join(engine.stream(replace(request, stop=(stop,)))) == cut.text


@pytest.mark.parametrize("limit", [200, None])
def test_an_answer_ends_where_the_context_does(engine: LocalEngine, limit: int | None) -> None:
    requests = [replace(ask(), messages=[{"role": "user", "content": "x " * n}], max_tokens=limit) for n in (105, 100)]
    long = [r for r in requests if len(engine.prompt(r).tokens) > 200]
    assert long
    for seed in range(20):
        answer = one(engine, replace(long[0], seed=seed))
        if answer.prompt_tokens + answer.tokens == MODEL.max_length:
            assert answer.finish == "length"
            assert answer.text == "".join(engine.stream(replace(long[0], seed=seed)))
            return
    pytest.fail("no answer reached the end of the context")


@pytest.mark.parametrize("mesh", usual(["2x2x2", "tensor"], ["2x2x2"]))
def test_an_engine_on_a_mesh_says_the_same_and_leaves_no_mesh_behind(
    mesh: str, engine: LocalEngine, trained: Path
) -> None:
    spread = LocalEngine.open(trained / "personas", mesh=mesh_of(MESHES[mesh]))
    requests = [ask(m, seed=i) for i, m in enumerate(MIXTURES)]
    assert spread.answer(requests) == engine.answer(requests)
    first, second = spread.stream(requests[0]), spread.stream(requests[1])
    texts = [next(first, ""), next(second, "")]
    assert current_mesh() is None
    texts = [texts[0] + "".join(first), texts[1] + "".join(second)]
    assert current_mesh() is None
    assert texts == [one(engine, r).text for r in requests[:2]]


def test_bfloat16_and_a_base_model(trained: Path) -> None:
    half = LocalEngine.open(trained / "personas", dtype=jnp.bfloat16)
    assert one(half, ask({"abi": 1.0})).tokens > 0
    base = LocalEngine.open(trained / "base")
    assert base.config.persona is None
    assert one(base, ask()).tokens > 0


# --- what a request becomes ----------------------------------------------------------------------


def test_settings_are_the_personas_own_unless_the_request_has_its_own(engine: LocalEngine) -> None:
    def settings(mixture: Mapping[str, float], **own: Any) -> Sampling:
        return engine.settings(Request([], mixture, **own))

    abbey, aviva, _ = (p.sampling for p in engine.personas)
    assert settings({"aviva": 1.0}) == aviva and aviva.temperature == 0.3
    assert settings({"abbey": 0.6, "aviva": 0.4}) == abbey
    assert settings({}) == Sampling()
    mixed = settings({"aviva": 1.0}, temperature=0.0, max_tokens=7, top_k=5, min_p=0.1, repetition_penalty=1.5)
    assert mixed == Sampling(0.0, aviva.top_p, 5, 0.1, 1.5, 7)
    prompt = engine.prompt(ask({"aviva": 1.0}, temperature=None, top_p=None, seed=9))
    assert (prompt.sampling.temperature, prompt.sampling.top_p, prompt.sampling.seed) == (0.3, 0.9, 9)


def test_a_prompt_carries_the_mixture_and_what_all_its_personas_may_read(engine: LocalEngine) -> None:
    mixed = engine.prompt(ask({"abbey": 0.25, "aviva": 0.75, "abi": 0.0}))
    assert mixed.mixture is not None and mixed.mixture.tolist() == [0.25, 0.75, 0, 0]
    assert mixed.reads is not None and not mixed.reads[Role.HISTORY] and mixed.reads[Role.MEMORY]
    assert mixed.response_only and mixed.prompt_reads is not None and mixed.prompt_reads.all()
    abbey = engine.prompt(ask({"abbey": 1.0}))
    assert abbey.reads is not None and abbey.reads.all()
    assert engine.prompt(ask()).mixture is None


def test_without_a_bank_a_persona_speaks_by_its_voice_as_policy(trained: Path) -> None:
    base = LocalEngine.open(trained / "base")
    abbey, aviva = (next(p for p in base.personas if p.name == name) for name in ("abbey", "aviva"))
    alone = base.prompt(ask({"aviva": 1.0}, policy="Be kind."))
    text = base.tokenizer.decode(alone.tokens[alone.roles == Role.POLICY].tolist())
    assert aviva.voice in text and text.index(aviva.voice) < text.index("Be kind.")
    assert alone.mixture is None and alone.reads is not None and not alone.reads[Role.HISTORY]
    both = base.prompt(ask({"abbey": 0.5, "aviva": 0.5}))
    assert all(p.voice in base.tokenizer.decode(both.tokens.tolist()) for p in (abbey, aviva))
    assert aviva.voice not in base.tokenizer.decode(base.prompt(ask()).tokens.tolist())


def test_a_bank_is_served_as_it_was_trained(engine: LocalEngine, trained: Path) -> None:
    config = ModelDirectory(trained / "personas").config
    assert config.persona is not None and engine.prompt(ask({"abbey": 1.0})).response_only
    everywhere = replace(config, persona=replace(config.persona, response_only=False))
    params = ModelDirectory(trained / "personas").load_params()
    other = LocalEngine(everywhere, params, engine.tokenizer, engine.personas)
    assert not other.prompt(ask({"abbey": 1.0})).response_only


def test_a_strict_persona_binds_the_prompt(engine: LocalEngine, trained: Path) -> None:
    directory = ModelDirectory(trained / "personas")
    first, *rest = engine.personas
    strict = replace(first, strict_reading=True, reads=("input", "response"))
    stern = LocalEngine(directory.config, directory.load_params(), engine.tokenizer, (strict, *rest))
    own = [True, False, False, False, True, True]
    prompt = stern.prompt(ask({"abbey": 0.5, "abi": 0.5}))
    assert prompt.reads is not None and prompt.reads.tolist() == own
    assert prompt.prompt_reads is not None and prompt.prompt_reads.tolist() == own
    # a lax persona beside it binds the answer alone, as in training
    with_lax = stern.prompt(ask({"abbey": 0.5, "aviva": 0.5}))
    assert with_lax.reads is not None and with_lax.reads.tolist() == own
    assert with_lax.prompt_reads is not None and with_lax.prompt_reads.tolist() == own
    alone = stern.prompt(ask({"aviva": 1.0}))
    assert alone.prompt_reads is not None and alone.prompt_reads.all()
    assert alone.reads is not None and not alone.reads.all()
    history = [{"role": "user", "content": "{}"}, {"role": "assistant", "content": "Yes."}, ask().messages[0]]

    def said(text: str, name: str) -> str:
        turns = [{**turn, "content": turn["content"].format(text)} for turn in history]
        return one(stern, replace(ask({name: 1.0}), messages=turns)).text

    hidden = ["red", "cat"]
    assert len({len(engine.tokenizer.encode(word)) for word in hidden}) == 1  # what is not read still has its place
    assert said(hidden[0], "abbey") == said(hidden[1], "abbey")


def test_memory_and_policy_stand_in_the_prompt(engine: LocalEngine) -> None:
    request = replace(ask(), memory=("The cluster is called Juno.",), policy="Be kind.")
    prompt = engine.prompt(request)
    by_role = {role: engine.tokenizer.decode(prompt.tokens[prompt.roles == role]) for role in Role}
    assert by_role[Role.MEMORY] == "The cluster is called Juno."
    assert by_role[Role.POLICY] == "Be kind."
    assert by_role[Role.INPUT] == QUESTION


# --- what cannot be asked ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ask({"abby": 1.0}), r"unknown persona 'abby' \(nearest: 'abbey'\)"),
        (ask({"abbey": 0.5, "aviva": 0.6}), r"'abbey=0.5,aviva=0.6' sum to 1.1; expected 1"),
        (ask({"abbey": -1.0, "aviva": 2.0}), "weight of persona 'abbey' is -1.0"),
        (ask(text="long " * 400), r"prompt of \d+ tokens does not fit: the model's context is 256 tokens"),
        (ask(temperature=-1.0), "temperature = -1.0"),
        (ask(top_p=0.0), "top_p = 0.0"),
        (ask(max_tokens=0), "max_tokens = 0"),
        (ask(seed=-1), "seed=-1"),
        (Request([]), "0 messages hold no question"),
        (Request([{"role": "assistant", "content": "hi"}]), "the last of 1 messages is the assistant's"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_a_request_that_cannot_be_answered_says_why(engine: LocalEngine, request_: Request, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine.answer([ask(), request_])
    with pytest.raises(InputError, match=message):
        list(engine.stream(request_))


def test_folders_that_hold_no_model_are_named(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(InputError, match=r"'.*nowhere' does not exist"):
        LocalEngine.open(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="import it first: abi import"):
        LocalEngine.open(tmp_path)
    source = ModelDirectory(trained / "base")
    ModelDirectory.create(tmp_path / "empty", source.config, source.tokenizer)
    with pytest.raises(InputError, match="has no checkpoint; its steps: none"):
        LocalEngine.open(tmp_path / "empty")
    with pytest.raises(InputError, match="has no step 7; its steps: 40"):
        source.load_params(step=7)
    assert np.isfinite(np.asarray(source.load_params(step=40)["embedding"])).all()
