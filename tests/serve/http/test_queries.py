"""Answers that are fetched later, looked up and ended by id."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest

from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http.auth import Gate
from abi_jax.serve.http.keys import Key, KeyRing, Principal, add_key
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.queries import Queries
from abi_jax.wdbx.policy import Role
from tests.serve.http.serving import ASKED, ENDLESS, LASTING, PausingEngine, Running, serving, until

pytestmark = pytest.mark.smoke
ASK: dict[str, Any] = {"model": "abbey", "messages": ASKED, "max_tokens": 5, "seed": 1}
LONG: dict[str, Any] = {**ASK, "max_tokens": ENDLESS}


def status(running: Running, id_: str) -> str:
    found: str = running.http.get(f"/v1/abi/queries/{id_}").json()["status"]
    return found


def test_an_answer_is_fetched_later(plain: Running) -> None:
    begun = plain.http.post("/v1/abi/process", json=ASK)
    assert begun.status_code == 202
    id_ = begun.json()["id"]
    until(lambda: status(plain, id_) == "done")
    found = plain.http.get(f"/v1/abi/queries/{id_}").json()
    at_once = plain.http.post("/v1/chat/completions", json=ASK).json()
    assert found["answer"]["choices"] == at_once["choices"] and found["usage"] == at_once["usage"]
    assert found["error"] is None and found["mixture"] == {"abbey": 1.0}
    assert id_ in [each["id"] for each in plain.http.get("/v1/abi/queries").json()["data"]]
    assert plain.http.delete(f"/v1/abi/queries/{id_}").json()["status"] == "done"
    assert plain.http.get("/v1/abi/queries/nothing").status_code == 404
    assert plain.http.post("/v1/abi/process", json={**ASK, "stream": True}).json()["error"]["param"] == "stream"


def test_a_query_is_ended_whoever_waits_for_it() -> None:
    engine = FakeEngine(**LASTING)
    with serving(engine) as running:
        id_ = running.http.post("/v1/abi/process", json=LONG).json()["id"]
        until(lambda: status(running, id_) == "speaking")
        assert running.http.delete(f"/v1/abi/queries/{id_}").json()["status"] == "cancelled"
        until(lambda: not engine.works)
        assert running.http.get(f"/v1/abi/queries/{id_}").json()["error"]["code"] == "cancelled"
        stream = running.openai().chat.completions.create(**LONG, stream=True)
        running.http.delete(f"/v1/abi/queries/{next(iter(stream)).id}")
        with pytest.raises(openai.APIError, match="the query was cancelled"):
            list(stream)
        assert running.http.get("/v1/abi/queries").json()["data"][1:] == []


def test_answers_that_nobody_fetches_are_forgotten() -> None:
    with serving(FakeEngine(vocab_size=400), Limits(kept_queries=2)) as running:
        ids = [running.http.post("/v1/abi/process", json=ASK).json()["id"] for _ in range(4)]
        until(lambda: len(running.http.get("/v1/abi/queries").json()["data"]) == 2)
        assert running.http.get(f"/v1/abi/queries/{ids[0]}").status_code == 404


def test_the_list_has_no_answers_and_what_is_kept_no_prompts() -> None:
    with serving(FakeEngine(**LASTING)) as running:
        ids = [running.http.post("/v1/abi/process", json={**ASK, "max_tokens": n}).json()["id"] for n in (2, ENDLESS)]
        until(lambda: status(running, ids[0]) == "done")
        running.http.delete(f"/v1/abi/queries/{ids[1]}")
        until(lambda: ids[1] in running.service.queries._kept)
        listed = running.http.get("/v1/abi/queries").json()["data"]
        assert [each["status"] for each in listed] == ["done", "cancelled"]
        assert not any("answer" in each for each in listed)
        assert running.http.get(f"/v1/abi/queries/{ids[0]}").json()["answer"]["choices"]
        for kept in running.service.queries._kept.values():
            assert kept.made is None and kept.error is None  # an error's traceback would hold all that its frames do


def test_who_keeps_the_most_makes_room() -> None:
    queries = Queries(most=4, most_bytes=10_000, seconds=60)
    few, many = Principal("a", Role.ADMIN, "few"), Principal("b", Role.ADMIN, "many")

    def keep(owner: Principal, id_: str, size: int = 1) -> None:
        choice: Any = SimpleNamespace(ticket=None)
        asked = SimpleNamespace(model="base", mixture={})
        made: Any = SimpleNamespace(
            id=id_, created=0, asked=asked, choices=[choice], given_up=None, usage=dict[str, int]
        )
        queries.add(made, owner)
        queries.keep(made).answer = b"x" * size
        queries.ended(made)

    keep(few, "few")
    for n in range(20):
        keep(many, str(n))
    assert [each.id for each in queries.all(few)] == ["few"] and len(queries.all(many)) == 3
    keep(many, "large", 5000)
    assert [each.id for each in queries.all(few)] == ["few"] and [each.id for each in queries.all(many)] == ["large"]
    keep(many, "huge", 20_000)
    assert queries.find("huge", many).status == "failed" and queries.find("few", few).answer == b"x"


def test_errors_that_are_raised_are_raised_once() -> None:
    engine, seen = FakeEngine(**LASTING), []
    with serving(engine) as running:
        add = running.service.queries.add

        def watched(made: Any, owner: Principal) -> Any:
            seen.append(made)
            return add(made, owner)

        running.service.queries.add = watched  # type: ignore[method-assign]
        for _ in range(2):
            with running.http.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}):
                until(lambda: engine.works)
            until(lambda: not engine.works)
        first, second = (made.given_up for made in seen)
        assert first is not second and first.status == second.status == 499


def test_queries_are_their_owners(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    of = {
        name: add_key(path, Key(name, "0" * 64, role, tenant))
        for name, role, tenant in (
            *(("mine", "reader", "acme"), ("colleague", "reader", "acme"), ("boss", "admin", "acme")),
            *(("stranger", "reader", "other"), ("their-boss", "admin", "other")),
        )
    }
    with serving(FakeEngine(vocab_size=400), gate=Gate(KeyRing(path))) as running:

        def call(method: str, where: str, name: str, body: Any = None) -> Any:
            headers = {"authorization": f"Bearer {of[name]}"}
            return running.http.request(method, f"/v1/abi/{where}", headers=headers, json=body)

        id_ = call("POST", "process", "mine", ASK).json()["id"]
        for name, seen in (("mine", 200), ("boss", 200), ("colleague", 404), ("stranger", 404), ("their-boss", 404)):
            assert call("GET", f"queries/{id_}", name).status_code == seen, name
            assert call("DELETE", f"queries/{id_}", name).status_code == seen, name
            assert len(call("GET", "queries", name).json()["data"]) == (seen == 200)


def test_what_runs_in_the_background_is_finished_before_the_end() -> None:
    engine = PausingEngine(vocab_size=400, pause=20)
    with serving(engine) as running:
        id_ = running.http.post("/v1/abi/process", json={**ASK, "max_tokens": 30}).json()["id"]
        running.server.handle_exit(15, None)
        until(lambda: running.http.get("/ready").status_code == 503)
        assert status(running, id_) in ("waiting", "reading", "speaking") and not running.server.should_exit
        engine.hold.clear()
        until(lambda: running.server.should_exit)
        (found,) = running.service.queries.all(running.service.queries._kept[id_].owner)
        assert found.status == "done"
