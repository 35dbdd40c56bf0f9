"""What goes wrong around an answer: clients that leave, queues that are full, an engine that fails, an end."""

import contextlib
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http import completions, respond, server
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.observe import JsonLines
from abi_jax.serve.voices import Voices
from tests.serve.http.serving import ASKED, ENDLESS, LASTING, PATIENCE, PausingEngine, Running, serving, until

pytestmark = pytest.mark.smoke
LONG: dict[str, Any] = {"model": "base", "messages": ASKED, "max_tokens": ENDLESS}
SHORT: dict[str, Any] = {**LONG, "max_tokens": 2}
AS_JSON = {"content-type": "application/json"}
POST = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


def has(running: Running, waiting: int, speaking: int) -> bool:
    """Whether as many wait and speak."""
    load = running.service.worker.load
    return (load.waiting, load.speaking) == (waiting, speaking)


def in_background(what: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """A thread that does something, and what came of it; nothing where the server ended first."""
    found: list[Any] = []

    def run() -> None:
        with contextlib.suppress(httpx.HTTPError):
            found.append(what())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, found


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(stream: bool) -> None:
    engine = FakeEngine(**LASTING)
    with serving(engine) as running:
        body = json.dumps({**LONG, "stream": stream}).encode()
        head = f"{POST}content-length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(head + body)
            until(lambda: engine.works)
        until(lambda: not engine.works and engine.used == 0)
        until(lambda: running.service.running == 0 and running.service.bridge.open == 0)
        assert running.http.post("/v1/chat/completions", json=SHORT).status_code == 200


def test_a_full_queue_is_a_429_that_says_when_to_come_again() -> None:
    with serving(FakeEngine(slots=1, **LASTING), Limits(max_waiting=2)) as running:
        threads = []

        def ask(*load: int) -> None:
            threads.append(in_background(lambda: running.http.post("/v1/chat/completions", json=LONG)))
            until(partial(has, running, *load))

        ask(0, 1)
        ask(1, 1)
        # of several choices none is left behind, though there is a place for one
        assert running.http.post("/v1/chat/completions", json={**LONG, "n": 2}).status_code == 429
        assert running.service.bridge.open == 2
        ask(2, 1)
        answer = running.http.post("/v1/chat/completions", json=LONG)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error" and "2 requests are waiting" in answer.text


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    engine = FakeEngine(**LASTING)
    with serving(engine, Limits(request_seconds=0.2)) as running:
        answer = running.http.post("/v1/chat/completions", json=LONG)
        assert answer.status_code == 504 and answer.headers["x-should-retry"] == "false"
        assert "took longer than 0.2 seconds" in answer.json()["error"]["message"]
        with pytest.raises(openai.APIError, match="took longer"):
            list(running.openai().chat.completions.create(**LONG, stream=True))
        until(lambda: not engine.works)


class Held:
    """Makes vectors once it is let."""

    model, dimension = "held", 1

    def __init__(self) -> None:
        self.may = threading.Event()

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        assert self.may.wait(PATIENCE)
        return np.ones((len(texts), 1), np.float32), 1


def test_an_engine_that_fails_ends_answers_and_health_and_then_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FAREWELL", PATIENCE)
    engine, held = FakeEngine(**LASTING), Held()
    with serving(engine, embedder=held) as running:
        other, vectors = in_background(
            lambda: running.http.post("/v1/embeddings", json={"model": "held", "input": "a"})
        )
        until(lambda: running.service.running == 1)
        assert running.http.get("/health").json() == {"ok": True, "error": None}
        stream = running.openai().chat.completions.create(**LONG, stream=True)
        next(iter(stream))
        thread, found = in_background(lambda: running.http.post("/v1/chat/completions", json=LONG))
        until(lambda: len(engine.works) == 2)
        engine.broken = "the device is gone"
        with pytest.raises(openai.APIError, match="the device is gone"):
            list(stream)
        thread.join(PATIENCE)
        assert found[0].status_code == 503 and "the device is gone" in found[0].text
        for path in ("/health", "/ready"):
            answer = running.http.get(path)
            assert answer.status_code == 503 and "the device is gone" in answer.json()["error"]
        assert running.http.post("/v1/chat/completions", json=LONG).status_code == 503
        load, usage = running.service.worker.load, running.service.worker.usage
        assert (load.waiting, load.speaking, usage.used) == (0, 0, 0)
        assert not running.server.should_exit
        held.may.set()  # what is no answer of the engine is finished first
        other.join(PATIENCE)
        assert vectors[0].status_code == 200
        until(lambda: running.server.should_exit)


def test_a_failed_engine_waits_for_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "FAREWELL", 0.2)
    engine, held = FakeEngine(vocab_size=400), Held()
    engine.broken = "the device is gone"
    with serving(engine, embedder=held) as running:
        in_background(lambda: running.http.post("/v1/embeddings", json={"model": "held", "input": "a"}))
        until(lambda: running.service.running == 1)
        assert running.http.post("/v1/chat/completions", json=SHORT).status_code == 503
        until(lambda: running.server.should_exit)
        held.may.set()


