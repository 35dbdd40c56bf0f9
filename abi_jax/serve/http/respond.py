"""Answers on the wire: one JSON object, or server-sent events; given up when nobody listens any more."""

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from abi_jax.serve.http.errors import ApiError, from_exception
from abi_jax.serve.http.generation import Choice, Generation
from abi_jax.serve.http.threads import in_thread

GRACE = 5.0  # seconds that a client which takes nothing gets beyond the time of its request
_SSE = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


class Gone(ApiError):
    """Nobody listens any more."""

    def __init__(self) -> None:
        super().__init__(499, "the client went away")


class Form(Protocol):
    """How answers look."""

    def whole(self, made: Generation) -> Mapping[str, Any]:
        """All of them, finished."""

    def opening(self, made: Generation) -> list[Mapping[str, Any]]:
        """Chunks before anything is said."""

    def chunk(self, made: Generation, choice: Choice) -> dict[str, Any] | None:
        """What is new of a choice, None where nothing is."""

    def line(self, made: Generation, choice: Choice) -> bytes | None:
        """The same as it is sent, where all that is new is text; None where `chunk` is to be asked."""

    def usage(self, made: Generation) -> Mapping[str, Any] | None:
        """The chunk at the end, None where it was not asked for."""


class Answering(Response):
    """Sends what a submitted generation says."""

    def __init__(self, made: Generation, form: Form, stream: bool) -> None:
        self.made, self.form, self.stream = made, form, stream
        self.status_code, self.background = 200, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs until everything is sent, the client is gone, or time is over."""
        made, service = self.made, self.made.service
        gone = asyncio.create_task(_gone(receive))
        this, stuck = asyncio.current_task(), False

        def left(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                made.give_up(Gone())

        def give_up() -> None:
            nonlocal stuck
            stuck = True
            if this is not None:
                this.cancel()

        gone.add_done_callback(left)
        patience = service.limits.request_seconds + GRACE
        timer = asyncio.get_running_loop().call_later(patience, give_up)
        service.running += 1
        try:
            await (self._stream(scope, send) if self.stream else self._whole(scope, receive, send))
        except ApiError as error:
            if not isinstance(error, Gone):
                raise
            scope["state"] |= {"ended": "client gone", "outcome": error.status}
        except asyncio.CancelledError:
            if not stuck or this is None:
                raise
            this.uncancel()
            scope["state"] |= {"ended": "client took nothing", "outcome": Gone().status}
            if abort := scope["state"].get("abort"):
                abort()
        finally:
            service.running -= 1
            timer.cancel()
            gone.cancel()
            made.close()
            scope["state"]["usage"] = made.usage()

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.made.finish()
        await Response(await write(self.made, self.form), media_type="application/json")(scope, receive, send)

    async def _stream(self, scope: Scope, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in _SSE.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        made, form = self.made, self.form
        send = scope["state"]["send"]  # past the layers that look at heads alone
        try:
            await _send(send, form.opening(made))
            async for changed in made.updates():
                if not all(choice.finish is not None for choice in made.choices):
                    lines = [form.line(made, choice) or _event(form.chunk(made, choice)) for choice in changed]
                    if body := b"".join(lines):
                        await send({"type": "http.response.body", "body": body, "more_body": True})
                    continue
                chunks = [chunk for choice in changed if (chunk := form.chunk(made, choice)) is not None]
                if chunks:
                    chunks[-1]["abi"] = await in_thread(made.told) if made.large else made.told()
                await _send(send, chunks)
            usage = form.usage(made)
            await _send(send, [] if usage is None else [usage])
        except Exception as error:
            known = from_exception(error)  # the status is sent already; bugs end the connection
            if isinstance(known, Gone):
                raise
            scope["state"] |= {"failed" if known.status >= 500 else "ended": known.code, "outcome": known.status}
            await _send(send, [known.body()])
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})


async def write(made: Generation, form: Form) -> bytes:
    """A finished answer as JSON; a large one is written on a thread."""

    def written() -> bytes:
        return to_json(form.whole(made))

    return await in_thread(written) if made.large else written()


async def _send(send: Send, chunks: list[Any]) -> None:
    if chunks:
        body = b"".join(map(event, chunks))
        await send({"type": "http.response.body", "body": body, "more_body": True})


def event(chunk: Mapping[str, Any]) -> bytes:
    """A chunk as it is sent."""
    return b"data: " + to_json(chunk) + b"\n\n"


def _event(chunk: Mapping[str, Any] | None) -> bytes:
    return b"" if chunk is None else event(chunk)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
