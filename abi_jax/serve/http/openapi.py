"""The interface described for programs: OpenAPI 3.1, made of the routes and the models of what they take."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse

from abi_jax import __version__
from abi_jax.serve.http.answers import ErrorAnswer
from abi_jax.serve.http.rule import Rule

_STREAMED = ("/v1/chat/completions", "/v1/completions")
_REFERENCE = "#/components/schemas/{model}"


def describe(rules: Sequence[Rule]) -> dict[str, Any]:
    """The document."""
    models = {m for rule in rules for m in (rule.body, rule.answer) if m is not None} | {ErrorAnswer}
    ordered = sorted(models, key=lambda m: m.__name__)
    names, schemas = models_json_schema([(m, "validation") for m in ordered], ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for rule in rules:
        path = re.sub(r":\w+}", "}", rule.path)
        paths.setdefault(path, {})[rule.method.lower()] = _operation(rule, path, names)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "abi-jax",
            "version": __version__,
            "description": "OpenAI's interface, and what goes beyond it.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def endpoint(rules: Sequence[Rule]) -> Any:
    """The route's endpoint."""
    document: dict[str, Any] = {}

    async def openapi(_: Request) -> JSONResponse:
        if not document:
            document.update(describe(rules))
        return JSONResponse(document)

    return openapi


def _operation(rule: Rule, path: str, names: dict[Any, Any]) -> dict[str, Any]:
    def schema(model: type[BaseModel]) -> Any:
        return {"schema": names[model, "validation"]}

    plain = {"text/plain": {}} if rule.answer is None else {"application/json": schema(rule.answer)}
    content = plain | ({"text/event-stream": {}} if path in _STREAMED else {})
    operation: dict[str, Any] = {
        "operationId": f"{rule.method.lower()}{re.sub(r'[^a-z]+', '_', path)}".rstrip("_"),
        "summary": rule.about,
        "responses": {
            str(rule.status): {"description": "Done.", "content": content},
            "default": {"description": "Not done.", "content": {"application/json": schema(ErrorAnswer)}},
        },
    }
    if rule.role is not None:
        operation["security"] = [{"key": []}]
    if wanted := re.findall(r"{(\w+)}", path):
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in wanted
        ]
    if rule.body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": schema(rule.body)}}
    return operation