def test_sigterm_finishes_what_runs_and_refuses_what_is_new() -> None:
    engine = PausingEngine(vocab_size=400, pause=20)
    with serving(engine) as running:
        stream = iter(running.openai().chat.completions.create(**{**LONG, "max_tokens": 60}, stream=True, seed=1))
        chunks = [next(stream), next(stream)]
        running.server.handle_exit(signal.SIGTERM, None)
        until(lambda: running.http.get("/ready").status_code == 503)
        assert running.http.get("/health").status_code == 200
        refused = running.http.post("/v1/chat/completions", json=SHORT)
        assert refused.status_code == 503 and "shutting down" in refused.text and refused.headers["retry-after"]
        assert not running.server.should_exit
        engine.hold.clear()
        chunks += stream
        assert chunks[-1].choices[0].finish_reason == "length"
        until(lambda: running.server.should_exit)


def test_what_cannot_be_waited_for_is_ended() -> None:
    with serving(FakeEngine(**LASTING), Limits(drain_seconds=0.1)) as running:
        stream = running.openai().chat.completions.create(**LONG, stream=True)
        next(iter(stream))
        running.server.handle_exit(signal.SIGTERM, None)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)


def raw(running: Running, *parts: bytes, pause: float = 0.0) -> bytes:
    """Sends parts over a connection of their own and returns all that comes back."""
    found, ended = b"", (ConnectionResetError, BrokenPipeError)
    with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as client:
        with contextlib.suppress(*ended):  # the server may have heard enough, and said why
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
        with contextlib.suppress(*ended):
            while data := client.recv(65536):
                found += data
    return found


HEAD = (POST + "connection: close\r\n").encode()


def test_bodies_that_are_too_large_deep_or_malformed_are_refused() -> None:
    with serving(limits=Limits(body_bytes=100_000, head_bytes=8192)) as running:
        declared = raw(running, HEAD + b"content-length: 1000000000\r\n\r\n")
        assert b" 413 " in declared.split(b"\r\n")[0] and b"at most 100000 bytes" in declared
        chunked = raw(
            running,
            HEAD
            + b"transfer-encoding: chunked\r\n\r\n"
            + b"10000\r\n"
            + b" " * 65536
            + b"\r\n" * 1
            + b"10000\r\n"
            + b" " * 65536,
        )
        assert b" 413 " in chunked.split(b"\r\n")[0]
        deep = running.http.post("/v1/completions", content=b"[" * 90_000, headers=AS_JSON)
        assert deep.status_code == 400 and "recursion limit" in deep.text
        for content in (b"", b"{", b"nul", b"\xff", b'{"model":"base","prompt":"\\ud800"}', b"[]", b'{"a":NaN}'):
            answer = running.http.post("/v1/completions", content=content, headers=AS_JSON)
            assert answer.status_code == 400 and answer.json()["error"]["message"], content
        for headers in ({}, {"content-type": "text/plain"}):
            assert running.http.post("/v1/completions", content=b"{}", headers=headers).status_code == 415
        assert b" 431 " in raw(running, b"GET / HTTP/1.1\r\n", b"x: " + b"y" * 9000)
        assert b" 400 " in raw(running, b"nonsense\r\n\r\n").split(b"\r\n")[0]


