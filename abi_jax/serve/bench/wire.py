"""HTTP/1.1 to one server, with as little between socket and clock as there can be.

What arrives is kept as it came, beside the time of the read that brought it, and is looked at only when the run is
over: a general client spends more on a chunk than a small model's server does on a token.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter
from urllib.parse import urlsplit

import httptools

from abi_jax.errors import InputError


@dataclass(slots=True)
class Reply:
    """What came back: `reads` are the body's parts and `perf_counter` when each was read.

    failure: why there is no whole answer, empty where there is. status: 0 where none came.
    """

    start: float = 0.0
    end: float = 0.0
    status: int = 0
    kind: str = ""
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    failure: str = ""

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(part for _, part in self.reads)


@dataclass(frozen=True)
class Address:
    """Where a server is. `path` stands before that of every request."""

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Reads `http://host:8000` or `https://host/v1`; a last `/v1` is left out. Raises `InputError`."""
        expected = f"url = {url!r}; expected e.g. http://127.0.0.1:8000"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise InputError(f"{expected}: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise InputError(expected)
        tls = parts.scheme == "https"
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, path)

    def __str__(self) -> str:
        return f"http{'s' if self.tls else ''}://{self.host}:{self.port}{self.path}"


class Wire:
    """Requests to one server, over connections that are used again."""

    def __init__(self, address: Address, headers: Mapping[str, str] | None = None, seconds: float = 600.0) -> None:
        """seconds: what an answer may take."""
        self.address, self.seconds = address, seconds
        lines = {"host": f"{address.host}:{address.port}", "accept": "*/*", **(headers or {})}
        if any("\n" in text or "\r" in text for line in lines.items() for text in line):
            raise InputError("a header of the request has a line break")
        self._head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._tls = ssl.create_default_context() if address.tls else None
        self._idle: list[_Connection] = []

    async def get(self, path: str) -> Reply:
        """Asks for `path`."""
        return await self._ask(f"GET {self.address.path}{path} HTTP/1.1\r\n{self._head}\r\n".encode())

    def post(self, path: str, body: bytes) -> bytes:
        """A request, ready to be sent: what it costs to make is not part of an answer's time."""
        head = f"POST {self.address.path}{path} HTTP/1.1\r\n{self._head}content-type: application/json\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    async def send(self, request: bytes) -> Reply:
        """Sends what `post` made and waits for all of the answer. What goes wrong is in `Reply.failure`."""
        return await self._ask(request)

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()

    async def _ask(self, request: bytes) -> Reply:
        reply = Reply(start=perf_counter())
        try:
            async with asyncio.timeout(self.seconds):
                await self._exchange(request, reply)
        except TimeoutError:
            reply.failure = f"no whole answer in {self.seconds:g} seconds"
        except OSError as error:
            reply.failure = f"cannot reach {self.address}: {error.strerror or error}"
        reply.end = reply.end or perf_counter()
        return reply

    async def _exchange(self, request: bytes, reply: Reply) -> None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost and await self._use(connection, request, reply):
                return
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self.address.host, self.address.port, ssl=self._tls)
        if not await self._use(connection, request, reply):
            reply.failure = "the server closed the connection without an answer"

    async def _use(self, connection: "_Connection", request: bytes, reply: Reply) -> bool:
        """False where the connection ended before a byte of the answer: a server may close one that is idle."""
        try:
            await connection.ask(request, reply)
        except BaseException:
            connection.forget()
            raise
        if connection.keeps:
            self._idle.append(connection)
        else:
            connection.transport.abort()
        return bool(reply.status or reply.failure)


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.lost = False
        self._reply: Reply | None = None
        self._done: asyncio.Future[None] | None = None

    async def ask(self, request: bytes, reply: Reply) -> None:
        """Sends a request; returns when all of `reply` is there, or will never be."""
        self._parser = httptools.HttpResponseParser(self)
        self._reply, self._now, self._ends_with_connection = reply, 0.0, True
        self._head_over = self.keeps = False
        self._done = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await self._done

    def forget(self) -> None:
        """Nobody waits any more: whatever still comes is of no interest."""
        self._reply = None
        self.transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if self._reply is None:
            self.transport.abort()
            return
        self._now = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"what came is not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        self.lost = True
        reply = self._reply
        if reply is None:
            return
        if self._head_over and self._ends_with_connection and exc is None:
            self._end()
        elif reply.status:
            self._end("the server closed the connection in the middle of its answer")
        else:
            self._end()

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header of the answer."""
        assert self._reply is not None
        lower = name.lower()
        if lower == b"content-type":
            self._reply.kind = value.decode("latin-1")
        elif lower in (b"content-length", b"transfer-encoding"):
            self._ends_with_connection = False

    def on_headers_complete(self) -> None:
        """The status is known."""
        assert self._reply is not None
        self._head_over = True
        self._reply.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        assert self._reply is not None
        self._reply.reads.append((self._now, body))

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self.keeps = bool(self._parser.should_keep_alive())
        self._end()

    def _end(self, failure: str = "") -> None:
        reply, self._reply = self._reply, None
        if reply is None:
            return
        reply.end, reply.failure = self._now or perf_counter(), failure
        if self._done is not None:
            with contextlib.suppress(asyncio.InvalidStateError):  # whoever waited was cancelled
                self._done.set_result(None)
