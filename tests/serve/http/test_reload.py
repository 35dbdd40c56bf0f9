"""Another step of the model while it is served."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.serve.answered import Answered
from abi_jax.serve.engine.fake import FakeEngine, FakeWork
from abi_jax.serve.voices import Voices
from tests.serve.http.serving import ASKED, Running, serving, until, voices

pytestmark = pytest.mark.smoke
LONG: dict[str, Any] = {"model": "base", "messages": ASKED, "max_tokens": 60, "seed": 1}


@dataclass(frozen=True)
class OfStep:
    """The lineage of a step."""

    step: int

    def told(self) -> Mapping[str, Any]:
        return {"model": {"step": self.step}, "memory": None}

    def receipt(self, about: Answered) -> Mapping[str, Any]:
        return {"step": self.step}


@dataclass
class Steps:
    """Steps up to 5; a step of the fake engine says other words."""

    engine: FakeEngine
    running: list[int] = field(default_factory=list)
    voices: Voices = field(default_factory=voices)
    lineage: OfStep = OfStep(0)

    def load(self, step: int | None, speaking: Voices) -> "Steps":
        step = 5 if step is None else step
        if step > 5:
            raise InputError(f"step {step} is not there")
        return Steps(self.engine, self.running, speaking, OfStep(step))

    def apply(self) -> None:
        self.running.append(len(self.engine.works))
        self.engine.script = (50 + self.lineage.step,) * 1000


@dataclass
class Full(FakeEngine):
    """Holds when somebody takes the last slot, the first time after `watched` was set."""

    watched: bool = True

    def insert(self, work: FakeWork, slot: int) -> None:
        super().insert(work, slot)
        if self.watched and len(self.works) == self.slots:
            self.watched = False
            self.hold.set()


def reloaded(running: Running, engine: Full, step: int | None) -> Any:
    """What is told of another step that is asked for while all slots speak."""
    until(engine.hold.is_set)
    told: list[Any] = []
    body = {} if step is None else {"step": step}
    thread = threading.Thread(target=lambda: told.append(running.http.post("/v1/abi/reload", json=body).json()))
    thread.start()
    until(lambda: running.service.worker._changes)
    engine.hold.clear()
    thread.join()
    return told[0]


def test_answers_are_of_one_step_each_and_none_is_lost() -> None:
    engine = Full(vocab_size=400, slots=2, script=(50,) * 1000)
    steps = Steps(engine)
    with serving(engine, reloader=steps, lineage=OfStep(0)) as running:
        found: list[Any] = []

        def ask() -> None:
            found.append(running.http.post("/v1/chat/completions", json=LONG | {"abi": {"receipt": True}}).json())

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        told = reloaded(running, engine, 3)
        assert told["previous"]["model"]["step"] == 0 and told["lineage"]["model"]["step"] == 3
        for thread in threads:
            thread.join()
        assert steps.running == [0]  # nobody spoke when it changed
        seen = []
        for answer in found:
            (choice,) = answer["choices"]
            step = answer["abi"]["lineage"]["model"]["step"]
            token = running.service.voices.tokenizer.decode([50 + step])
            assert choice["message"]["content"] == token * 60 and answer["abi"]["receipts"] == [{"step": step}]
            seen.append(step)
        assert sorted(seen) == [0, 0, 3, 3, 3, 3]
        # choices of one answer, too, know which step each is of
        engine.watched = True
        thread = threading.Thread(target=lambda: found.append(running.openai().chat.completions.create(**LONG, n=3)))
        thread.start()
        reloaded(running, engine, None)
        thread.join()
        assert [each["model"]["step"] for each in found[-1].abi["lineages"]] == [3, 3, 5]


def test_what_cannot_be_loaded_changes_nothing() -> None:
    engine = FakeEngine(vocab_size=400)
    with serving(engine, reloader=Steps(engine), lineage=OfStep(0)) as running:
        refused = running.http.post("/v1/abi/reload", json={"step": 9})
        assert refused.status_code == 409 and refused.json()["error"]["message"] == "step 9 is not there"
        assert running.http.post("/v1/chat/completions", json=LONG).json()["abi"]["lineage"]["model"]["step"] == 0


def test_without_a_directory_that_is_said(plain: Any) -> None:
    assert plain.http.post("/v1/abi/reload", json={}).status_code == 404