def test_what_comes_too_slowly_is_not_waited_for() -> None:
    with serving(limits=Limits(body_seconds=0.2)) as running:
        slow = raw(running, HEAD + b"content-length: 10\r\n\r\n", b"{", pause=0.1)
        assert b" 408 " in slow.split(b"\r\n")[0] and b"did not arrive within 0.2 seconds" in slow
    with serving(limits=Limits(head_seconds=0.3), uvicorn={}) as running:
        started = time.monotonic()
        assert raw(running, b"POST /v1/completions HTTP/1.1\r\nhost:") == b""  # a head that never ends
        assert raw(running) == b""  # nor begins
        assert time.monotonic() - started < Limits().head_seconds


def test_who_is_refused_hears_why_but_cannot_go_on_sending(plain: Running) -> None:
    for pause in (0.0, 0.2):  # the body comes after the head, when the answer is already known
        head = b"POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 100000\r\n\r\n"
        assert b" 404 " in raw(plain, head, b"x" * 100_000, pause=pause).split(b"\r\n")[0]
    begun = time.monotonic()
    head = b"POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n"
    answer = raw(plain, head, b"x")
    assert b" 404 " in answer.split(b"\r\n")[0] and b"connection: close" in answer
    assert time.monotonic() - begun < Limits().body_seconds


def test_texts_that_cannot_fit_are_not_read(plain: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("it was read")

    monkeypatch.setattr(Voices, "prompt", read)
    monkeypatch.setattr(completions, "_tokenise", read)
    text = "x" * 1_500_000
    for path, body in (
        ("/v1/chat/completions", {**LONG, "messages": [{"role": "user", "content": text}]}),
        ("/v1/completions", {"model": "base", "prompt": [text, "b"]}),
    ):
        answer = plain.http.post(path, json=body).json()["error"]
        assert answer["code"] == "context_length_exceeded" and "1500000 characters does not fit" in answer["message"]


def test_a_client_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(respond, "GRACE", 0.2)
    engine = FakeEngine(vocab_size=400, max_length=60_000, pages=100_000, slots=64)
    # nothing else lets it go: not that it takes nothing for long, nor that its connection is idle
    with serving(engine, Limits(request_seconds=1.0, take_seconds=600)) as running:
        much = {"n": 64, "max_tokens": 50_000, "logprobs": True, "top_logprobs": 20, "stream": True}
        body = json.dumps(LONG | much).encode()
        head = f"{POST}content-length: {len(body)}\r\n\r\n".encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", running.port))
            client.sendall(head + body)
            until(lambda: running.service.worker.steps and not engine.works and running.service.running == 0)
            until(lambda: len(running.server.server_state.connections) <= 1)  # the test's own, which asked /ready


def test_a_client_that_asks_on_and_on_and_reads_nothing_is_let_go() -> None:
    with serving(limits=Limits(take_seconds=0.3)) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(0.1)
        client.connect(("127.0.0.1", running.port))
        own = client.getsockname()

        def connections() -> list[Any]:
            return list(running.server.server_state.connections)

        with contextlib.suppress(OSError):
            for _ in range(400):
                client.sendall(b"GET /page.js HTTP/1.1\r\nhost: localhost\r\n\r\n" * 100)
        until(lambda: all(each.client != own or each.flow.write_paused for each in connections()))
        assert all(len(each.pipeline) < 10_000 for each in connections())
        until(lambda: all(each.client != own for each in connections()))


def test_requests_that_come_together_are_counted_one_by_one_and_trailers_too() -> None:
    with serving(limits=Limits(head_bytes=2048, body_bytes=1024)) as running:
        many = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 200
        last = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        answers = raw(running, many + last, b"\r\n", pause=0.1)
        assert answers.count(b" 200 OK") == 201 and b" 431 " not in answers
        chunked = HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        assert raw(running, chunked, b"a: b\r\n" * 300_000) == b""
        assert b" 400 " in raw(running, chunked, b"a: b\r\n\r\n").split(b"\r\n")[0]


def test_a_thousand_idle_connections_cost_little(plain: Running) -> None:
    idle = [socket.create_connection(("127.0.0.1", plain.port)) for _ in range(1000)]
    try:
        until(lambda: len(plain.server.server_state.connections) >= 1000)
        took = []
        for _ in range(5):  # of which a machine that stalls makes one or another slow
            begun = time.monotonic()
            asked = {"model": "base", "prompt": "a", "max_tokens": 2}
            assert plain.http.post("/v1/completions", json=asked).status_code == 200
            took.append(time.monotonic() - begun)
        assert min(took) < 2
    finally:
        for each in idle:
            each.close()
    until(lambda: len(plain.server.server_state.connections) < 50)


def test_routes_that_are_not_there(plain: Running) -> None:
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
    ):
        answer = plain.http.request(method, path)
        assert answer.status_code == status and answer.json()["error"]["type"] == "invalid_request_error"


