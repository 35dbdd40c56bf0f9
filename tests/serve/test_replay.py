"""Receipts of answers, and what is said of one that is regenerated."""

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from abi_jax.cli import main
from abi_jax.errors import InputError
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.users import from_arrays, shapes
from abi_jax.serve.answered import Answered, Ending
from abi_jax.serve.engine.config import EngineConfig
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.grammar import Grammars, of_regex
from abi_jax.serve.receipt import digest, engine_section, read
from abi_jax.serve.replay import Replayed, Replayer
from abi_jax.serve.scheduler import Scheduler, Ticket
from abi_jax.serve.served import Served
from abi_jax.serve.users import UserFolder
from abi_jax.serve.voices import Request, Voices
from abi_jax.text import TextStream
from tests.serve.jobs import run, said

pytestmark = pytest.mark.optimized  # bits are those that users get

SIZES = EngineConfig(slots=4, page_size=16, chunk=32)
MIXTURES: list[dict[str, float]] = [{"abbey": 1.0}, {"aviva": 1.0}, {"abbey": 0.5, "aviva": 0.5}, {}]


@dataclass(frozen=True)
class Server:
    """A served model directory, without HTTP."""

    directory: ModelDirectory
    voices: Voices
    engine: PagedEngine
    served: Served
    grammars: Grammars

    @classmethod
    def open(cls, path: Path, settings: EngineConfig = SIZES) -> "Server":
        directory = ModelDirectory.open(path)
        voices, step = Voices.of(directory), directory.selected_step()
        assert step is not None
        params = directory.load_params(step=step)
        engine = PagedEngine(directory.config, params, stop_ids=voices.tokenizer.eos_ids, settings=settings)
        served = Served.of(directory, step, params, engine)
        return cls(directory, voices, engine, served, Grammars(voices.tokenizer, engine.vocab_size))

    def ask(self, text: str, mixture: dict[str, float], **settings: Any) -> Job:
        wanted = {k: settings.pop(k) for k in ("temperature", "seed", "top_p") if k in settings}
        request = Request([{"role": "user", "content": text}], mixture, **wanted)
        return replace(Job(self.voices.prompt(request), 12), **settings)

    def answer(self, jobs: Sequence[Job]) -> list[list[int]]:
        scheduler, tickets = Scheduler(self.engine), [Ticket(job) for job in jobs]
        for ticket in tickets:
            scheduler.submit(ticket)
        events = run(scheduler)
        return [said(events, ticket)[0] for ticket in tickets]

    def receipt(self, job: Job, tokens: list[int], mixture: dict[str, float], stops: tuple[str, ...] = ()) -> Any:
        """Of an answer that ended by itself, at its limit, or at a stop string."""
        text = TextStream(self.voices.tokenizer, stops)
        for n, token in enumerate(tokens, 1):
            text.push(token)
            if text.stopped:
                tokens = tokens[:n]
                break
        ending = Ending("length" if len(tokens) == job.max_tokens and not text.stopped else "stop", text.stop)
        return json.loads(json.dumps(self.served.receipt(Answered(job, tokens, mixture, ending, stops))))


@pytest.fixture(scope="module")
def server(trained: Path) -> Server:
    return Server.open(trained / "personas")


@pytest.fixture(scope="module")
def one(server: Server) -> Any:
    job = server.ask("My build fails.", MIXTURES[2], temperature=1.0, seed=7)
    return server.receipt(job, server.answer([job])[0], MIXTURES[2])


def replayed(server: Server, receipt: Any, path: Path | None = None) -> Replayed:
    directory = server.directory if path is None else ModelDirectory.open(path)
    return Replayer(directory).replay(read(receipt, "receipt"))


@pytest.mark.slow
def test_100_answers_made_beside_others_are_bit_identical_when_each_is_made_again_alone(server: Server) -> None:
    rng = random.Random(0)
    mixtures = [rng.choice(MIXTURES) for _ in range(100)]
    jobs = [
        server.ask(
            rng.choice(["Hello.", "My build fails and I am stuck.", "Why?", "I feel alone. " * 6]),
            mixture,
            temperature=rng.choice([0.0, 0.8, 1.3]),
            top_p=rng.choice([1.0, 0.9]),
            seed=rng.randrange(2**32),
            frequency_penalty=rng.choice([0.0, 0.7]),
            logit_bias=rng.choice([{}, {65: 3.0}]),
            grammar=server.grammars.make(of_regex("[a-z ]+")) if rng.random() < 0.2 else None,
        )
        for mixture in mixtures
    ]
    answers = server.answer(jobs)
    assert len({tuple(a) for a in answers}) > 40
    replayer = Replayer(server.directory)
    for job, tokens, mixture in zip(jobs, answers, mixtures, strict=True):
        found = replayer.replay(read(server.receipt(job, tokens, mixture), "receipt"))
        assert found.identical and found.tokens == tuple(tokens), found


