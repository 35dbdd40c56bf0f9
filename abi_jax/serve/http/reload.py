"""`/v1/abi/reload`: another step of the model, its lineage checked first, without a request lost."""

from typing import Annotated, Any

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from abi_jax.errors import InputError
from abi_jax.serve.http.body import read
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.schema import Strict
from abi_jax.serve.http.service import Service
from abi_jax.wdbx.policy import Role


class ReloadBody(Strict):
    """step: of the model directory; the one to speak with by default."""

    step: Annotated[int, Field(ge=0)] | None = None


class ReloadAnswer(BaseModel):
    """What was served, and what is."""

    previous: dict[str, Any]
    lineage: dict[str, Any]


async def reload(http: Request) -> Response:
    """Speaks with another step; answers once it does."""
    service: Service = http.app.state.service
    body = await read(http, ReloadBody)
    if service.reloader is None:
        raise ApiError(404, "this server's model comes from no directory", code="not_found")
    async with service.changing:
        previous = service.lineage.told()
        try:
            await service.reload(body.step)
        except InputError as error:
            raise ApiError(409, str(error), "step", "not_loadable") from None
        return JSONResponse({"previous": dict(previous), "lineage": dict(service.lineage.told())})


RULES = (
    Rule("POST", "/v1/abi/reload", reload, Role.ADMIN, "Loads another step.", ReloadBody, ReloadAnswer, shared=True),
)
