"""Bodies are read within limits of size and time, and refused where they exceed them before they are understood."""

import asyncio
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from abi_jax.serve.http.errors import ApiError, from_validation
from abi_jax.serve.http.service import Service

SMALL = 2**16  # bytes of a body that is parsed on the event loop
_Model = TypeVar("_Model", bound=BaseModel)


async def read(http: Request, model: type[_Model]) -> _Model:
    """Reads a body of JSON as what `model` describes. Raises `ApiError`: 400, 408, 413 or 415."""
    check_kind(http, "application/json")
    data = await read_bytes(http)
    if len(data) <= SMALL:
        return _understand(model, data)
    return await asyncio.to_thread(_understand, model, data)


def _understand(model: type[_Model], data: bytes) -> _Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise from_validation(error) from None


def check_kind(http: Request, expected: str) -> None:
    """Raises `ApiError` 415 for a body that does not say it is of a kind.

    Browsers send bodies of a few kinds, or of none, to any server for any page; for others they ask the server first.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != expected:
        raise ApiError(415, f"content-type = {kind!r}: expected {expected}", code="unsupported_media_type")


async def read_bytes(http: Request) -> bytes:
    """Reads a body. Raises `ApiError` 413 for one that is too large, 408 for one that does not arrive in time."""
    service: Service = http.app.state.service
    limit, patience = service.limits.body_bytes, service.limits.body_seconds
    declared = http.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    try:
        async with asyncio.timeout(patience):
            async for part in http.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
    except TimeoutError:
        message = f"the body did not arrive within {patience:g} seconds"
        raise ApiError(408, message, code="timeout") from None
    except ClientDisconnect:
        raise ApiError(499, "the client went away") from None
    http.scope["state"]["body_read"] = True
    return b"".join(parts)


def _too_large(limit: int) -> ApiError:
    message = f"the body is too large: expected at most {limit} bytes"
    return ApiError(413, message, code="too_large")
