"""Memories of the vector store in the prompt of an answer, and what is told of them."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from abi_jax import wdbx
from abi_jax.serve.http.auth import Gate
from abi_jax.serve.http.keys import Key, KeyRing, add_key
from abi_jax.serve.replay import changed_memories
from tests.serve.http.serving import ASKED, Running, serving, tokenizer
from tests.serve.http.test_store import encoder

pytestmark = pytest.mark.smoke
TEXTS = ["The cluster is reset with the red button.", "Cats sleep.", "Builds fail when the disk is full."]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[wdbx.Database]:
    with wdbx.open(tmp_path / "store.wdbx", encoder=encoder) as store:
        notes = store.create_collection("notes", encoder=encoder, schema={"topic": "str"})
        notes.upsert(["a", "b", "c"], documents=TEXTS, metadata=[{"topic": t} for t in ("ops", "pets", "ops")])
        yield store


@pytest.fixture
def remembering(store: wdbx.Database) -> Iterator[Running]:
    with serving(store=store, store_encoder=encoder) as running:
        yield running


def ask(running: Running, memory: Any, messages: Any = ASKED) -> tuple[dict[str, Any], str]:
    """The extension field of an answer, and the prompt that the engine was given, as text."""
    seen: list[Any] = []
    engine: Any = running.service.worker.engine
    check = engine.check

    def watched(job: Any) -> None:
        seen.append(job)
        check(job)

    engine.check = watched
    try:
        body = {"abi": {"memory": memory}}
        answer = running.openai().chat.completions.create(model="abbey", messages=messages, extra_body=body)
    finally:
        engine.check = check
    return answer.model_extra["abi"], tokenizer().decode(seen[0].prompt.tokens)


def test_what_a_function_returned_is_no_question(remembering: Running) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    turns = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": TEXTS[1]}]
    told, _ = ask(remembering, {"collection": "notes", "mode": "keyword"}, [*ASKED, *turns])
    assert [memory["id"] for memory in told["memories"]] == ["c"]


def test_what_the_question_finds_is_remembered_and_told_with_its_version(
    remembering: Running, store: wdbx.Database
) -> None:
    told, prompt = ask(remembering, {"collection": "notes", "top_k": 2, "texts": ["Said by hand."]})
    hits = store.collection("notes").query(text=ASKED[0]["content"], top_k=2)
    assert [m["id"] for m in told["memories"]] == [hit.id for hit in hits]
    for memory, hit in zip(told["memories"], hits, strict=True):
        assert memory["text"] == hit.document and memory["text"] in prompt
        assert memory["sha256"] == hashlib.sha256(hit.document.encode()).hexdigest()
        assert memory["version"] == store.version and memory["link"] == store.link()
        assert memory["score"] == pytest.approx(hit.score)
    assert prompt.index("Said by hand.") < prompt.index(hits[0].document)
    assert told["latency_ms"]["memory"] > 0


def test_a_scope_narrows_what_is_found(remembering: Running, store: wdbx.Database) -> None:
    told, _ = ask(remembering, {"collection": "notes", "where": {"topic": "pets"}})
    assert [m["id"] for m in told["memories"]] == ["b"]
    told, _ = ask(remembering, {"collection": "notes", "query": "disk", "mode": "keyword", "top_k": 1})
    assert [m["id"] for m in told["memories"]] == ["c"]
    told, prompt = ask(remembering, {"collection": "notes", "min_score": 2.0})
    assert told["memories"] == [] and "remembered" not in prompt
    before = store.version
    store.collection("notes").upsert(["d"], documents=["Builds fail on Mondays."], metadata=[{"topic": "ops"}])
    for at, found in ((before, 3), (None, 4)):
        told, _ = ask(remembering, {"collection": "notes", "top_k": 10, **({} if at is None else {"at": at})})
        assert len(told["memories"]) == found and {m["version"] for m in told["memories"]} == {at or store.version}


@pytest.mark.parametrize(
    ("memory", "status", "message"),
    [
        ({"collection": "nothing"}, 404, "no collection 'nothing'"),
        ({"top_k": 2}, 400, "abi.memory.top_k = 2: expected abi.memory.collection"),
        ({"collection": "notes", "where": {"topic": 3}}, 400, "topic"),
        ({"collection": "notes", "at": 99}, 400, "99"),
        ({"collection": "bare"}, 400, "no text"),
        ({"collection": "notes", "top_k": 0}, 400, "top_k"),
    ],
)
def test_what_cannot_be_remembered_is_refused_by_name(
    remembering: Running, store: wdbx.Database, memory: Any, status: int, message: str
) -> None:
    bare = store.create_collection("bare", dim=3, encoder=encoder)
    bare.upsert(["x"], np.ones((1, 3), np.float32))
    with pytest.raises(openai.APIStatusError, match=message) as refused:
        ask(remembering, memory)
    assert refused.value.status_code == status


def test_a_server_without_a_store_says_so(plain: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="no vector store"):
        ask(plain, {"collection": "notes"})


def test_a_tenant_remembers_what_is_its_own(store: wdbx.Database, tmp_path: Path) -> None:
    mine = store.create_collection("red.notes", encoder=encoder)
    mine.upsert(["r"], documents=["Only red knows."])
    path = tmp_path / "keys.yaml"
    keys = {name: add_key(path, Key(name, "0" * 64, "reader", name)) for name in ("red", "blue")}
    with serving(store=store, store_encoder=encoder, gate=Gate(KeyRing(path))) as running:
        ask_as = {name: running.openai(key).chat.completions for name, key in keys.items()}
        body = {"abi": {"memory": {"collection": "notes"}}}
        answer = ask_as["red"].create(model="abbey", messages=ASKED, extra_body=body)
        told = answer.model_extra["abi"]["memories"]
        assert [(m["text"], m["tenant"], m["collection"]) for m in told] == [("Only red knows.", "red", "notes")]
        with pytest.raises(openai.NotFoundError):
            ask_as["blue"].create(model="abbey", messages=ASKED, extra_body=body)
        store.create_collection("blue.notes", encoder=encoder).upsert(["s"], documents=["Only blue knows."])
        assert changed_memories(told, store) == []
        mine.upsert(["r"], documents=["Red forgot."])
        store.collection("blue.notes").upsert(["r"], documents=["Only red knows."])
        now = [{**told[0], "version": store.version, "link": store.link(store.version)}]
        assert "has another text" in changed_memories(now, store)[0], "another tenant's row of that id is none"
        old = [{name: value for name, value in now[0].items() if name != "tenant"}]
        assert changed_memories(old, store) == []  # of a receipt that says of no tenant, it is


def test_a_memory_that_is_not_as_it_was_is_named(remembering: Running, store: wdbx.Database) -> None:
    told, _ = ask(remembering, {"collection": "notes", "top_k": 1, "query": "cats"})
    (memory,) = told["memories"]
    assert changed_memories([memory], store) == []
    name = f"memory notes/{memory['id']} of version {memory['version']}"
    assert changed_memories([{**memory, "sha256": "0" * 64}], store) == [f"{name} has another text"]
    assert changed_memories([{**memory, "id": "q"}], store) == [
        f"memory notes/q of version {store.version} is not there"
    ]
    assert changed_memories([{**memory, "link": "0" * 64}], store) == [f"{name}: that version of the store is another"]
