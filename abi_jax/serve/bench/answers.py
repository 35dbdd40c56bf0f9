"""What a stream of server-sent events said, and when."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from abi_jax.serve.bench.wire import Reply

_SAYING = ("content", "reasoning_content", "reasoning", "refusal")


@dataclass(frozen=True)
class Answer:
    """One answer, times in seconds of one clock.

    times: of the chunks that said something, the first token's first; end: of the last chunk of the answer. tokens:
    as the server counts them, else chunks, and then `counted` is True. prompt_tokens, cached_tokens: as the server
    tells, None where it does not. failure: why it does not count, empty where it does; nothing else holds then.
    """

    start: float
    end: float
    times: tuple[float, ...] = ()
    tokens: int = 0
    counted: bool = False
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    text: str = ""
    failure: str = ""

    @property
    def ttft(self) -> float:
        """Time to first token."""
        return self.times[0] - self.start

    @property
    def e2e(self) -> float:
        """End to end."""
        return self.end - self.start

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None of a single one."""
        return (self.e2e - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def itl(self) -> list[float]:
        """Inter-token latencies: from chunk to chunk."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


def events(reply: Reply) -> Iterator[tuple[float, bytes]]:
    """The data of each server-sent event, with the time of the read that completed it."""
    rest = b""
    for time, part in reply.reads:
        rest += part.replace(b"\r", b"")
        *whole, rest = rest.split(b"\n\n")
        for event in whole:
            yield from _data(time, event)
    if rest.strip():
        yield from _data(reply.reads[-1][0], rest)


def _data(time: float, event: bytes) -> Iterator[tuple[float, bytes]]:
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    if lines:
        yield time, b"\n".join(lines)


def read(reply: Reply) -> Answer:
    """What an answer of either endpoint was."""
    if reply.failure or reply.status != 200 or "text/event-stream" not in reply.kind:
        return Answer(reply.start, reply.end, failure=_refusal(reply))
    times: list[float] = []
    texts: list[str] = []
    end = reply.start
    usage: dict[str, Any] = {}
    for time, data in events(reply):
        if data.strip() == b"[DONE]":
            break
        try:
            chunk = json.loads(data)
            if chunk.get("error"):
                return Answer(reply.start, time, failure=f"in the stream: {_message(chunk)}")
            for choice in chunk.get("choices") or ():
                end = time
                if text := _said(choice):
                    times.append(time)
                    texts.append(text)
            usage = chunk.get("usage") or usage
        except (ValueError, TypeError, AttributeError):
            told = data[:200].decode(errors="replace")
            return Answer(reply.start, time, failure=f"an event that is no chunk of an answer: {told}")
    if end == reply.start:
        return Answer(reply.start, reply.end, failure="an answer without a chunk")
    details = usage.get("prompt_tokens_details") or {}
    counted = usage.get("completion_tokens")
    return Answer(
        reply.start,
        end,
        tuple(times) or (end,),
        len(times) if counted is None else counted,
        counted is None,
        usage.get("prompt_tokens"),
        details.get("cached_tokens"),
        "".join(texts),
    )


def _said(choice: dict[str, Any]) -> str:
    delta = choice.get("delta")
    if delta is None:
        return choice.get("text") or ""
    said = "".join(delta.get(name) or "" for name in _SAYING)
    return said or (json.dumps(delta["tool_calls"]) if delta.get("tool_calls") else "")


def _refusal(reply: Reply) -> str:
    if reply.failure:
        return reply.failure
    if reply.status == 200:
        return f"the server does not stream: content-type {reply.kind or 'not told'!s}"
    try:
        told = _message(json.loads(reply.body))
    except ValueError:
        told = reply.body[:300].decode(errors="replace").strip()
    return f"{reply.status}: {told}" if told else str(reply.status)


def _message(body: Any) -> str:
    """The message of an error as OpenAI's servers, FastAPI's and others send it."""
    found = body
    for name in ("error", "message"):
        found = found.get(name, found) if isinstance(found, dict) else found
    if isinstance(found, dict):
        found = found.get("detail", found)
    return (found if isinstance(found, str) else json.dumps(found))[:300]
