"""What Prometheus reads: vLLM's names, with `abi:` in front, by persona."""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from abi_jax.persona import BASE
from abi_jax.serve.scheduler import Ticket
from abi_jax.serve.worker import Worker

if TYPE_CHECKING:
    from abi_jax.serve.http.generation import Choice

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960)
_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
_TIMES = {
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", _FIRST),
    "request_time_per_output_token_seconds": ("A request's time after its first token, by token after it.", _BETWEEN),
    "e2e_request_latency_seconds": ("From a request's arrival to its end.", _WHOLE),
    "request_queue_time_seconds": ("Waiting for a slot and pages.", _WHOLE),
    "request_prefill_time_seconds": ("Reading the prompt.", _WHOLE),
    "request_decode_time_seconds": ("Speaking.", _WHOLE),
    "request_inference_time_seconds": ("Reading and speaking.", _WHOLE),
    "request_prompt_tokens": ("Tokens of a prompt.", _TOKENS),
    "request_generation_tokens": ("Tokens of an answer.", _TOKENS),
    "request_params_max_tokens": ("Tokens that an answer might have had.", _TOKENS),
}
_COUNTS = {
    "prompt_tokens": "Tokens of prompts.",
    "generation_tokens": "Tokens of answers.",
    "prefix_cache_queries": "Tokens of prompts that were looked up in the prefix cache.",
    "prefix_cache_hits": "Tokens of prompts that were found in the prefix cache.",
    "spec_decode_num_draft_tokens": "Tokens of answers that were guessed.",
    "spec_decode_num_accepted_tokens": "Tokens of answers that were guessed, and said.",
}


