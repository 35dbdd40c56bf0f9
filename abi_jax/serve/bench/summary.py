"""From answers to figures, by the definitions of `vllm bench serve`."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from abi_jax.serve.bench.load import Ran

MEASURES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2e_ms": "end to end"}
STATISTICS = ("mean", "median", "p90", "p95", "p99")
BUSY = 0.8  # of a core: a load generator that works so hard may be what is measured


def summarize(ran: Ran) -> dict[str, Any]:
    """One point as JSON. Times in milliseconds, None where no answer gave any; throughputs a second.

    ttft: from sending a request to its first token; tpot: from the first token to the end, over the tokens after the
    first; itl: from one chunk to the next; e2e: from sending to the end. tokens_counted is by "server", or by "chunks"
    where it does not tell. prompt_tokens and cached_tokens are as the server tells. client_cpu: share of a core that
    the load generator used.
    """
    whole = [answer for answer in ran.answers if not answer.failure]
    tokens = sum(answer.tokens for answer in whole)
    prompt = _told(answer.prompt_tokens for answer in whole)
    failures = Counter(answer.failure for answer in ran.answers if answer.failure)
    point = ran.point
    return {
        "concurrency": point.concurrency,
        "rate": None if math.isinf(point.rate) else point.rate,
        "requests": len(ran.answers),
        "completed": len(whole),
        "failed": len(ran.answers) - len(whole),
        "errors": dict(failures.most_common(10)),
        "seconds": round(ran.seconds, 3),
        "prompt_tokens": prompt,
        "cached_tokens": _told(answer.cached_tokens for answer in whole),
        "output_tokens": tokens,
        "tokens_counted": "chunks" if any(answer.counted for answer in whole) else "server",
        "request_throughput": round(len(whole) / ran.seconds, 3),
        "output_throughput": round(tokens / ran.seconds, 2),
        "total_throughput": None if prompt is None else round((prompt + tokens) / ran.seconds, 2),
        "ttft_ms": statistics([answer.ttft for answer in whole]),
        "tpot_ms": statistics([answer.tpot for answer in whole if answer.tpot is not None]),
        "itl_ms": statistics([gap for answer in whole for gap in answer.itl]),
        "e2e_ms": statistics([answer.e2e for answer in whole]),
        "client_cpu": round(ran.cpu_seconds / ran.seconds, 3),
    }


def _told(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def statistics(seconds: Sequence[float]) -> dict[str, float] | None:
    """Mean, median and percentiles (interpolated) in milliseconds."""
    if not seconds:
        return None
    values = 1e3 * np.asarray(seconds)
    at = np.percentile(values, [50, 90, 95, 99]).tolist()
    return {name: round(value, 3) for name, value in zip(STATISTICS, [float(values.mean()), *at], strict=True)}


def told(point: dict[str, Any]) -> str:
    """One point as text."""
    load = "as many at a time as come" if point["concurrency"] is None else f"{point['concurrency']} at a time"
    load += "" if point["rate"] is None else f", {point['rate']:g} a second"
    lines = [
        f"{load}: {point['completed']} of {point['requests']} answered in {point['seconds']:.2f} s, "
        f"{point['request_throughput']:.2f} requests/s, {point['output_throughput']:.1f} output tokens/s",
        f"  {'ms':<11}" + "".join(f"{name:>10}" for name in STATISTICS),
    ]
    for name, title in MEASURES.items():
        found = point[name]
        cells = ["-"] * len(STATISTICS) if found is None else [f"{found[s]:.2f}" for s in STATISTICS]
        lines.append(f"  {title:<11}" + "".join(f"{cell:>10}" for cell in cells))
    prompt, cached = point["prompt_tokens"], point["cached_tokens"]
    tokens = f"  tokens: {point['output_tokens']} out"
    tokens += "" if prompt is None else f", {prompt} in"
    tokens += "" if cached is None else f", {cached} of them cached"
    lines.append(tokens + (", counted as chunks" if point["tokens_counted"] == "chunks" else ""))
    lines += [f"  failed {count} times: {error}" for error, count in point["errors"].items()]
    if point["client_cpu"] > BUSY:
        lines.append(f"  this client used {100 * point['client_cpu']:.0f}% of a core: it may be what was measured")
    return "\n".join(lines)
