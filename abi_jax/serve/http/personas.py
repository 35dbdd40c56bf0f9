"""`/v1/abi/personas`: who can speak, changed while others are spoken with. Requests keep who they began with."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from abi_jax.config import to_dict
from abi_jax.persona import Persona, Sampling
from abi_jax.serve import roster
from abi_jax.serve.http.body import read
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.schema import Strict, Text
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.threads import in_thread
from abi_jax.serve.voices import Voices
from abi_jax.text.roles import READABLE
from abi_jax.wdbx.policy import Role

_READABLE = Annotated[list[str], Field(min_length=1, max_length=len(READABLE))]


class SamplingBody(Strict):
    """How a persona's words are drawn; what is left out is the default of `abi_jax.persona.Sampling`."""

    temperature: float = Sampling.temperature
    top_p: float = Sampling.top_p
    top_k: int = Sampling.top_k
    min_p: float = Sampling.min_p
    repetition_penalty: float = Sampling.repetition_penalty
    max_tokens: int | None = Sampling.max_tokens


class PersonaBody(Strict):
    """A persona. like: trained personas and their weights, of a model that has some."""

    name: Annotated[str, Field(max_length=128)]
    title: Text = ""
    voice: Text = ""
    description: Text = ""
    sampling: SamplingBody = SamplingBody()
    reads: _READABLE | None = None
    strict_reading: bool = False
    like: dict[str, float] | None = None

    def persona(self) -> Persona:
        """As the layers below know it. Raises `InputError` for what does not fit."""
        told = self.model_dump(exclude={"like", "sampling", "reads"})
        return Persona(**told, sampling=Sampling(**self.sampling.model_dump()), reads=tuple(self.reads or READABLE))


class PersonaAnswer(PersonaBody):
    """A persona as it is. trained: it has a row of the model's own."""

    object: Literal["abi.persona"]
    trained: bool
    loss_weights: dict[str, float]


class PersonasAnswer(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[PersonaAnswer]


class GoneAnswer(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["abi.persona.deleted"]
    deleted: Literal[True]


async def personas(http: Request) -> Response:
    """Lists who can speak."""
    voices = _service(http).voices
    return JSONResponse({"object": "list", "data": [_told(voices, persona) for persona in voices.personas]})


async def persona(http: Request) -> Response:
    """Tells of one."""
    voices = _service(http).voices
    return JSONResponse(_told(voices, _find(voices, http.path_params["name"])))


async def create(http: Request) -> Response:
    """Lets one more speak."""
    service, body = _service(http), await read(http, PersonaBody)
    async with service.changing:
        if body.name in service.voices.names:
            raise ApiError(409, f"there is a persona {body.name!r} already", "name", "exists")
        await _change(service, roster.put(service.voices, body.persona(), body.like))
    return JSONResponse(_told(service.voices, _find(service.voices, body.name)), 201)


async def update(http: Request) -> Response:
    """Makes one another, whole."""
    service, body, name = _service(http), await read(http, PersonaBody), http.path_params["name"]
    if body.name != name:
        raise ApiError(400, f"name = {body.name!r}: expected {name!r}, as in the path", "name", "invalid_value")
    async with service.changing:
        _find(service.voices, name)
        await _change(service, roster.put(service.voices, body.persona(), body.like))
    return JSONResponse(_told(service.voices, _find(service.voices, name)))


async def delete(http: Request) -> Response:
    """Lets one speak no more; what runs is finished."""
    service, name = _service(http), http.path_params["name"]
    async with service.changing:
        _find(service.voices, name)
        await _change(service, roster.drop(service.voices, name))
    return JSONResponse({"id": name, "object": "abi.persona.deleted", "deleted": True})


async def _change(service: Service, voices: Voices) -> None:
    if service.roster is not None:
        await in_thread(roster.save, voices, service.roster)
    service.voices = voices


def _find(voices: Voices, name: str) -> Persona:
    found = next((p for p in voices.personas if p.name == name), None)
    if found is None:
        raise ApiError(404, f"there is no persona {name!r}; there are {', '.join(voices.names)}", "name", "not_found")
    return found


def _told(voices: Voices, persona: Persona) -> dict[str, Any]:
    like = voices.blends.get(persona.name)
    trained = voices.config.persona is not None and like is None
    return {"object": "abi.persona", **to_dict(persona), "like": like and dict(like), "trained": trained}


def _service(http: Request) -> Service:
    service: Service = http.app.state.service
    return service


_ONE = "/v1/abi/personas/{name}"
RULES = (
    Rule("GET", "/v1/abi/personas", personas, Role.READER, "Lists who can speak.", None, PersonasAnswer),
    Rule("POST", "/v1/abi/personas", create, Role.ADMIN, "Lets one more speak.", PersonaBody, PersonaAnswer, 201, True),
    Rule("GET", _ONE, persona, Role.READER, "Tells of a persona.", None, PersonaAnswer),
    Rule("PUT", _ONE, update, Role.ADMIN, "Makes a persona another.", PersonaBody, PersonaAnswer, shared=True),
    Rule("DELETE", _ONE, delete, Role.ADMIN, "Lets a persona speak no more.", None, GoneAnswer, shared=True),
)