def test_an_answer_made_with_guesses_is_bit_identical_when_it_is_made_again(server: Server) -> None:
    """By an engine that guesses, too: the receipt's settings say how."""
    engine = PagedEngine(
        server.directory.config,
        server.directory.load_params(step=server.directory.selected_step()),
        stop_ids=server.voices.tokenizer.eos_ids,
        settings=replace(SIZES, lookup=3),
    )
    guessing = replace(server, engine=engine, served=replace(server.served, engine=engine_section(engine)))
    job = replace(server.ask("ab ab ab ab ab", MIXTURES[2], temperature=0.8, seed=7), max_tokens=40)
    (tokens,) = guessing.answer([job])
    receipt = guessing.receipt(job, tokens, MIXTURES[2])
    assert receipt["engine"]["settings"]["lookup"] == 3
    found = replayed(guessing, receipt)
    assert found.identical and not found.different and found.tokens == tuple(tokens), found


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("request", {"sampling": {"temperature": 0.5}}),
        ("request", {"w": [0.0, 1.0, 0.0, 0.0]}),
        ("answer", {"tokens": [1, 2, 3]}),
        ("engine", {"cores": 3}),
        ("model", {"weights": "0" * 64}),
    ],
)
def test_a_section_that_was_changed_is_named(server: Server, one: Any, section: str, change: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(one))
    for name, value in change.items():
        changed[section][name] = {**changed[section][name], **value} if isinstance(value, dict) else value
    found = replayed(server, changed)
    assert not found.identical
    assert f"section {section!r} was changed" in found.wrong[0]


def test_another_answer_is_told_where_it_differs(server: Server, one: Any) -> None:
    """By somebody who mends the digest, too."""
    tokens = [*one["answer"]["tokens"][:3], 5, *one["answer"]["tokens"][4:]]
    found = replayed(server, mended(one, "answer", tokens=tokens))
    assert found.wrong == (f"token 4 of 12 is {one['answer']['tokens'][3]}; the receipt says 5",)
    assert replayed(server, one).identical


def mended(receipt: Any, section: str, **changes: Any) -> Any:
    """The receipt with something else in a section, and its digest."""
    found = {**receipt[section], **changes}
    return {**receipt, section: found, "digests": {**receipt["digests"], section: digest(section, found)}}


def test_the_end_is_said_again_too(server: Server, one: Any) -> None:
    assert (one["request"]["max_tokens"], one["answer"]["finish"]) == (12, "length")
    job = server.ask("My build fails.", MIXTURES[2], temperature=1.0, seed=7)
    tokens = one["answer"]["tokens"]
    word = server.voices.tokenizer.decode(tokens[4:6])
    stopped = server.receipt(job, tokens, MIXTURES[2], ("never said", word))
    assert stopped["answer"]["stop"] == word and len(stopped["answer"]["tokens"]) < 12
    found = replayed(server, stopped)
    assert found.identical and str(found.ending) == f"stop at {word!r}"
    shorter = mended(mended(one, "answer", tokens=tokens[:5]), "request", max_tokens=5)
    assert replayed(server, shorter).identical


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("answer", {"finish": "stop"}, "the answer ended with length; the receipt says stop"),
        ("answer", {"stop": "x"}, "the answer ended with length; the receipt says length at 'x'"),
        ("request", {"max_tokens": 11}, "token 12 of 12 is the end; the receipt says "),
        ("request", {"max_tokens": 13, "ignore_eos": True}, "token 13 of 12 is "),
        ("request", {"max_tokens": 0}, "token 1 of 12 is the end; the receipt says "),
    ],
)
def test_an_end_that_was_none_is_named(
    server: Server, one: Any, section: str, changes: dict[str, Any], message: str
) -> None:
    """By somebody who mends the digest, too."""
    found = replayed(server, mended(one, section, **changes))
    assert not found.identical and found.wrong[0].startswith(message)


def test_receipts_that_say_nothing_of_the_end_are_read(server: Server, one: Any) -> None:
    request = {name: value for name, value in one["request"].items() if name not in ("max_tokens", "stop")}
    answer = {"tokens": one["answer"]["tokens"][:7]}
    digests = one["digests"] | {"request": digest("request", request), "answer": digest("answer", answer)}
    found = replayed(server, {**one, "version": 1, "request": request, "answer": answer, "digests": digests})
    assert found.identical and found.ending is None and len(found.tokens or ()) == 7


def test_what_is_not_as_it_was_is_told_and_need_not_matter(server: Server, one: Any) -> None:
    engine = {**one["engine"], "jax": "0.9.0", "cores": 96}
    elsewhere = {**one, "engine": engine, "digests": {**one["digests"], "engine": digest("engine", engine)}}
    found = replayed(server, elsewhere)
    assert found.identical
    assert [line.split()[0] for line in found.different] == ["cores", "jax"]