class Tally(Collector):
    """A histogram that every token is added to: quicker than the library's, since only one thread adds."""

    def __init__(self, name: str, about: str, labels: Sequence[str], bounds: Sequence[float]) -> None:
        self._name, self._about, self._labelnames, self._bounds = name, about, tuple(labels), tuple(bounds)
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}

    def add(self, labels: tuple[str, ...], value: float, times: int) -> None:
        """`times` observations of `value`."""
        counts = self._counts.get(labels)
        if counts is None:
            self._sums[labels] = 0.0  # first: another thread reads both by the labels of the counts
            counts = self._counts[labels] = [0] * (len(self._bounds) + 1)
        counts[bisect_left(self._bounds, value)] += times
        self._sums[labels] += value * times

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """The histogram, without values."""
        yield HistogramMetricFamily(self._name, self._about, labels=self._labelnames)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histogram, as Prometheus reads it."""
        made = HistogramMetricFamily(self._name, self._about, labels=self._labelnames)
        for labels, counts in tuple(self._counts.items()):
            sums = accumulate(counts)
            buckets = [(floatToGoString(bound), n) for bound, n in zip((*self._bounds, math.inf), sums, strict=True)]
            made.add_metric(labels, buckets, self._sums[labels])
        yield made


class Metrics:
    """All series of one server. Belongs to the event loop's thread, but for `text`."""

    def __init__(self, worker: Worker, name: str) -> None:
        self._name = name
        self._registry = CollectorRegistry()
        labels = ("model_name", "persona")
        self._times = {
            key: Histogram(f"abi:{key}", about, labels, buckets=buckets, registry=self._registry)
            for key, (about, buckets) in _TIMES.items()
        }
        self._counts = {
            key: Counter(f"abi:{key}", about, labels, registry=self._registry) for key, about in _COUNTS.items()
        }
        self._ended = Counter(
            "abi:request_success",
            "Answers that ended, by reason.",
            (*labels, "finished_reason"),
            registry=self._registry,
        )
        self._http = Counter(
            "abi:http_requests", "HTTP requests.", ("handler", "method", "status"), registry=self._registry
        )
        self._between = Tally("abi:inter_token_latency_seconds", "From a token to the next.", labels, _BETWEEN)
        self._registry.register(self._between)
        self._gauges(worker)

    def text(self, accept: str) -> tuple[bytes, str]:
        """All series in the format that `accept` names, and its content type."""
        encoder, kind = choose_encoder(accept)
        return encoder(self._registry), kind

    def began(self, persona: str, seconds: float, tokens: int) -> None:
        """The first token came, `seconds` after the request, and others at the same time. persona: see `label`."""
        self._times["time_to_first_token_seconds"].labels(self._name, persona).observe(seconds)
        if tokens > 1:
            self._between.add((self._name, persona), 0.0, tokens - 1)

    def spoke(self, persona: str, seconds: float, tokens: int) -> None:
        """`tokens` came, `seconds` after the last ones."""
        self._between.add((self._name, persona), seconds / tokens, tokens)

    def count(self, persona: str, choice: "Choice") -> None:
        """Counts what came of an answer since it was last called for it."""
        ticket = choice.ticket
        if ticket is None:
            return
        read = 0 if ticket.begun is None else len(choice.job.prompt.tokens)
        counts = (read, len(choice.tokens), read, choice.cached_tokens, ticket.guessed, ticket.accepted)
        for key, now, before in zip(_COUNTS, counts, choice.counted, strict=True):
            if now > before:
                self._counts[key].labels(self._name, persona).inc(now - before)
        choice.counted = counts

    def ended(self, persona: str, choice: "Choice", arrived: float, reason: str) -> None:
        """An answer ended, or is given up now. Call it once for each."""
        ticket = choice.ticket
        if ticket is None:
            return
        prompt, said = len(choice.job.prompt.tokens), len(choice.tokens)
        for key, value in _spent(ticket, arrived, said).items():
            self._times[key].labels(self._name, persona).observe(value)
        sizes = {
            "request_prompt_tokens": prompt,
            "request_generation_tokens": said,
            "request_params_max_tokens": choice.job.max_tokens,
        }
        for key, value in sizes.items():
            self._times[key].labels(self._name, persona).observe(value)
        self.count(persona, choice)
        self._ended.labels(self._name, persona, reason).inc()

    def asked(self, handler: str, method: str, status: int) -> None:
        """A request is over. handler: a route's path, never what a client wrote; status: what came of it in the end."""
        self._http.labels(handler, method, str(status)).inc()

    def _gauges(self, worker: Worker) -> None:
        def gauge(key: str, about: str, value: Callable[[], float]) -> None:
            made = Gauge(f"abi:{key}", about, ("model_name",), registry=self._registry)
            made.labels(self._name).set_function(value)

        gauge("num_requests_waiting", "Answers that wait for a slot.", lambda: worker.load.waiting)
        gauge(
            "num_requests_running",
            "Answers that are read or spoken.",
            lambda: worker.load.reading + worker.load.speaking,
        )
        gauge(
            "kv_cache_usage_perc", "Pages held by answers, 1 for all.", lambda: worker.usage.used / worker.usage.pages
        )
        gauge("kv_cache_pages", "Pages of the key-value cache.", lambda: worker.usage.pages)
        gauge("kv_cache_pages_cached", "Pages kept for prompts to come.", lambda: worker.usage.cached)
        gauge("engine_steps", "Steps of the engine so far.", lambda: worker.steps)
        gauge("engine_healthy", "1 while steps complete.", lambda: float(worker.failure is None))


def label(mixture: Mapping[str, float]) -> str:
    """The label of a mixture: its one persona, `base`, or `mixture`, whatever it is of."""
    if not mixture:
        return BASE
    return next(iter(mixture)) if len(mixture) == 1 else "mixture"


def _spent(ticket: Ticket, arrived: float, said: int) -> dict[str, float]:
    # the engine may not yet have ended one that met a stop string or was given up
    ended = time.monotonic() if ticket.ended is None else ticket.ended
    spent = {"e2e_request_latency_seconds": ended - arrived}
    if ticket.begun is not None:
        spent["request_queue_time_seconds"] = ticket.begun - ticket.arrived
        spent["request_inference_time_seconds"] = ended - ticket.begun
    if ticket.begun is not None and ticket.read is not None:
        spent["request_prefill_time_seconds"] = ticket.read - ticket.begun
        spent["request_decode_time_seconds"] = ended - ticket.read
        if said > 1:
            spent["request_time_per_output_token_seconds"] = (ended - ticket.read) / (said - 1)
    return spent