def test_models_are_personas_and_the_base(plain: Running) -> None:
    listed = plain.openai().models.list()
    assert [model.id for model in listed] == ["abbey", "aviva", "base"]
    assert plain.openai().models.retrieve("abbey=0.5,aviva=0.5").abi["mixture"] == {"abbey": 0.5, "aviva": 0.5}
    with pytest.raises(openai.NotFoundError, match="unknown persona 'abby'"):
        plain.openai().models.retrieve("abby")


def test_requests_have_ids_and_lines_in_the_log(plain: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "abi_jax.serve.http")
    secret = "a-secret-question"
    answer = plain.http.post(
        f"/v1/chat/completions?key={secret}",
        json={**SHORT, "messages": [{"role": "user", "content": secret}]},
        headers={"x-request-id": "mine-7", "authorization": f"Bearer {secret}"},
    )
    assert answer.headers["x-request-id"] == "mine-7"
    # other requests of this server may still be writing theirs
    until(lambda: any("mine-7" in JsonLines().format(record) for record in caplog.records))
    lines = [JsonLines().format(record) for record in caplog.records]
    line = next(json.loads(line) for line in lines if "mine-7" in line)
    assert (line["path"], line["status"], line["model"]) == ("/v1/chat/completions", 200, "base")
    assert line["usage"]["completion_tokens"] == 2 and line["ms"] > 0
    assert not any(secret in line for line in lines)
    forged = plain.http.get("/health", headers={"x-request-id": 'a"\tb'}).headers["x-request-id"]
    assert len(forged) == 32


def test_many_answers_at_once_wake_the_event_loop_once_a_step() -> None:
    engine = FakeEngine(slots=16, vocab_size=400, step_seconds=0.02)
    with serving(engine) as running:
        calls = 0
        sort = running.service.bridge._sort

        def counted(events: Any) -> None:
            nonlocal calls
            calls += 1
            sort(events)

        running.service.bridge._sort = counted  # type: ignore[method-assign]
        answer = running.http.post("/v1/chat/completions", json={**LONG, "max_tokens": 20, "n": 16})
        assert len(answer.json()["choices"]) == 16
        until(lambda: calls <= running.service.worker.steps)  # a step is counted once what it made is delivered
        assert running.service.worker.steps < 60
