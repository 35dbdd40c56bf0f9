"""What takes long is done on threads: the event loop speaks to everybody else meanwhile."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.serve.answered import Answered
from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http.auth import Gate
from abi_jax.serve.http.keys import Key, KeyRing, add_key
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.threads import COUNT, PROMPTS
from abi_jax.serve.voices import Request, Voices
from tests.serve.http.serving import ASKED, PATIENCE, ObedientEngine, Running, serving, until

pytestmark = pytest.mark.smoke


class Watched:
    """A lineage that remembers where its receipts were made."""

    def __init__(self) -> None:
        self.where: set[str] = set()

    def told(self) -> Mapping[str, Any]:
        return {}

    def receipt(self, about: Answered) -> Mapping[str, Any]:
        del about
        self.where.add(threading.current_thread().name)
        return {"made": True}


def test_receipts() -> None:
    lineage = Watched()
    with serving(FakeEngine(vocab_size=400), lineage=lineage) as running:
        body = {"model": "base", "messages": ASKED, "n": 2, "abi": {"receipt": True}}
        assert len(running.http.post("/v1/chat/completions", json=body).json()["abi"]["receipts"]) == 2
        assert '"receipts"' in running.http.post("/v1/chat/completions", json={**body, "stream": True}).text
        id_ = running.http.post("/v1/abi/process", json=body).json()["id"]
        until(lambda: running.http.get(f"/v1/abi/queries/{id_}").json()["status"] == "done")
    assert lineage.where and all(name.startswith("prompts") for name in lineage.where)


def test_grammars_are_made_once() -> None:
    pytest.importorskip("llguidance")
    with serving(ObedientEngine(vocab_size=400)) as running:
        make, where = running.service.grammar, []

        def watched(source: str) -> Any:
            where.append(threading.current_thread().name)
            return make(source)

        running.service.grammar = watched  # type: ignore[method-assign]
        body = {"model": "base", "messages": ASKED, "n": 4, "regex": "[ab]{3}", "seed": 1}
        said = running.http.post("/v1/chat/completions", json=body).json()["choices"]
        assert all(set(each["message"]["content"]) <= {"a", "b"} for each in said)
        assert len(where) == 2 and all(name.startswith("prompts") for name in where)  # tried, and made


def test_the_texts_of_tools_are_not_read_where_they_cannot_fit(plain: Running) -> None:
    tool = {"type": "function", "function": {"name": "f", "description": "x" * 1_500_000}}
    body = {"model": "base", "messages": ASKED, "tools": [tool]}
    answer = plain.http.post("/v1/chat/completions", json=body).json()["error"]
    assert answer["code"] == "context_length_exceeded"


def test_a_body_of_many_errors_is_refused_by_its_first() -> None:
    with serving(FakeEngine(vocab_size=400), Limits(body_bytes=2**24)) as running:
        for body, where in (
            ({"prompt": [1, *["a"] * 500_000]}, "prompt.1"),
            ({"prompt": [[1], *[["a"]] * 500_000]}, "prompt"),
            ({"prompt": "a", "logit_bias": {f"k{i}": 1 for i in range(100_000)}}, None),
            ({"prompt": "a", **{f"k{i}": 1 for i in range(100_000)}}, None),
        ):
            answer = running.http.post("/v1/completions", json={"model": "base", **body})
            assert answer.status_code == 400
            assert where is None or where in answer.json()["error"]["param"]
            assert where is not None or "the body has 100000 errors" in answer.text


def test_who_asks_with_many_long_prompts_holds_up_himself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may, path, order = threading.Semaphore(0), tmp_path / "keys.yaml", list[str]()
    of = {tenant: add_key(path, Key(tenant, "0" * 64, tenant=tenant)) for tenant in ("acme", "other")}
    with serving(FakeEngine(vocab_size=400), gate=Gate(KeyRing(path))) as running:
        render = Voices.prompt

        def slow(voices: Voices, request: Request) -> Any:
            order.append(request.messages[-1]["content"])
            assert may.acquire(timeout=PATIENCE)
            return render(voices, request)

        monkeypatch.setattr(Voices, "prompt", slow)

        def ask(tenant: str) -> None:
            body = {"model": "base", "messages": [{"role": "user", "content": tenant}], "max_tokens": 1}
            headers = {"authorization": f"Bearer {of[tenant]}"}
            assert running.http.post("/v1/chat/completions", json=body, headers=headers).status_code == 200

        def waiting(tenant: str) -> int:
            return len(PROMPTS._waiting.get(f"tenant {tenant}", ()))

        threads = [threading.Thread(target=ask, args=("acme",), daemon=True) for _ in range(3 * COUNT)]
        for thread in threads:
            thread.start()
        until(lambda: len(order) == COUNT and waiting("acme") == 2 * COUNT)
        threads.append(threading.Thread(target=ask, args=("other",), daemon=True))
        threads[-1].start()
        until(lambda: waiting("other") == 1)
        may.release(2)  # two more begin, and the second is the other's
        until(lambda: len(order) == COUNT + 2)
        assert "other" in order
        may.release(len(threads))
        for thread in threads:
            thread.join(PATIENCE)
    assert len(order) == len(threads)


class Held:
    """Makes vectors once it is let."""

    model, dimension = "held", 1

    def __init__(self) -> None:
        self.may = threading.Event()
        self.asked: list[str] = []

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        self.asked += texts
        assert self.may.wait(PATIENCE)
        return np.ones((len(texts), 1), np.float32), 1


def test_vectors_that_take_long_hold_up_nothing_else(tmp_path: Path) -> None:
    held, path = Held(), tmp_path / "keys.yaml"
    of = {tenant: add_key(path, Key(tenant, "0" * 64, "admin", tenant)) for tenant in ("acme", "other")}
    with (
        wdbx.open(tmp_path / "store") as store,
        serving(FakeEngine(vocab_size=400), embedder=held, store=store, gate=Gate(KeyRing(path))) as running,
    ):

        def ask(tenant: str, where: str, body: Any) -> Any:
            return running.http.post(where, json=body, headers={"authorization": f"Bearer {of[tenant]}"})

        def vectors(tenant: str, text: str) -> threading.Thread:
            body = {"model": "held", "input": text}
            thread = threading.Thread(target=ask, args=(tenant, "/v1/embeddings", body), daemon=True)
            thread.start()
            return thread

        threads = [vectors("acme", f"acme {i}") for i in range(2 * COUNT)]
        until(lambda: running.service.running == 2 * COUNT and len(held.asked) == COUNT)
        threads.append(vectors("other", "other"))
        until(lambda: running.service.running == 2 * COUNT + 1)
        chat = {"model": "base", "messages": ASKED, "max_tokens": 2}
        assert ask("other", "/v1/chat/completions", chat).status_code == 200
        assert ask("other", "/v1/wdbx/collections", {"name": "notes", "dim": 1}).status_code == 201
        assert len(held.asked) == COUNT
        held.may.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert len(held.asked) == 2 * COUNT + 1
