"""What every request passes first: it gets an id and, at its end, a line in the log. Never its body or its keys."""

import asyncio
import json
import logging
import re
import time
import uuid
from datetime import UTC, datetime
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger("abi_jax.serve.http")
LEFT = 499  # nginx's status for a client that left before its answer
LINGER, LINGER_BYTES = 1.0, 2**20  # seconds and bytes that are waited for of a body nobody reads
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Observed:
    """Middleware, outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs a request, gives its answer the header `x-request-id`, and logs it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"])
        given = told.get(b"x-request-id", b"").decode("latin-1")
        declared = told.get(b"content-length", b"0")
        unread = b"transfer-encoding" in told or declared != b"0"
        hopeless = not declared.isdigit() or int(declared) > LINGER_BYTES
        state = scope.setdefault("state", {})
        # an id from outside is used as it is, or not at all: it goes into the log
        state["request_id"] = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state["arrived"], state["send"] = time.monotonic(), send
        traces = scope["app"].state.service.traces
        if traces is not None:
            state["trace"] = traces.begin(scope)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", []), (b"x-request-id", state["request_id"].encode())]
                left = unread and not state.get("body_read")
                if left and (hopeless or status == 408 or not await _drained(receive)):
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, answer)
        except BaseException as error:  # a shutdown that waits no longer cancels
            status, state["failed"] = status or 500, type(error).__name__
            state.setdefault("outcome", 500)
            LOG.exception("a request failed", extra={"told": {"id": state["request_id"], "path": scope["path"]}})
            raise
        finally:
            self._count(scope, status)
            if trace := state.get("trace"):
                trace.end(scope, status)
            LOG.info("request", extra={"told": _line(scope, status)})

    def _count(self, scope: Scope, status: int) -> None:
        state, service = scope["state"], scope["app"].state.service
        route = scope.get("route")
        # a stream may have failed after its 200, and who is gone was sent none
        outcome = state.get("outcome", status) or LEFT
        service.metrics.asked("none" if route is None else route.path, scope["method"], outcome)
        usage, who = state.get("usage"), state.get("who")
        if usage and who is not None:
            service.gate.charge(who, usage["total_tokens"])


async def _drained(receive: Receive) -> bool:
    """Takes the rest of a body that nobody reads, if it is small and there soon; False if it is not.

    Closed with data unread, a connection is reset, and the client may never see why it was refused; kept open, it would
    let who is refused go on sending for ever.
    """
    size = 0
    try:
        async with asyncio.timeout(LINGER):
            while size < LINGER_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] != "http.request":
                    return False
                if not message.get("more_body", False):
                    return True
    except TimeoutError:
        pass
    return False


def _line(scope: Scope, status: int) -> dict[str, Any]:
    state = scope["state"]
    line = {
        "id": state["request_id"],
        "method": scope["method"],
        "path": scope["path"],
        "status": status,
        "ms": round(1e3 * (time.monotonic() - state["arrived"]), 1),
    }
    if (trace := state.get("trace")) and trace.id:
        line["trace_id"] = trace.id
    optional = ("principal", "model", "ended", "failed", "usage")
    return line | {name: state[name] for name in optional if state.get(name)}


def set_up_logs(stream: TextIO, as_json: bool) -> None:
    """Sends the server's log to a stream, a JSON object a line or as text."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    for name in ("abi_jax.serve", "uvicorn.error", "opentelemetry"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO if name == "abi_jax.serve" else logging.WARNING)


class TextLines(logging.Formatter):
    """For people."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's message and what was `told` beside it."""
        told = " ".join(
            f"{name}={json.dumps(value, default=str)}" for name, value in getattr(record, "told", {}).items()
        )
        line = f"abi: {record.getMessage()} {told}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record's time, level, logger, message, and what was `told` beside it."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        line |= getattr(record, "told", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
