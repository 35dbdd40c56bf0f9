"""The vector store over HTTP: what it does, and for whom."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.serve.http.auth import Gate
from abi_jax.serve.http.keys import Key, KeyRing, add_key
from abi_jax.serve.voices import Voices
from abi_jax.wdbx.policy import make_policy
from tests.serve.http.serving import Running, serving

pytestmark = pytest.mark.smoke
ALL = "/v1/wdbx/collections"
NOTES = f"{ALL}/notes"
MADE = {"name": "notes", "dim": 3, "fields": {"topic": "str", "when": "time", "raw": "bytes"}}
ROWS = {"ids": ["a", "b"], "vectors": [[1.0, 0, 0], [0, 1.0, 0]], "metadata": [{"topic": "x"}, {"topic": "y"}]}
RECALLING: dict[str, Any] = {
    "model": "base",
    "messages": [{"role": "user", "content": "?"}],
    "abi": {"memory": {"collection": "notes", "query": "x", "mode": "keyword"}},
}


def encoder(texts: list[str]) -> np.ndarray:
    return np.array([[len(text), text.count("o"), 1] for text in texts], np.float32)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Running]:
    with wdbx.open(tmp_path / "store.wdbx") as store, serving(store=store, store_encoder=encoder) as running:
        yield running


def test_rows_come_are_found_and_go(stored: Running) -> None:
    http = stored.http
    made = http.post(ALL, json=MADE)
    assert made.status_code == 201 and made.json()["rows"] == 0 and made.json()["metric"] == "cosine"
    assert http.post(ALL, json=MADE).status_code == 409
    written = http.post(f"{NOTES}/upsert", json=ROWS).json()["version"]
    (hit,) = http.post(f"{NOTES}/query", json={"vector": [1.0, 0.1, 0], "top_k": 1}).json()["data"]
    assert hit["id"] == "a" and hit["score"] > 0.9 and hit["metadata"] == {"topic": "x"}
    filtered = http.post(f"{NOTES}/query", json={"vector": [1.0, 0, 0], "where": {"topic": "y"}}).json()
    assert [each["id"] for each in filtered["data"]] == ["b"] and filtered["version"] == written
    got = http.post(f"{NOTES}/get", json={"ids": ["b", "nobody"], "vectors": True}).json()["data"]
    assert got[0]["vector"] == [0, 1, 0] and got[0]["born"] == written and got[1] is None
    gone = http.post(f"{NOTES}/delete", json={"ids": ["a", "nobody"]}).json()
    assert gone["deleted"] == 1 and gone["version"] > written
    assert http.get(NOTES).json()["rows"] == 1
    before = http.post(f"{NOTES}/get", json={"ids": ["a"], "at": written}).json()["data"]
    assert before[0]["metadata"] == {"topic": "x"}
    assert [each["name"] for each in http.get(ALL).json()["data"]] == ["notes"]
    assert http.delete(NOTES).status_code == 200 and http.get(NOTES).status_code == 404


def test_texts_are_rows_where_there_is_an_encoder(stored: Running) -> None:
    http = stored.http
    assert http.post(ALL, json={"name": "texts", "texts": True}).json()["dim"] == 3
    documents = ["foo", "a longer text"]
    http.post(f"{ALL}/texts/upsert", json={"ids": ["a", "b"], "documents": documents}).raise_for_status()
    for mode in ("vector", "keyword", "hybrid"):
        found = http.post(f"{ALL}/texts/query", json={"text": "foo", "top_k": 1, "mode": mode}).json()["data"]
        assert [(each["id"], each["document"]) for each in found] == [("a", "foo")], mode


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("", {"name": "n"}, 400, "dim None"),
        ("", {"name": "../up", "dim": 3}, 400, "collection name"),
        ("", {"name": "n", "dim": 0}, 400, "dim = 0"),
        ("/nothing/query", {"vector": [1.0]}, 404, "there is no collection 'nothing'"),
        ("/notes/query", {"vector": [1.0]}, 400, "3"),
        ("/notes/query", {}, 400, ""),
        ("/notes/query", {"vector": [1.0, 0, 0], "where": {"colour": "red"}}, 400, "colour"),
        ("/notes/query", {"vector": [1.0, 0, 0], "at": 99}, 400, "99"),
        ("/notes/upsert", {"ids": ["a"], "vectors": [[1.0, 0]]}, 400, ""),
        ("/notes/upsert", {"ids": ["a"], "vectors": [[1.0, 0, 0]], "metadata": [{"topic": 3}]}, 400, "topic"),
        ("/notes/upsert", {"ids": [1.5], "vectors": [[1.0, 0, 0]]}, 400, "ids.0"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_and_nothing_written(
    stored: Running, path: str, body: dict[str, Any], status: int, message: str
) -> None:
    stored.http.post(ALL, json=MADE).raise_for_status()
    answer = stored.http.post(ALL + path, json=body)
    assert answer.status_code == status and message in answer.json()["error"]["message"], answer.text
    assert stored.http.get(NOTES).json()["rows"] == 0


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("upsert", '{"ids": ["a"], "vectors": [[1, 0, 0]], "metadata": [{"part": NaN}]}', "metadata.0.part = nan"),
        ("upsert", '{"ids": ["a"], "vectors": [[1, 0, 0]], "metadata": [{"part": 1e999}]}', "metadata.0.part = inf"),
        ("upsert", '{"ids": ["a"], "vectors": [[1, 0, 0]], "metadata": [{"all": [1, -Infinity]}]}', "metadata.0.all"),
        ("upsert", '{"ids": ["a"], "vectors": [[NaN, 0, 0]]}', "vectors.0.0"),
        ("query", '{"vector": [1, 0, 0], "where": {"part": {"$gt": NaN}}}', "where.part"),
    ],
)
def test_numbers_that_are_not_finite_are_named(stored: Running, path: str, body: str, named: str) -> None:
    stored.http.post(ALL, json={"name": "notes", "dim": 3, "fields": {"part": "float"}}).raise_for_status()
    answer = stored.http.post(f"{NOTES}/{path}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and named in answer.json()["error"]["message"], answer.text
    assert stored.http.get(NOTES).json()["rows"] == 0


def test_numbers_that_are_not_finite_are_told_as_null(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store.wdbx") as store, serving(store=store) as running:
        notes = store.create_collection("notes", 3, "ip", schema={"part": "float"})
        notes.upsert(["a"], [[1, 0, 0]], [{"part": float("nan")}])
        (row,) = running.http.post(f"{NOTES}/get", json={"ids": ["a"]}).json()["data"]
        (hit,) = running.http.post(f"{NOTES}/query", json={"vector": [1, 0, 0]}).json()["data"]
        assert row["metadata"] == hit["metadata"] == {"part": None}


def test_without_a_store_that_is_said(plain: Running) -> None:
    assert "no vector store" in plain.http.get(ALL).json()["error"]["message"]


def test_every_action_for_every_role_and_tenant(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    who = [(f"{role}-{tenant}", role, tenant) for role in ("reader", "writer", "admin") for tenant in ("acme", "other")]
    of = {
        name: add_key(path, Key(name, "0" * 64, role, tenant)) for name, role, tenant in (*who, ("root", "admin", ""))
    }
    with wdbx.open(tmp_path / "store.wdbx") as store, serving(store=store, gate=Gate(KeyRing(path))) as running:

        def call(name: str, method: str, where: str, body: Any = None) -> Any:
            headers = {"authorization": f"Bearer {of[name]}"}
            return running.http.request(method, ALL + where, headers=headers, json=body)

        for role, allowed in (("reader", 0), ("writer", 1), ("admin", 2)):
            name, others = f"{role}-acme", f"{role}-other"
            made = call(name, "POST", "", {**MADE, "name": "mine"})
            assert made.status_code == (201 if allowed == 2 else 403)
            call("admin-acme", "POST", "", {**MADE, "name": "notes"})
            assert call(name, "POST", "/notes/upsert", ROWS).status_code == (200 if allowed else 403)
            call("admin-acme", "POST", "/notes/upsert", ROWS).raise_for_status()
            asked = {"vector": [1.0, 0, 0]}
            assert len(call(name, "POST", "/notes/query", asked).json()["data"]) == 2
            assert call(name, "POST", "/notes/get", {"ids": ["a"]}).status_code == 200
            # another tenant sees neither rows nor names, and may have names of its own
            for where, body in (
                ("query", asked),
                ("get", {"ids": ["a"]}),
                ("upsert", ROWS),
                ("delete", {"ids": ["a"]}),
            ):
                lowest = 1 if where in ("upsert", "delete") else 0
                assert call(others, "POST", f"/notes/{where}", body).status_code == (404 if allowed >= lowest else 403)
                assert call(others, "POST", f"/acme.notes/{where}", body).status_code == (
                    404 if allowed >= lowest else 403
                )
            assert call(others, "GET", "").json()["data"] == []
            assert "acme" not in call(others, "POST", "/notes/query", asked).text
            assert call(name, "POST", "/notes/delete", {"ids": ["a"]}).status_code == (200 if allowed else 403)
            assert call(name, "DELETE", "/notes").status_code == (200 if allowed == 2 else 403)
        assert [each["name"] for each in call("root", "GET", "").json()["data"]] == ["acme.mine"]


@pytest.mark.parametrize("role", ["reader", "writer"])
def test_who_has_no_tenant_sees_none_of_the_tenants_collections(tmp_path: Path, role: str) -> None:
    path = tmp_path / "keys.yaml"
    secret = add_key(path, Key("anyone", "0" * 64, role))
    with wdbx.open(tmp_path / "store.wdbx") as store, serving(store=store, gate=Gate(KeyRing(path))) as running:
        for name in ("acme.notes", "notes"):
            store.create_collection(name, 3).upsert(["a"], np.ones((1, 3), np.float32))
        running.http.headers["authorization"] = f"Bearer {secret}"
        assert [each["name"] for each in running.http.get(ALL).json()["data"]] == ["notes"]
        asked: dict[str, Any] = {"vector": [1.0, 0, 0]}
        assert running.http.post(f"{NOTES}/query", json=asked).status_code == 200
        for where, body in (("query", asked), ("get", {"ids": ["a"]})):
            refused = running.http.post(f"{ALL}/acme.notes/{where}", json=body)
            assert refused.status_code == 404 and "no collection 'acme.notes'" in refused.text
        assert running.http.get(f"{ALL}/acme.notes").status_code == 404
        written = running.http.post(f"{ALL}/acme.notes/delete", json={"ids": ["a"]})
        assert written.status_code == (403 if role == "reader" else 404)
        remembered = {"model": "base", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
        body = remembered | {"abi": {"memory": {"collection": "acme.notes", "query": "x"}}}
        assert running.http.post("/v1/chat/completions", json=body).status_code == 404
        assert len(store.collection("acme.notes")) == 1


def test_a_policy_is_asked_besides(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    of = {name: add_key(path, Key(name, "0" * 64, "admin")) for name in ("one", "two")}
    policy = make_policy([("one", "admin", "*"), ("two", "reader", "notes")])
    with (
        wdbx.open(tmp_path / "store.wdbx") as store,
        serving(store=store, gate=Gate(KeyRing(path)), policy=policy) as running,
    ):

        def call(name: str, method: str, where: str, body: Any = None) -> int:
            headers = {"authorization": f"Bearer {of[name]}"}
            return running.http.request(method, ALL + where, headers=headers, json=body).status_code

        assert call("two", "POST", "", MADE) == 403 and call("one", "POST", "", MADE) == 201
        assert call("one", "POST", "", {**MADE, "name": "hidden"}) == 201
        assert call("one", "POST", "/notes/upsert", ROWS) == 200 and call("two", "POST", "/notes/upsert", ROWS) == 403
        assert call("two", "POST", "/notes/query", {"vector": [1.0, 0, 0]}) == 200
        assert call("two", "POST", "/hidden/query", {"vector": [1.0, 0, 0]}) == 403
        headers = {"authorization": f"Bearer {of['two']}"}
        assert [each["name"] for each in running.http.get(ALL, headers=headers).json()["data"]] == ["notes"]


def test_no_message_names_what_is_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.yaml"
    secret = add_key(path, Key("rival", "0" * 64, "admin", "rival"))
    with wdbx.open(tmp_path / "store.wdbx") as store, serving(store=store, gate=Gate(KeyRing(path))) as running:
        store.create_collection("acme.layoffs", 3)
        store.tag("acme-before-merger")
        store.create_collection("rival.notes", 3)
        http = running.http
        http.headers["authorization"] = f"Bearer {secret}"
        asked: dict[str, Any] = {"vector": [1.0, 0, 0], "at": "zzz"}
        chat = {"model": "base", "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}
        answers = [
            http.post(f"{NOTES}/query", json=asked),
            http.post(f"{NOTES}/get", json={"ids": ["a"], "at": "zzz"}),
            http.post("/v1/chat/completions", json=chat | {"abi": {"memory": {"collection": "notes", "at": "zzz"}}}),
        ]
        for answer in answers:
            assert answer.status_code == 400 and "'zzz' is neither a tag nor a time" in answer.text

        # somebody else drops it between being found and being dropped, and between being listed and being looked at
        with monkeypatch.context() as patched:
            drop = store.drop_collection
            patched.setattr(store, "drop_collection", lambda name: (drop(name), drop(name)))
            answers.append(http.delete(NOTES))
            patched.setattr(store, "collections", lambda: ["acme.layoffs", "rival.notes"])
            listed = http.get(ALL)
        assert (listed.status_code, listed.json()["data"]) == (200, [])
        assert answers[-1].status_code == 404 and "there is no collection 'notes'" in answers[-1].text
        assert not any(word in answer.text for answer in answers for word in ("acme", "layoffs", str(tmp_path)))


def test_a_store_that_fails_is_a_503_whose_reason_is_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with wdbx.open(tmp_path / "store.wdbx") as store, serving(store=store, store_encoder=encoder) as running:
        running.http.post(ALL, json=MADE).raise_for_status()

        def damaged(*_: Any) -> Any:
            raise wdbx.DamagedError(f"{store.storage}/step-1 is damaged")

        monkeypatch.setattr(store, "view", damaged)
        query: dict[str, Any] = {"vector": [1.0, 0, 0]}
        for where, body in ((f"{NOTES}/query", query), ("/v1/chat/completions", RECALLING)):
            caplog.clear()
            answer = running.http.post(where, json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable"), answer.text
            assert str(tmp_path) not in answer.text and f"{tmp_path}/store.wdbx/step-1 is damaged" in caplog.text


def test_a_file_of_the_store_that_cannot_be_read_is_a_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with wdbx.open(tmp_path / "store.wdbx") as store, serving(store=store, store_encoder=encoder) as running:
        running.http.post(ALL, json=MADE).raise_for_status()

        def unreadable(*_: Any) -> Any:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), f"{tmp_path}/store.wdbx/rows")

        asked: list[tuple[str, str, Any]] = [("GET", ALL, None), ("POST", ALL, {**MADE, "name": "others"})]
        asked += [("POST", f"{NOTES}/query", {"vector": [1.0, 0, 0]}), ("POST", "/v1/chat/completions", RECALLING)]
        for name in ("view", "collections"):
            monkeypatch.setattr(store, name, unreadable)
        for method, where, given in asked:
            caplog.clear()
            answer = running.http.request(method, where, json=given)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable"), answer.text
            assert answer.headers["retry-after"] and str(tmp_path) not in answer.text
            assert f"{tmp_path}/store.wdbx/rows" in caplog.text
        monkeypatch.setattr(Voices, "prompt", unreadable)  # nothing of the store's
        chat = {name: value for name, value in RECALLING.items() if name != "abi"}
        assert running.http.post("/v1/chat/completions", json=chat).json()["error"]["code"] == "internal_error"
