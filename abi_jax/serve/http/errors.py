"""What goes wrong, in the shape that OpenAI's clients read."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from abi_jax.errors import InputError
from abi_jax.serve.worker import EngineStopped, QueueFull
from abi_jax.wdbx.errors import WdbxError

LOG = logging.getLogger("abi_jax.serve.http")
MOST_ERRORS = 1000  # that are looked at; each takes microseconds, and a body has room for a million
SHOWN = 80  # characters of a value in a message
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_NEVER_BETTER = (501, 504)  # clients that try again on a 5xx are told not to
_SCALARS = frozenset({"str", "int", "float", "bool"})
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


@dataclass(eq=False)
class ApiError(Exception):
    """Answers with `status`. `param` is the dotted path of the parameter that is to blame."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def shown(value: Any) -> str:
    """A value as a message quotes it."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def from_validation(error: ValidationError) -> ApiError:
    """A 400 that names the first parameter that does not fit, its value and what was expected."""
    if (count := error.error_count()) > MOST_ERRORS:
        return ApiError(
            400, f"the body has {count} errors: expected what /openapi.json describes", code="invalid_value"
        )
    first, *others = error.errors(include_url=False, include_context=False)
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON that can be read: {first['msg']}", code="invalid_json")
    where = _path(first["loc"])
    if first["type"] == "extra_forbidden":
        message = f"unsupported parameter {where} = {shown(first['input'])}"
        return ApiError(400, message, where, "unsupported_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"missing parameter {where}", where, "missing_required_parameter")
    # alternatives of one place, each with its own complaint
    complaints = [first["msg"], *(each["msg"] for each in others if _path(each["loc"]) == where)]
    expected = " or ".join(dict.fromkeys(map(_plain, complaints)))
    message = f"{where or 'the body'} = {shown(first['input'])}: {expected}"
    return ApiError(400, message, where or None, "invalid_value")


def _plain(complaint: str) -> str:
    return complaint.removeprefix("Value error, ").replace("Input should be", "expected")


def _path(places: tuple[int | str, ...]) -> str:
    """A dotted path without what pydantic adds for the alternatives of a union."""

    def named(at: int) -> bool:
        place = places[at]
        if isinstance(place, int):
            return True
        before = places[at - 1] if at else None
        tag = before == "response_format" or (isinstance(before, int) and place in _ROLES)
        return not (tag or place in _SCALARS or "[" in place or place[:1].isupper() or place.startswith("constrained-"))

    return ".".join(str(place) for at, place in enumerate(places) if named(at))


def from_exception(error: Exception) -> ApiError:
    """Turns what the layers below raise into an answer; raises again what is a bug."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return from_validation(error)
    if isinstance(error, WdbxError):  # its message names files, of everybody's
        LOG.error("the vector store did not do what it was asked: %s", error)
        message = "the vector store cannot do this now; the server's log says why"
        return ApiError(503, message, code="store_unavailable", headers={"retry-after": "5"})
    if isinstance(error, InputError):
        return ApiError(400, str(error), code="invalid_value")
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full", headers={"retry-after": "1"})
    if isinstance(error, EngineStopped):
        return ApiError(503, str(error), code="unavailable", headers={"retry-after": "5"})
    raise error


def respond(error: ApiError) -> Response:
    """The error as a response."""
    headers = {"x-should-retry": "false"} if error.status in _NEVER_BETTER else {}
    return Response(to_json(error.body()), error.status, {**headers, **error.headers}, "application/json")


async def handle(_: Request, error: Exception) -> Response:
    """Starlette's handler of everything that `from_exception` knows."""
    return respond(from_exception(error))
