"""`/v1/abi/users`: users' own adaptations, as safetensors files. A tenant's users are its own."""

import asyncio
from typing import Literal

from pydantic import BaseModel
from safetensors.numpy import save
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from abi_jax.model.users import to_arrays
from abi_jax.serve.engine.paged import PagedEngine
from abi_jax.serve.http.asking import user_of
from abi_jax.serve.http.body import check_kind, read_bytes
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.threads import STORE, in_thread
from abi_jax.serve.users import UserFolder
from abi_jax.wdbx.policy import Role

KIND = "application/octet-stream"


class UserAnswer(BaseModel):
    """Whether a user has an adaptation."""

    id: str
    object: Literal["abi.user"]
    adapted: bool


async def put(http: Request) -> Response:
    """Gives a user an adaptation; answers that begin from now on are spoken with it."""
    service, folder, user = _found(http)
    check_kind(http, KIND)
    data = await read_bytes(http)
    terms = await in_thread(folder.parse, data, "the body", threads=STORE)
    await in_thread(folder.put, user, terms, threads=STORE)
    await _forget(service, user)
    return JSONResponse(_told(http, True))


async def get(http: Request) -> Response:
    """Returns a user's adaptation."""
    _, folder, user = _found(http)
    terms = await in_thread(folder.get, user, threads=STORE)
    if terms is None:
        raise ApiError(404, f"user {http.path_params['user']!r} has no adaptation", "user", "not_found")
    return Response(await in_thread(save, to_arrays(terms[0]), threads=STORE), media_type=KIND)


async def delete(http: Request) -> Response:
    """Deletes a user's adaptation, here and on the device; there, as soon as no answer is spoken with it any more."""
    service, folder, user = _found(http)
    if not await in_thread(folder.delete, user, threads=STORE):
        raise ApiError(404, f"user {http.path_params['user']!r} has no adaptation", "user", "not_found")
    await _forget(service, user)
    return JSONResponse(_told(http, False))


async def _forget(service: Service, user: str) -> None:
    engine = service.worker.engine
    if isinstance(engine, PagedEngine):
        await asyncio.wrap_future(service.worker.call(lambda: engine.forget_user(user)))


def _found(http: Request) -> tuple[Service, UserFolder, str]:
    service: Service = http.app.state.service
    if service.users is None:
        message = "this server keeps no users' adaptations; its configuration names a folder as `users`"
        raise ApiError(404, message, code="no_users")
    return service, service.users, user_of(http, http.path_params["user"])


def _told(http: Request, adapted: bool) -> dict[str, object]:
    return {"id": http.path_params["user"], "object": "abi.user", "adapted": adapted}


_ONE = "/v1/abi/users/{user}"
RULES = (
    Rule("GET", _ONE, get, Role.READER, "A user's adaptation, as safetensors."),
    Rule("PUT", _ONE, put, Role.WRITER, "Gives a user an adaptation, a safetensors file.", None, UserAnswer),
    Rule("DELETE", _ONE, delete, Role.WRITER, "Deletes a user's adaptation.", None, UserAnswer),
)
