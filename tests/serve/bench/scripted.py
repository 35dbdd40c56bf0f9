"""A server that answers as it is told, byte by byte and delay by delay."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Script = list[tuple[float, bytes]]  # seconds to wait, then what is written


def head(status: int = 200, kind: str = "text/event-stream", *more: str) -> bytes:
    """Status line and headers of a chunked answer, or with `more` of another."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}", *(more or ("transfer-encoding: chunked",))]
    return "\r\n".join([*lines, "", ""]).encode()


def chunk(data: bytes) -> bytes:
    """A chunk of the transfer encoding; an empty one ends the answer."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(told: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + (told if isinstance(told, bytes) else json.dumps(told).encode()) + b"\n\n"


def said(text: str, finish: str | None = None, usage: Any = None) -> bytes:
    """An event of a completion."""
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}], "usage": usage})


def whole(status: int, body: Any) -> Script:
    """An answer that is JSON and no stream."""
    data = json.dumps(body).encode()
    return [(0.0, head(status, "application/json", f"content-length: {len(data)}") + data)]


@dataclass
class Scripted:
    """What arrived: bodies and headers of the requests; how many connections were made; how many requests were under
    way at once, at most. expected: nobody is answered until so many are."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    connections: int = 0
    most: int = 0
    expected: int = 0
    _open: int = 0


@contextlib.contextmanager
def scripted(answer: Callable[[str, dict[str, Any]], Script], closes: bool = False) -> Iterator[Scripted]:
    """Serves what `answer` makes of path and body; `closes`: the connection, after each answer."""
    listener = socket.create_server(("127.0.0.1", 0))
    told = Scripted(f"http://127.0.0.1:{listener.getsockname()[1]}")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(x.split(":")[1]) for x in lines.splitlines() if x.startswith("content-length")), 0)
                body = json.loads(await reader.readexactly(length) or b"{}")
                told.heads.append(lines)
                told.bodies.append(body)
                told._open += 1
                told.most = max(told.most, told._open)
                while told.most < told.expected:
                    await asyncio.sleep(0.002)
                for wait, data in answer(lines.split()[1], body):
                    await asyncio.sleep(wait)
                    writer.write(data)
                    await writer.drain()
                told._open -= 1
                if closes:
                    break
        writer.close()

    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def until() -> None:
        async with await asyncio.start_server(serve, sock=listener):
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(until(),), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(60)
