"""The application: routes over one service."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from abi_jax.errors import InputError
from abi_jax.serve.http.errors import ApiError, handle, respond
from abi_jax.serve.http.observe import Observed
from abi_jax.serve.http.origin import OwnPages
from abi_jax.serve.http.routes import RULES
from abi_jax.serve.http.service import Service
from abi_jax.serve.worker import EngineStopped, QueueFull


def make_app(service: Service) -> Starlette:
    """The application, which starts and stops the service with itself."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.stop()
            if service.store is not None:
                await asyncio.to_thread(service.store.close)
            if service.traces is not None:
                await asyncio.to_thread(service.traces.close)

    handlers = {
        **dict.fromkeys((ApiError, InputError, QueueFull, EngineStopped), handle),
        HTTPException: _refused,
        Exception: _failed,
    }
    app = Starlette(
        routes=[rule.route() for rule in RULES],
        middleware=[Middleware(Observed), Middleware(OwnPages)],
        exception_handlers=handlers,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _refused(http: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{http.method} {http.url.path}: {error.detail.lower()}"
    return respond(ApiError(error.status_code, message, headers=error.headers or {}))


async def _failed(http: Request, error: Exception) -> Response:
    del http, error
    return respond(ApiError(500, "the server failed; its log says how", code="internal_error"))
