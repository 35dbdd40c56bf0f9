"""What an answer remembers: texts that the request brings, and rows of the vector store that its question finds."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from abi_jax.errors import InputError
from abi_jax.serve.http.auth import who_asks
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.schema import MemoryScope
from abi_jax.serve.http.store import in_collection, open_store
from abi_jax.wdbx import Collection
from abi_jax.wdbx.errors import WdbxError


@dataclass(frozen=True)
class Recalled:
    """Texts for the memory's place of the prompt; what is told of those that were found; seconds it took."""

    texts: tuple[str, ...] = ()
    told: tuple[Mapping[str, Any], ...] = ()
    seconds: float = 0.0


async def recall(http: Request, scope: MemoryScope | None, question: str) -> Recalled:
    """Looks for what `scope` allows, as its caller may. Raises `ApiError` for a collection without texts."""
    if scope is None:
        return Recalled()
    if scope.collection is None:
        _refuse_without_collection(scope)
        return Recalled(tuple(scope.texts))
    start, store = time.monotonic(), open_store(http)
    tenant = who_asks(http).tenant

    def found(collection: Collection) -> Recalled:
        version = store.resolve(scope.at)
        link = store.link(version)
        asked = question if scope.query is None else scope.query
        hits = [
            hit
            for hit in collection.query(text=asked, top_k=scope.top_k, where=scope.where, at=version, mode=scope.mode)
            if scope.min_score is None or hit.score >= scope.min_score
        ]
        told = []
        for hit in hits:
            if hit.document is None:
                message = f"row {hit.id!r} of collection {scope.collection!r} has no text; expected documents"
                raise ApiError(400, message, "abi.memory.collection", "invalid_value")
            digest = hashlib.sha256(hit.document.encode()).hexdigest()
            at = {"collection": scope.collection, "tenant": tenant, "version": version, "link": link}
            told.append({**at, "id": hit.id, "score": float(hit.score), "text": hit.document, "sha256": digest})
        return Recalled((*scope.texts, *(each["text"] for each in told)), tuple(told))

    try:
        recalled = await in_collection(http, "query", scope.collection, found)
    except WdbxError:
        raise
    except InputError as error:
        raise ApiError(400, str(error), "abi.memory", "invalid_value") from None
    finally:
        end = time.monotonic()
        if trace := http.scope["state"].get("trace"):
            trace.part("memory", start, end)
    return Recalled(recalled.texts, recalled.told, end - start)


def _refuse_without_collection(scope: MemoryScope) -> None:
    given = scope.model_fields_set - {"texts", "collection"}
    if given:
        name = min(given)
        message = f"abi.memory.{name} = {getattr(scope, name)!r}: expected abi.memory.collection with it"
        raise ApiError(400, message, f"abi.memory.{name}", "invalid_value")
