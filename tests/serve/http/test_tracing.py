"""Traces: a server span a request, where its time went below it, and nothing that anybody wrote."""

import http.server
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.resources import SERVICE_NAME
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import SpanKind

from abi_jax.errors import InputError
from abi_jax.serve.build import make_traces
from abi_jax.serve.engine.fake import FakeEngine
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.observe import JsonLines
from abi_jax.serve.http.tracing import Traces
from abi_jax.wdbx import open as open_store
from tests.serve.http.serving import ASKED, ENDLESS, LASTING, PATIENCE, Running, serving, until

pytestmark = pytest.mark.smoke
CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "abbey", "messages": ASKED, "max_tokens": 5, "seed": 1}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def traces_to(exporter: SpanExporter, sampler: Sampler | None = None) -> Traces:
    """Traces whose spans are there as soon as they end."""
    provider = TracerProvider(sampler, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Traces(provider)


class Seen:
    """What was exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()

    def all(self) -> dict[str, list[ReadableSpan]]:
        """By name, in the order of their beginnings."""
        found: dict[str, list[ReadableSpan]] = {}
        for span in sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0):
            found.setdefault(span.name, []).append(span)
        return found

    def one(self, name: str) -> ReadableSpan:
        """The only one of its name, once it has ended."""
        until(lambda: name in self.all())
        (span,) = self.all()[name]
        return span

    @property
    def text(self) -> str:
        """Everything that is told."""
        return "\n".join(span.to_json() for span in self.exporter.get_finished_spans())


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def traced(seen: Seen) -> Iterator[Running]:
    with serving(FakeEngine(vocab_size=400), traces=traces_to(seen.exporter)) as running:
        yield running


def within(span: ReadableSpan, parent: ReadableSpan) -> bool:
    """Whether a span is a part of another, by its id."""
    return span.parent is not None and span.parent.span_id == parent.context.span_id


def test_a_request_is_a_trace_of_where_its_time_went(traced: Running, seen: Seen) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    answer = traced.http.post(CHAT, json={**ASK, "top_k": 7}, headers=headers).json()
    server = seen.one(f"POST {CHAT}")
    assert server.kind is SpanKind.SERVER and f"{server.context.trace_id:032x}" == TRACE
    assert server.parent is not None and f"{server.parent.span_id:016x}" == PARENT
    told = dict(server.attributes or {})
    told.pop("abi.request_id")
    assert told == {
        "http.request.method": "POST",
        "http.route": CHAT,
        "http.response.status_code": 200,
        "url.scheme": "http",
    }
    chat = seen.one("chat abbey")
    assert within(chat, server)
    given = dict(chat.attributes or {})
    assert 0 < given.pop("gen_ai.response.time_to_first_chunk") < PATIENCE  # type: ignore[operator]
    assert given == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "abi",
        "gen_ai.request.model": "abbey",
        "gen_ai.response.model": "abi",
        "gen_ai.response.id": answer["id"],
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.top_k": 7,
        "gen_ai.request.top_p": 0.95,
        "gen_ai.request.seed": 1,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.choice.count": 1,
        "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "gen_ai.response.finish_reasons": ("length",),
        "abi.persona": "abbey",
    }
    parts = [seen.one(name) for name in ("queue", "prefill", "decode")]
    assert all(within(part, chat) and part.context.trace_id == server.context.trace_id for part in parts)
    ends = [part.end_time for part in parts]
    assert [part.start_time for part in parts[1:]] == ends[:2]
    assert server.start_time <= parts[0].start_time and ends[2] <= chat.end_time <= server.end_time  # type: ignore[operator]


def test_nothing_that_anybody_wrote_is_told(traced: Running, seen: Seen) -> None:
    secret = "a-secret-question"
    body = {**ASK, "messages": [{"role": "user", "content": secret}], "stop": [secret], "abi": {"user": secret}}
    answer = traced.http.post(f"{CHAT}?key={secret}", json=body, headers={"authorization": f"Bearer {secret}"})
    assert answer.status_code == 200
    assert traced.http.get(f"/v1/models/{secret}").status_code == 404
    assert traced.http.get(f"/{secret}").status_code == 404
    seen.one("GET")
    said = answer.json()["choices"][0]["message"]["content"]
    assert secret not in seen.text and said not in seen.text


def test_each_choice_has_its_parts(traced: Running, seen: Seen) -> None:
    traced.http.post("/v1/completions", json={"model": "base", "prompt": "the", "n": 3, "max_tokens": 2})
    seen.one("POST /v1/completions")  # it ends when all that it consists of has
    assert seen.one("text_completion base").attributes["gen_ai.request.choice.count"] == 3  # type: ignore[index]
    found = seen.all()
    assert [len(found[name]) for name in ("queue", "prefill", "decode")] == [3, 3, 3]
    assert {span.attributes["abi.choice"] for span in found["decode"]} == {0, 1, 2}  # type: ignore[index]


def test_the_log_names_the_trace(traced: Running, seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "abi_jax.serve.http")
    traced.http.get("/v1/models", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    until(lambda: any(TRACE in JsonLines().format(record) for record in caplog.records))
    traced.http.get("/health")
    assert traced.http.get("/metrics").status_code == 200
    traced.http.get("/v1/models", headers={"traceparent": "nonsense"})
    until(lambda: len(seen.all().get("GET /v1/models", ())) == 2)
    assert set(seen.all()) == {"GET /v1/models"}


def test_an_answer_that_is_fetched_later_is_a_part_of_the_request_that_asked(traced: Running, seen: Seen) -> None:
    traced.http.post("/v1/abi/process", json=ASK)
    assert within(seen.one("chat abbey"), seen.one("POST /v1/abi/process"))


def test_a_stream_whose_client_goes_away(seen: Seen) -> None:
    engine = FakeEngine(**LASTING)
    with serving(engine, traces=traces_to(seen.exporter)) as running:
        with running.openai().chat.completions.create(**{**ASK, "max_tokens": ENDLESS}, stream=True) as stream:
            next(chunk for chunk in stream if chunk.choices and chunk.choices[0].delta.content)
        server, chat = seen.one(f"POST {CHAT}"), seen.one("chat abbey")
        assert server.attributes["abi.ended"] == "client gone" and server.status.is_unset  # type: ignore[index]
        assert chat.attributes["gen_ai.response.finish_reasons"] == ("abort",) and chat.status.is_unset  # type: ignore[index]
        assert within(seen.one("decode"), chat)


def test_what_fails_is_told_with_its_code(seen: Seen) -> None:
    engine = FakeEngine(vocab_size=400)
    engine.hold.set()
    with serving(engine, Limits(request_seconds=0.2), traces=traces_to(seen.exporter)) as running:
        assert running.http.post(CHAT, json=ASK).status_code == 504
        server, chat = seen.one(f"POST {CHAT}"), seen.one("chat abbey")
        for span in (server, chat):
            assert not span.status.is_ok and not span.status.is_unset
        assert chat.attributes["error.type"] == "timeout" and server.attributes["error.type"] == "504"  # type: ignore[index]
        seen.exporter.clear()
        assert running.http.post(CHAT, json={**ASK, "model": "nobody"}).status_code == 404
        assert seen.one(f"POST {CHAT}").status.is_unset


def test_a_stream_that_fails_after_its_head_was_sent(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "abi_jax.serve.http")
    engine = FakeEngine(**LASTING)
    with serving(engine, traces=traces_to(seen.exporter)) as running:
        with running.http.stream("POST", CHAT, json={**ASK, "max_tokens": ENDLESS, "stream": True}) as stream:
            lines = stream.iter_lines()
            next(lines)
            engine.broken = "the device is gone"
            list(lines)
        server, chat = seen.one(f"POST {CHAT}"), seen.one("chat abbey")
        assert server.attributes["http.response.status_code"] == 200  # type: ignore[index]
        assert server.attributes["error.type"] == chat.attributes["error.type"] == "engine_error"  # type: ignore[index]
        until(lambda: any(getattr(record, "told", {}).get("failed") == "engine_error" for record in caplog.records))


def test_what_is_remembered_is_a_part_of_its_own(seen: Seen, tmp_path: Any) -> None:
    store = open_store(tmp_path / "memory.wdbx")
    with serving(FakeEngine(vocab_size=400), traces=traces_to(seen.exporter), store=store) as running:
        body = {**ASK, "abi": {"memory": {"collection": "none"}}}
        assert running.http.post(CHAT, json=body).status_code == 404
        assert within(seen.one("memory"), seen.one(f"POST {CHAT}"))


def test_what_is_not_sampled_is_not_told(seen: Seen) -> None:
    with serving(FakeEngine(vocab_size=400), traces=traces_to(seen.exporter, ALWAYS_OFF)) as running:
        assert running.http.post(CHAT, json=ASK).status_code == 200
        assert not seen.exporter.get_finished_spans()


class Broken(SpanExporter):
    """A collector that is gone, and takes its time to say so."""

    tried = 0

    def export(self, spans: Any) -> Any:
        """Fails."""
        self.tried += 1
        raise OSError("no collector")

    def shutdown(self) -> None:
        """Does not end while anybody waits."""
        time.sleep(PATIENCE)


def test_a_collector_that_is_gone_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abi_jax.serve.http.tracing.FLUSH", 0.2)
    exporter, provider = Broken(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_export_batch_size=2, max_queue_size=4))
    with serving(FakeEngine(vocab_size=400), traces=Traces(provider)) as running:
        for _ in range(5):
            assert running.http.post(CHAT, json=ASK).status_code == 200
        until(lambda: exporter.tried)
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE / 2


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what OTLP sends."""

    took: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        """Keeps a body."""
        self.took.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


def test_the_variables_say_where_and_as_what(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    took: list[tuple[str, bytes]] = []
    collector = http.server.HTTPServer(("127.0.0.1", 0), type("_", (Collector,), {"took": took}))
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")  # milliseconds: all at once, when the server ends
    monkeypatch.setattr("abi_jax.serve.http.tracing.FLUSH", PATIENCE)
    try:
        with serving(FakeEngine(vocab_size=400), traces=make_traces("demo")) as running:
            assert running.http.post(CHAT, json=ASK).status_code == 200
        ((path, body),) = took
        assert path == "/v1/traces" and b"demo" in body and b"chat abbey" in body
        monkeypatch.setenv("OTEL_SERVICE_NAME", "other")
        traces = make_traces("demo")
        assert traces._provider.resource.attributes[SERVICE_NAME] == "other"
        traces.close()
    finally:
        collector.shutdown()
        collector.server_close()


def test_what_is_not_done_or_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(InputError, match="OTEL_EXPORTER_OTLP_PROTOCOL = 'grpc'; expected 'http/protobuf'"):
        make_traces("demo")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"tracing = True needs opentelemetry.*: pip install 'abi-jax\[otel\]'"):
        make_traces("demo")
    for name in [
        name for name in tuple(sys.modules) if name.startswith(("opentelemetry", "abi_jax.serve.http.tracing"))
    ]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"tracing = True needs abi_jax\.serve|tracing = True needs opentelemetry"):
        make_traces("demo")
