"""Traces for OpenTelemetry: a server span for each request, and below it where its time went.

    POST /v1/chat/completions       method, route and status, as HTTP's conventions name them
      memory                        what is remembered was looked for
      chat abbey                    model, settings and tokens, as the conventions of generative models name them
        queue, prefill, decode      of each choice, from the times that its ticket carries

Nothing that anybody wrote is told: no path, query, key, prompt, stop string or answer. Where spans go, under which
name, and how many of them, is the SDK's to read from the variables OTEL_*.
"""

import logging
import os
import threading
import time
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagate import extract, get_global_textmap
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, format_trace_id, set_span_in_context
from starlette.types import Scope

from abi_jax import __version__
from abi_jax.errors import InputError
from abi_jax.serve.http.generation import Choice, Generation
from abi_jax.serve.http.metrics import label

LOG = logging.getLogger("abi_jax.serve.http")
FLUSH = 5.0  # seconds that the end of a server waits for a collector
UNTRACED = frozenset({"/health", "/ready", "/metrics"})  # asked every few seconds, by machines
_SUPPORTED = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
_SUPPORTED["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"


class Traces:
    """Makes the traces of a server."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("abi_jax.serve", __version__)
        self._fields = {name.encode(): name for name in get_global_textmap().fields}

    @classmethod
    def from_environment(cls, name: str) -> "Traces":
        """Traces that go where the variables OTEL_* say, by a thread of their own; `name`: unless these name it.

        Raises `InputError` for an exporter or a protocol that is not done here.
        """
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        for variable, expected in _SUPPORTED.items():
            if (given := os.environ.get(variable) or expected) != expected:
                raise InputError(f"{variable} = {given!r}; expected {expected!r}")
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: name}))
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        return cls(provider)

    def begin(self, scope: Scope) -> "Trace | None":
        """The trace of a request, None of one that has none. It is its client's trace, where the request names one."""
        if scope["path"] in UNTRACED:
            return None
        told = {self._fields[name]: value.decode("latin-1") for name, value in scope["headers"] if name in self._fields}
        return Trace(self._tracer, extract(told), scope)

    def close(self) -> None:
        """Sends what was not sent yet, and waits for it no longer than `FLUSH`."""
        thread = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        thread.start()
        thread.join(FLUSH)
        if thread.is_alive():
            LOG.warning("the last traces were not sent", extra={"told": {"seconds": FLUSH}})


class Trace:
    """Of one request. Times are `time.monotonic` seconds. Belongs to the event loop's thread."""

    def __init__(self, tracer: Tracer, parent: Context, scope: Scope) -> None:
        self._tracer = tracer
        self._shift = time.time_ns() - time.monotonic_ns()
        state = scope["state"]
        self._server = tracer.start_span(
            scope["method"],
            parent,
            SpanKind.SERVER,
            {"http.request.method": scope["method"], "url.scheme": scope["scheme"]},
            start_time=self._at(state["arrived"]),
        )
        self._within = set_span_in_context(self._server, parent)
        found = self._server.get_span_context()
        self.id = format_trace_id(found.trace_id) if found.is_valid else None

    def part(
        self,
        name: str,
        start: float,
        end: float,
        told: Mapping[str, Any] | None = None,
        within: Context | None = None,
        error: str | None = None,
    ) -> Context:
        """Something that took from `start` to `end`; what it consists of is `within` what is returned."""
        within = within or self._within
        span = self._tracer.start_span(name, within, attributes=told, start_time=self._at(start))
        if error is not None:
            _fail(span, error)
        span.end(self._at(max(start, end)))
        return set_span_in_context(span, within)

    def generation(self, made: Generation) -> None:
        """An answer that is over, however it ended."""
        choices = [choice for choice in made.choices if choice.ticket is not None]
        if not choices or not self._server.get_span_context().trace_flags.sampled:
            return
        now = time.monotonic()
        start = min(choice.ticket.arrived for choice in choices if choice.ticket is not None)
        name = f"{made.asked.operation} {made.asked.model}"
        within = self.part(name, start, now, _answer(made), error=made.failed)
        for choice in choices:
            self._choice(choice, now, within)

    def end(self, scope: Scope, status: int) -> None:
        """The request is over. status: what it was answered with, 0 if with nothing."""
        state, route = scope["state"], scope.get("route")
        if route is not None:
            self._server.update_name(f"{scope['method']} {route.path}")
            self._server.set_attribute("http.route", route.path)
        self._server.set_attribute("abi.request_id", state["request_id"])
        if status:
            self._server.set_attribute("http.response.status_code", status)
        if ended := state.get("ended"):
            self._server.set_attribute("abi.ended", ended)
        if status >= 500 or state.get("failed"):
            _fail(self._server, state.get("failed") or str(status))
        self._server.end()

    def _choice(self, choice: Choice, now: float, within: Context) -> None:
        ticket = choice.ticket
        assert ticket is not None
        # the engine may not yet have ended one that met a stop string or was given up
        end = now if ticket.ended is None else ticket.ended
        read = {
            "gen_ai.usage.input_tokens": len(choice.job.prompt.tokens),
            "gen_ai.usage.cache_read.input_tokens": choice.cached_tokens,
        }
        times = (ticket.arrived, ticket.begun, ticket.read, None)
        said = {"gen_ai.usage.output_tokens": len(choice.tokens)}
        parts: tuple[tuple[str, dict[str, int]], ...] = (("queue", {}), ("prefill", read), ("decode", said))
        for (name, told), (since, until) in zip(parts, pairwise(times), strict=True):
            if since is not None:
                self.part(name, since, end if until is None else until, {"abi.choice": choice.index, **told}, within)

    def _at(self, moment: float) -> int:
        return int(moment * 1e9) + self._shift


def _answer(made: Generation) -> dict[str, Any]:
    """What is told of an answer."""
    asked, usage, job = made.asked, made.usage(), made.choices[0].job
    sampling = job.prompt.sampling
    told = {
        "gen_ai.operation.name": asked.operation,
        "gen_ai.provider.name": "abi",
        "gen_ai.request.model": asked.model,
        "gen_ai.response.model": made.service.name,
        "gen_ai.response.id": made.id,
        "gen_ai.request.max_tokens": job.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.seed": asked.seed,
        "gen_ai.request.frequency_penalty": job.frequency_penalty,
        "gen_ai.request.presence_penalty": job.presence_penalty,
        "gen_ai.request.choice.count": len(made.choices),
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": usage["completion_tokens"],
        "gen_ai.usage.cache_read.input_tokens": usage["prompt_tokens_details"]["cached_tokens"],
        "gen_ai.response.finish_reasons": [choice.ended or "abort" for choice in made.choices],
        "abi.persona": label(asked.mixture),
    }
    if sampling.top_k:
        told["gen_ai.request.top_k"] = sampling.top_k
    if first := [choice.first for choice in made.choices if choice.first is not None]:
        told["gen_ai.response.time_to_first_chunk"] = min(first) - made.arrived
    return told


def _fail(span: Span, why: str) -> None:
    span.set_attribute("error.type", why)
    span.set_status(Status(StatusCode.ERROR))
