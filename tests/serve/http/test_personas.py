"""Personas that come, change and go while others are spoken with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest

from abi_jax.persona import Persona
from abi_jax.serve import roster
from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.scheduler import Ticket
from tests.serve.http.serving import ASKED, Running, banked, serving, voices

pytestmark = pytest.mark.smoke
NEW: dict[str, Any] = {"name": "nova", "voice": "Speak as nova.", "sampling": {"temperature": 0.0, "max_tokens": 3}}


def names(running: Running) -> list[str]:
    return [each["name"] for each in running.http.get("/v1/abi/personas").json()["data"]]


def ask(running: Running, model: str, **settings: Any) -> Any:
    return running.openai().chat.completions.create(model=model, messages=ASKED, seed=1, **settings)


def test_a_persona_comes_changes_and_goes(tmp_path: Path) -> None:
    path = tmp_path / "personas.yaml"
    with serving(FakeEngine(vocab_size=400, step_seconds=0.01), roster=path) as running:
        stream = ask(running, "abbey", max_tokens=100, stream=True)
        first = next(iter(stream))
        made = running.http.post("/v1/abi/personas", json=NEW)
        assert made.status_code == 201 and made.json()["voice"] == "Speak as nova." and not made.json()["trained"]
        assert ask(running, "nova").usage.completion_tokens == 3
        assert running.http.post("/v1/abi/personas", json=NEW).status_code == 409
        before = ask(running, "nova").usage.prompt_tokens
        longer = {**NEW, "voice": "Speak as nova, slowly and at length."}
        assert running.http.put("/v1/abi/personas/nova", json=longer).json()["voice"] == longer["voice"]
        assert ask(running, "nova").usage.prompt_tokens > before
        assert running.http.delete("/v1/abi/personas/abbey").json()["deleted"]
        assert names(running) == ["aviva", "nova"]
        assert [model.id for model in running.openai().models.list()] == ["aviva", "nova", "base"]
        with pytest.raises(openai.NotFoundError, match="unknown persona 'abbey'"):
            ask(running, "abbey")
        assert first and list(stream)[-1].choices[0].finish_reason == "length"  # who spoke went on
    kept = roster.restore(voices(), path)
    assert kept.names == ("aviva", "nova") and kept.personas[1].voice == longer["voice"]
    assert roster.restore(voices(), tmp_path / "nothing") == voices()


def test_what_is_kept_is_what_differs_from_the_directory(tmp_path: Path) -> None:
    """So whoever is trained later speaks, too, and what was changed and deleted stays so."""
    path = tmp_path / "personas.yaml"
    served = roster.put(banked(), Persona("abbey", voice="Changed."))
    served = roster.put(roster.drop(served, "aviva"), Persona("nova"), {"abbey": 1.0})
    roster.save(served, path)
    kept = roster.restore(banked(), path)
    assert kept == served and kept.names == ("abbey", "nova") and roster.changes(kept) == roster.changes(served)
    third = Persona("third", voice="Trained later.")
    later = replace(banked(), personas=(*banked().personas, third))
    kept = roster.restore(later, path)
    assert kept.names == ("abbey", "third", "nova") and kept.rows == ("abbey", "aviva", "third")
    assert kept.personas[:2] == (Persona("abbey", voice="Changed."), third)
    roster.save(later, path)
    assert roster.restore(later, path) == later


def test_a_file_of_an_earlier_build_names_all_that_there_were(tmp_path: Path) -> None:
    path, all_of = tmp_path / "personas.yaml", voices().personas
    path.write_text("personas:\n- {name: aviva, voice: Changed.}\n- {name: nova, voice: Speak as nova.}\nblends: {}\n")
    later = replace(voices(), personas=(*all_of, Persona("third", voice="Speak as third.")))
    kept = roster.restore(later, path)  # abbey was deleted: whom it knew came after
    assert kept.names == ("aviva", "third", "nova") and kept.personas[0].voice == "Changed."
    path.write_text("personas:\n- {name: nova, voice: Speak as nova.}\nblends: {}\n")
    assert roster.restore(voices(), path).names == ("nova",)


def test_of_trained_personas_new_ones_are_blends() -> None:
    with serving(FakeEngine(vocab_size=400), speaking=banked()) as running:
        assert running.http.post("/v1/abi/personas", json={**NEW, "voice": ""}).json()["error"]["message"] == (
            "persona 'nova' is not trained: expected `like`, weights of abbey, aviva"
        )
        blend = {**NEW, "like": {"abbey": 0.25, "aviva": 0.75}}
        assert running.http.post("/v1/abi/personas", json=blend).json()["like"] == blend["like"]
        jobs: list[Job] = []
        submit = running.service.worker.submit_all

        def heard(asked: Sequence[Job], whose: str) -> list[Ticket]:
            jobs.extend(asked)
            return submit(asked, whose)

        running.service.worker.submit_all = heard  # type: ignore[method-assign, assignment]
        running.http.delete("/v1/abi/personas/abbey")
        for model in ("nova", "nova=0.5,aviva=0.5", "aviva"):
            ask(running, model)
        assert [first_rows(job) for job in jobs] == [[0.25, 0.75, 0], [0.125, 0.875, 0], [0, 1, 0]]
        told = running.http.get("/v1/abi/personas/aviva").json()
        assert told["trained"] and told["like"] is None
        # what is gone comes back where it was
        assert running.http.post("/v1/abi/personas", json={"name": "abbey"}).status_code == 201
        ask(running, "abbey")
        assert first_rows(jobs[-1]) == [1, 0, 0]


def first_rows(job: Job) -> Any:
    """What the first rows of the persona axis weigh."""
    assert job.prompt.mixture is not None
    return job.prompt.mixture[:3].tolist()


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"name": "Nova"}, 400, "name = 'Nova'; expected lower-case letters"),
        ({"name": "base"}, 400, "and not 'base'"),
        ({"voice": " "}, 400, "voice of persona 'nova' is empty"),
        ({"like": {"abbey": 1.0}}, 400, "no trained personas to blend"),
        ({"sampling": {"temperature": -1.0}}, 400, "temperature = -1.0"),
        ({"sampling": {"heat": 1.0}}, 400, "unsupported parameter sampling.heat"),
        ({"reads": ["everything"]}, 400, "reads names 'everything'"),
        ({"mood": "gay"}, 400, "unsupported parameter mood"),
    ],
    ids=str,
)
def test_who_cannot_be_is_named(plain: Running, change: dict[str, Any], status: int, message: str) -> None:
    answer = plain.http.post("/v1/abi/personas", json=NEW | change)
    assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert names(plain) == ["abbey", "aviva"]


def test_who_is_not_there(plain: Running) -> None:
    for method, body in (("GET", None), ("PUT", NEW), ("DELETE", None)):
        answer = plain.http.request(method, "/v1/abi/personas/nova", json=body)
        assert answer.status_code == 404 and "there are abbey, aviva" in answer.json()["error"]["message"]
    assert plain.http.put("/v1/abi/personas/abbey", json=NEW).json()["error"]["param"] == "name"
