"""What Prometheus is told: every answer once, however it ended, and times as vLLM means them."""

import json
import re
import socket
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http.chat import ChatForm
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.metrics import Metrics, label
from abi_jax.serve.scheduler import Ticket
from tests.serve.http.serving import ASKED, ENDLESS, LASTING, PATIENCE, PausingEngine, Running, script, serving, until

pytestmark = pytest.mark.smoke
ASK: dict[str, Any] = {"model": "base", "messages": ASKED, "max_tokens": 300, "seed": 1}
LONG: dict[str, Any] = {**ASK, "max_tokens": ENDLESS}
CHAT = "/v1/chat/completions"


def ends(running: Running) -> dict[str, float]:
    """How many answers ended, by reason."""
    text = running.service.metrics.text("")[0].decode()
    found = re.findall(r'^abi:request_success_total{finished_reason="(\w+)"[^}]*} (\S+)$', text, re.MULTILINE)
    return {reason: float(count) for reason, count in found}


def test_every_answer_is_counted_once_by_its_reason() -> None:
    words = script("hello, world! She said: hello")
    with serving(FakeEngine(vocab_size=400, script=words)) as running:
        assert running.http.post(CHAT, json=ASK).status_code == 200
        assert ends(running) == {"stop": 1}
        assert running.http.post(CHAT, json={**ASK, "n": 2, "stop": "world"}).status_code == 200
        assert ends(running) == {"stop": 3}
        assert running.http.post(CHAT, json={**ASK, "max_tokens": 2}).status_code == 200
        list(running.openai().chat.completions.create(**{**ASK, "stop": "said"}, stream=True))
        assert ends(running) == {"stop": 4, "length": 1}
        text = running.http.get("/metrics").text
        generated = re.findall(r"^abi:generation_tokens_total{.*} (\S+)$", text, re.MULTILINE)
        assert float(generated[0]) > len(words)  # and what was said before a stop string


def test_guessed_tokens_are_counted_with_those_that_were_said() -> None:
    with serving(FakeEngine(vocab_size=400, at_once=4)) as running:
        assert running.http.post(CHAT, json={**ASK, "max_tokens": 9}).status_code == 200
        text = running.http.get("/metrics").text
    found = dict(re.findall(r"^abi:spec_decode_num_(\w+)_tokens_total{.*} (\S+)$", text, re.MULTILINE))
    assert found == {"draft": "9.0", "accepted": "6.0"}  # three steps: of 4, 4, and 1 that was wanted


def total(running: Running, name: str) -> float:
    text = running.service.metrics.text("")[0].decode()
    return sum(float(count) for count in re.findall(rf"^abi:{name}_total{{.*}} (\S+)$", text, re.MULTILINE))


def test_tokens_are_counted_as_they_come() -> None:
    engine = PausingEngine(vocab_size=400, pause=10)
    with serving(engine) as running:
        with running.openai().chat.completions.create(**ASK, stream=True) as stream:
            first = next(iter(stream))
            until(engine.hold.is_set)
            until(lambda: total(running, "generation_tokens") >= 5)
            assert first and not ends(running)
            prompt = total(running, "prompt_tokens")
            until(lambda: prompt == total(running, "prefix_cache_queries") > 0)  # counted after them
            assert total(running, "generation_tokens") < 10
            engine.hold.clear()
            list(stream)
        assert total(running, "generation_tokens") == 300 and total(running, "prompt_tokens") == prompt
        scored = {"model": "base", "prompt": "hello", "max_tokens": 0, "echo": True}
        read = running.http.post("/v1/completions", json=scored).json()["usage"]["prompt_tokens"]
        assert total(running, "prompt_tokens") == prompt + read and total(running, "generation_tokens") == 300


def test_a_request_is_counted_by_what_came_of_it() -> None:
    engine = FakeEngine(**LASTING)
    with serving(engine, Limits(request_seconds=0.3)) as running:

        def count(status: int) -> float:
            text = running.service.metrics.text("")[0].decode()
            found = re.search(
                rf'^abi:http_requests_total{{handler="{CHAT}".*status="{status}"}} (\S+)$', text, re.MULTILINE
            )
            return float(found[1]) if found else 0

        with running.http.stream("POST", CHAT, json={**LONG, "stream": True}) as stream:
            assert stream.status_code == 200 and "took longer" in stream.read().decode()
        until(lambda: count(504) == 1 and not engine.works)
        running.service.limits = Limits()  # the others end because their clients leave
        body = json.dumps(LONG).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: engine.works)
        until(lambda: count(499) == 1)
        with running.openai().chat.completions.create(**LONG, stream=True) as left:
            next(iter(left))
        until(lambda: count(499) == 2)
        assert count(200) == count(0) == 0


