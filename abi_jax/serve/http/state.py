"""Who speaks here, and whether it does: `/v1/models`, `/health`, `/ready`, `/metrics`."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from abi_jax.errors import InputError
from abi_jax.persona import BASE, Persona, parse_mixture
from abi_jax.serve.http.answers import ModelAnswer, ModelsAnswer, StateAnswer
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.service import Service
from abi_jax.wdbx.policy import Role


async def models(http: Request) -> JSONResponse:
    """Lists the personas, and the model without any."""
    service: Service = http.app.state.service
    found = [_model(service, persona) for persona in service.voices.personas]
    return JSONResponse({"object": "list", "data": [*found, _model(service, None)]})


async def model(http: Request) -> JSONResponse:
    """Tells of one of them, or of a mixture."""
    service: Service = http.app.state.service
    name = http.path_params["model"]
    try:
        mixture = parse_mixture(name, service.voices.names)
    except InputError as error:
        raise ApiError(404, f"model {name!r}: {error}", "model", "model_not_found") from None
    persona = next((p for p in service.voices.personas if p.name == name), None)
    return JSONResponse({**_model(service, persona), "id": name, "abi": {"mixture": mixture}})


async def health(http: Request) -> JSONResponse:
    """200 while the engine's steps complete, else 503 with the reason."""
    service: Service = http.app.state.service
    failure = service.worker.failure
    return JSONResponse({"ok": failure is None, "error": failure}, 200 if failure is None else 503)


async def ready(http: Request) -> JSONResponse:
    """200 while new requests are taken."""
    service: Service = http.app.state.service
    failure = service.worker.failure or ("the server is shutting down" if service.draining else None)
    return JSONResponse({"ok": failure is None, "error": failure}, 200 if failure is None else 503)


async def metrics(http: Request) -> Response:
    """All series, for Prometheus."""
    service: Service = http.app.state.service
    text, kind = await asyncio.to_thread(service.metrics.text, http.headers.get("accept", ""))
    return Response(text, media_type=kind)


def _model(service: Service, persona: Persona | None) -> dict[str, Any]:
    return {
        "id": BASE if persona is None else persona.name,
        "object": "model",
        "created": service.created,
        "owned_by": service.name,
        "root": service.name,
        "max_model_len": service.worker.engine.max_length,
    }


RULES = (
    Rule("GET", "/v1/models", models, Role.READER, "Lists personas, and the model without any.", None, ModelsAnswer),
    Rule("GET", "/v1/models/{model:path}", model, Role.READER, "Tells of one, or of a mixture.", None, ModelAnswer),
    Rule("GET", "/health", health, None, "200 while the engine's steps complete.", None, StateAnswer),
    Rule("GET", "/ready", ready, None, "200 while new requests are taken.", None, StateAnswer),
    Rule("GET", "/metrics", metrics, Role.READER, "All series, for Prometheus."),
)
