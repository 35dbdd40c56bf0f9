"""What is told of texts: `/v1/embeddings`, their vectors, and `/v1/moderations`, whether they may stand."""

import base64
import time
import uuid
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Discriminator, Field, Tag
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from abi_jax.serve.http.answers import Usage
from abi_jax.serve.http.body import read
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.schema import Name, Strict, Text
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.threads import ENCODING, in_thread
from abi_jax.wdbx.policy import Role

_Texts = Annotated[list[Text], Field(min_length=1, max_length=2048, fail_fast=True)]
Input = Annotated[
    Annotated[Text, Tag("Text")] | Annotated[_Texts, Tag("Texts")],
    Discriminator(lambda given: "Texts" if isinstance(given, list) else "Text"),
]
FLAGGED = 0.5


class EmbeddingsRequest(Strict):
    """OpenAI's request, with texts alone: ids would be of another tokenizer than the encoder's."""

    input: Input
    model: Name
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: Name | None = None


class ModerationsRequest(Strict):
    """OpenAI's request, with texts alone."""

    input: Input
    model: Name | None = None


class Embedding(BaseModel):
    """One vector; in base64, float32 with the lowest byte first."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsAnswer(BaseModel):
    """All vectors."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: Usage


class ModerationsAnswer(BaseModel):
    """What was found, of each text."""

    id: str
    model: str
    results: list[dict[str, Any]]


async def embeddings(http: Request) -> Response:
    """Makes vectors of texts."""
    service: Service = http.app.state.service
    body = await read(http, EmbeddingsRequest)
    embedder = service.embedder
    if embedder is None:
        message = f"model {body.model!r}: this server has no sentence encoder; its configuration names one as `encoder`"
        raise ApiError(404, message, "model", "model_not_found")
    if body.model != embedder.model:
        message = f"model {body.model!r} makes no vectors; expected {embedder.model!r}"
        raise ApiError(404, message, "model", "model_not_found")
    if body.dimensions not in (None, embedder.dimension):
        message = f"dimensions = {body.dimensions}: expected {embedder.dimension}"
        raise ApiError(400, message, "dimensions", "invalid_value")
    texts = [body.input] if isinstance(body.input, str) else body.input
    start = time.monotonic()
    vectors, tokens = await in_thread(embedder.embed, texts, threads=ENCODING)
    if trace := http.scope["state"].get("trace"):
        told = {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.provider.name": "abi",
            "gen_ai.request.model": body.model,
            "gen_ai.usage.input_tokens": tokens,
            "gen_ai.embeddings.dimension.count": embedder.dimension,
        }
        trace.part(f"embeddings {body.model}", start, time.monotonic(), told)
    packed = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": i, "embedding": _packed(row) if packed else row.tolist()}
        for i, row in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    http.scope["state"] |= {"model": body.model, "usage": usage}
    return JSONResponse({"object": "list", "model": embedder.model, "data": data, "usage": usage})


async def moderations(http: Request) -> Response:
    """Judges texts; 501 where nothing here can."""
    service: Service = http.app.state.service
    body = await read(http, ModerationsRequest)
    moderator = service.moderator
    if moderator is None:
        message = "this server has no moderation policy, so that it cannot say whether a text may stand"
        raise ApiError(501, message, code="not_configured")
    if body.model not in (None, moderator.name):
        message = f"model {body.model!r} does not judge texts; expected {moderator.name!r}"
        raise ApiError(404, message, "model", "model_not_found")
    texts = [body.input] if isinstance(body.input, str) else body.input
    start = time.monotonic()
    judged = await in_thread(moderator.judge, texts, threads=ENCODING)
    if trace := http.scope["state"].get("trace"):
        trace.part("moderation", start, time.monotonic(), {"abi.texts": len(texts)})
    found = [
        {
            "flagged": any(score >= FLAGGED for score in scores.values()),
            "categories": {name: score >= FLAGGED for name, score in scores.items()},
            "category_scores": dict(scores),
            "category_applied_input_types": {name: ["text"] for name in scores},
        }
        for scores in judged
    ]
    return JSONResponse({"id": f"modr-{uuid.uuid4().hex}", "model": moderator.name, "results": found})


def _packed(row: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(row, "<f4").tobytes()).decode()


RULES = (
    Rule("POST", "/v1/embeddings", embeddings, Role.READER, "Makes vectors.", EmbeddingsRequest, EmbeddingsAnswer),
    Rule("POST", "/v1/moderations", moderations, Role.READER, "Judges texts.", ModerationsRequest, ModerationsAnswer),
)