def test_what_fails_or_is_cut_off_is_counted_as_a_5xx_also_after_its_200(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(**LASTING)
    with serving(engine) as running:

        def wrong(*_: Any) -> None:
            raise RuntimeError("a bug")

        def counted() -> dict[str, float]:
            text = running.service.metrics.text("")[0].decode()
            found = re.findall(
                rf'^abi:http_requests_total{{handler="{CHAT}".*status="(\d+)"}} (\S+)$', text, re.MULTILINE
            )
            return {status: float(count) for status, count in found}

        def cut_off() -> None:
            (task,) = running.server.server_state.tasks  # as uvicorn does whose time to shut down is over
            task.get_loop().call_soon_threadsafe(task.cancel)

        with monkeypatch.context() as patch:
            patch.setattr(ChatForm, "line", wrong)
            with running.http.stream("POST", CHAT, json={**LONG, "stream": True}) as stream:
                assert stream.status_code == 200
                with pytest.raises(httpx.RemoteProtocolError):
                    stream.read()
        until(lambda: counted() == {"500": 1})
        engine.hold.set()
        with running.http.stream("POST", CHAT, json={**ASK, "stream": True}) as stream:
            assert stream.status_code == 200
            cut_off()
            with pytest.raises(httpx.RemoteProtocolError):
                stream.read()
        until(lambda: counted() == {"500": 2})
        body = json.dumps(ASK).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", running.port), timeout=PATIENCE) as client:
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: running.service.running)
            cut_off()
            assert client.recv(100).startswith(b"HTTP/1.1 500 ")
        until(lambda: counted() == {"500": 3})


def test_answers_that_are_given_up_are_counted() -> None:
    with serving(FakeEngine(**LASTING), Limits(request_seconds=0.2)) as running:
        assert running.http.post(CHAT, json={**LONG, "n": 2}).status_code == 504
        assert ends(running) == {"abort": 2}
        running.service.limits = Limits()
        id_ = running.http.post("/v1/abi/process", json=LONG).json()["id"]
        running.http.delete(f"/v1/abi/queries/{id_}")
        until(lambda: ends(running) == {"abort": 3})
        with running.openai().chat.completions.create(**LONG, stream=True) as stream:
            next(iter(stream))
        until(lambda: ends(running) == {"abort": 4})


def test_answers_that_fail_are_counted() -> None:
    engine = FakeEngine(vocab_size=400)
    engine.broken = "the device is gone"
    with serving(engine) as running:
        assert running.http.post(CHAT, json=ASK).status_code == 503
        assert ends(running) == {"error": 1}


@pytest.fixture
def told() -> Metrics:
    usage, load = SimpleNamespace(used=1, pages=2, cached=0), SimpleNamespace(waiting=0, reading=0, speaking=0)
    return Metrics(cast(Any, SimpleNamespace(usage=usage, load=load, steps=1, failure=None)), "model")


def series(told: Metrics, name: str) -> tuple[float, float]:
    """Sum and count of a histogram."""
    sizes = (told._registry.get_sample_value(f"abi:{name}_{end}", LABELS) for end in ("sum", "count"))
    return cast(tuple[float, float], tuple(sizes))


LABELS = {"model_name": "model", "persona": "abbey"}


def test_the_first_token_is_timed_once_and_whole(told: Metrics) -> None:
    told.began("abbey", 0.6, 3)
    told.spoke("abbey", 0.4, 2)
    assert series(told, "time_to_first_token_seconds") == (0.6, 1)
    assert series(told, "inter_token_latency_seconds") == (0.4, 4)


def test_time_per_token_is_of_the_tokens_after_the_first(told: Metrics) -> None:
    ticket = Ticket(cast(Any, None), arrived=0.0, begun=1.0, read=2.0, ended=6.0)
    job = SimpleNamespace(prompt=SimpleNamespace(tokens=[1, 2]), max_tokens=9)
    choice = SimpleNamespace(ticket=ticket, job=job, tokens=[1, 2, 3], cached_tokens=0, counted=(0,) * 6)
    told.ended("abbey", cast(Any, choice), 0.0, "length")
    assert series(told, "request_time_per_output_token_seconds") == (2.0, 1)


def test_times_between_tokens_are_each_personas_own(told: Metrics) -> None:
    for mixture in ({"abbey": 1.0}, {}, {"abbey": 0.5, "aviva": 0.5}, {"abbey": 1.0}):
        told.spoke(label(mixture), 0.06, 3)
    text = told.text("")[0].decode()
    for persona, tokens in (("abbey", 6.0), ("base", 3.0), ("mixture", 3.0)):
        labels = f'{{model_name="model",persona="{persona}"}}'
        assert f"abi:inter_token_latency_seconds_count{labels} {tokens}" in text