def test_a_changed_weight_is_named(server: Server, one: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load = ModelDirectory.load_params

    def changed(*args: Any, **kwargs: Any) -> Any:
        params = load(*args, **kwargs)
        norm = params["layers"]["1"]["mlp_norm"]
        return params | {"layers": params["layers"] | {"1": params["layers"]["1"] | {"mlp_norm": _more(norm)}}}

    monkeypatch.setattr(ModelDirectory, "load_params", changed)
    found = replayed(server, one)
    assert not found.identical and "params/layers.1.mlp_norm.weight changed" in found.wrong[0]


def _more(tree: Any) -> Any:
    return jax.tree.map(lambda x: x + np.float32(0.5), tree)


def test_another_model_is_named(server: Server, one: Any, trained: Path, tmp_path: Path) -> None:
    found = replayed(server, one, trained / "base")
    assert found.tokens is None or not found.identical
    assert "its chain has no link" in found.wrong[0]
    copy = tmp_path / "copy"
    shutil.copytree(trained / "personas", copy)
    (step,) = (copy / "checkpoints").iterdir()
    shutil.rmtree(step)
    found = replayed(server, one, copy)
    assert found.tokens is None and "is not kept any more" in found.wrong[0]


def test_a_bank_of_another_size_is_named(server: Server, one: Any) -> None:
    receipt = read(one, "receipt")
    w = receipt.request["w"]
    found = replayed(server, {**one, "request": {**receipt.request, "w": [*w, 0.0]}})
    expected = f"the request cannot be done: a mixture of {len(w) + 1} weights; expected {len(w)}"
    assert found.tokens is None and expected in found.wrong[-1]


def test_an_answer_of_a_user_with_an_adaptation_needs_it_as_it_was(server: Server, tmp_path: Path) -> None:
    config = server.directory.config
    users = UserFolder(tmp_path, config)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes(config).items()}
    users.put("ada", from_arrays(config, arrays, "test"))
    params = server.directory.load_params(step=server.served.model["step"])
    settings = replace(SIZES, users=1)
    engine = PagedEngine(
        config, params, settings=settings, stop_ids=server.voices.tokenizer.eos_ids, adaptations=users.get
    )
    served = replace(server.served, engine=engine_section(engine))
    job = server.ask("Hello.", MIXTURES[0], temperature=0.0, user="ada", ignore_eos=True)
    (tokens,) = replace(server, engine=engine).answer([job])
    assert tokens != server.answer([replace(job, user="")])[0]
    found = users.get("ada")
    assert found is not None
    about = Answered(job, tokens, MIXTURES[0], Ending("length"), adaptation=found[1])
    told = served.receipt(about)
    receipt = read(json.loads(json.dumps(told)), "receipt")
    assert Replayer(server.directory, users=users).replay(receipt).identical
    assert "expected the folder" in Replayer(server.directory).replay(receipt).wrong[0]
    users.put("ada", from_arrays(config, {n: a * 2 for n, a in arrays.items()}, "test"))
    assert "user 'ada' is another" in Replayer(server.directory, users=users).replay(receipt).wrong[0]


@pytest.mark.parametrize("value", [{}, [], {"abi": {"receipts": []}}, {"version": 1}, 3])
def test_what_is_no_receipt_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="receipt"):
        read(value, "file")


def test_a_receipt_of_another_version_or_shape_is_refused(one: Any) -> None:
    with pytest.raises(InputError, match="version 3; expected 1 or 2"):
        read({**one, "version": 3}, "file")
    with pytest.raises(InputError, match="finish = 'tired'"):
        read({**one, "answer": {**one["answer"], "finish": "tired"}}, "file")
    with pytest.raises(InputError, match="KeyError: 'finish'"):
        read({**one, "answer": {"tokens": [1]}}, "file")
    with pytest.raises(InputError, match="KeyError"):
        read({**one, "request": {}}, "file")


def test_the_command(
    server: Server, one: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where no model is
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps({"id": "chatcmpl-1", "abi": {"receipts": [one]}}))
    model = ["--model", str(server.directory.path)]
    assert main(["replay", str(path), *model]) == 0
    assert "12 tokens, bit-identical" in capsys.readouterr().out
    path.write_text(json.dumps({**one, "answer": {**one["answer"], "tokens": [1]}}))
    assert main(["replay", str(path), "--json", *model]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
    assert main(["replay", str(path)]) == 2
    assert "expected --model DIR" in capsys.readouterr().err
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "personas").symlink_to(server.directory.path)
    path.write_text(json.dumps(one))
    assert main(["replay", str(path)]) == 0
    path.write_text("{")
    assert main(["replay", str(path)]) == 2
