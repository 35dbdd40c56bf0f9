"""Runs the application: limits on what comes before a body, and an end that finishes what runs."""

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import threading
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from abi_jax.serve.http.app import make_app
from abi_jax.serve.http.limits import Limits
from abi_jax.serve.http.service import Service

LOG = logging.getLogger("abi_jax.serve.http")
FAREWELL = 5.0  # seconds for what is sent when the engine has failed
LAST = 20.0  # seconds after which the process ends then: a device that is gone may keep any thread for ever


def guarded(limits: Limits) -> type[HttpToolsProtocol]:
    """A protocol that closes connections that send too much or too slowly, or take nothing of what is sent to them."""

    class Guarded(HttpToolsProtocol):
        """Of one connection."""

        _timer: asyncio.TimerHandle | None = None
        _watcher: asyncio.TimerHandle | None = None
        _left = math.inf  # bytes that waited to be taken when it was last looked, and could not become more
        _read = 0  # bytes of the newest request
        _begun = 0  # requests, ever
        _in_head = True
        _between = True

        def connection_made(self, transport: Any) -> None:
            """Waits for the first request."""
            super().connection_made(transport)
            self._timer = self.loop.call_later(limits.head_seconds, transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            """Nothing more comes."""
            self._stop()
            if self._watcher is not None:
                self._watcher.cancel()
                self._watcher = None
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            """Counts what belongs to a request."""
            for start in range(0, len(data), _SLICE):
                part = data[start : start + _SLICE]
                begun, whole = self._begun, self._between
                super().data_received(part)
                if self.transport.is_closing():
                    return
                # where requests share a part, what of it is the newest's is not known and small
                new = self._begun - begun
                self._read = (len(part) if whole and new == 1 else 0) if new else self._read + len(part)
                if self._in_head and self._read > limits.head_bytes:
                    self.transport.write(_TOO_LONG)
                    self.transport.close()
                    return
                # chunks may be smaller than what is written around them, and end with headers that nobody reads
                if self._read > limits.head_bytes + 2 * limits.body_bytes + _LINGERED and not self._between:
                    self.transport.abort()
                    return

        def on_message_begin(self) -> None:
            """A request begins, the first or another one."""
            super().on_message_begin()
            self._begun += 1
            self._in_head, self._between = True, False
            if self._timer is None:
                self._timer = self.loop.call_later(limits.head_seconds, self.transport.abort)

        def on_header(self, name: bytes, value: bytes) -> None:
            """A header; those after a body are dropped."""
            if self._in_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            """Its head is there."""
            self._stop()
            self._in_head = False
            self.scope["state"]["abort"] = self.transport.abort
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            """All of it is there."""
            self._between = True
            super().on_message_complete()

        def on_response_complete(self) -> None:
            """The answer is written, but perhaps not taken."""
            super().on_response_complete()
            if self.pipeline:  # else each answer would let in thousands of requests more
                self.flow.pause_reading()
            if self.transport.get_write_buffer_size():
                self._watch()

        def pause_writing(self) -> None:
            """Much waits to be taken."""
            super().pause_writing()
            self._left = math.inf
            self._watch()

        def resume_writing(self) -> None:
            """Little does."""
            super().resume_writing()
            self._left = math.inf

        def _watch(self) -> None:
            if self._watcher is None:
                self._watcher = self.loop.call_later(limits.take_seconds / 2, self._look)

        def _look(self) -> None:
            self._watcher = None
            left = self.transport.get_write_buffer_size()
            if not left:
                return
            if self._left - left < _LEAST:
                self.transport.abort()
                return
            self._left = left if self.flow.write_paused or self.transport.is_closing() else math.inf
            self._watch()

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Guarded


_SLICE = 2**14  # bytes that are read and counted at a time
_LEAST = 4096  # bytes that a client takes at least in half its time
_LINGERED = 2**20  # bytes of a body that nobody wants and that is yet waited for
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def server_config(app: Starlette, limits: Limits, **settings: Any) -> uvicorn.Config:
    """uvicorn's settings. What it would log of requests, the application does."""
    return uvicorn.Config(
        app,
        http=guarded(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=4096,
        timeout_graceful_shutdown=5,
        **settings,
    )


class DrainingServer(uvicorn.Server):
    """On SIGTERM and SIGINT what runs is finished and what is new is refused; the second signal ends at once.

    So does an engine that has failed, whose answers end with the reason: whoever started the server starts it again.
    """

    def __init__(self, config: uvicorn.Config, service: Service, last: float | None = None) -> None:
        """last: seconds after an engine's failure in which the process ends, whatever still runs in it."""
        super().__init__(config)
        self.service, self._last = service, last
        self.port = config.port
        self._ending: asyncio.Task[None] | None = None
        self._asked = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says where."""
        await super().startup(sockets)
        self.port = self.servers[0].sockets[0].getsockname()[1]
        scheme = "https" if self.config.ssl else "http"
        url = f"{scheme}://{self.config.host}:{self.port}/v1"
        LOG.info("serving", extra={"told": {"url": url, "personas": list(self.service.voices.names)}})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by the signal."""
        del frame
        self._asked += 1
        if self._asked > 1:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT

    async def on_tick(self, counter: int) -> bool:
        """Begins to drain when a signal has come, or the engine has failed."""
        if self._ending is None and (self._asked or self.service.worker.failed is not None):
            self._ending = asyncio.create_task(self._end())
        return await super().on_tick(counter)

    async def _end(self) -> None:
        seconds, failed = self.service.limits.drain_seconds, self.service.worker.failed
        LOG.info("draining", extra={"told": {"running": self.service.running, "failed": failed}})
        if failed is not None:
            seconds = min(seconds, FAREWELL)
            if self._last is not None:
                resort = threading.Timer(self._last, os._exit, (1,))
                resort.daemon = True
                resort.start()
        finished = await self.service.drain(seconds)
        LOG.info("drained", extra={"told": {"finished": finished}})
        self.should_exit = True


def run(service: Service, host: str, port: int, **settings: Any) -> int:
    """Serves until a signal ends it, or its engine fails; returns the port it listened on. `settings` are uvicorn's."""
    app = make_app(service)
    server = DrainingServer(server_config(app, service.limits, host=host, port=port, **settings), service, LAST)
    server.run()
    return server.port


def raise_file_limit() -> None:
    """Lets this process have as many connections as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
