"""The vector store over HTTP, `/v1/wdbx`: collections of one's tenant, and what one's role may do with them.

A tenant's collections are stored as `TENANT.NAME`, and it sees no others. Who has no tenant sees those that are no
tenant's, whose names have no dot; an administrator without a tenant sees all, by their full names. Where the server has
a policy (`wdbx.policy`), it is asked besides, by the name of the key.
"""

import base64
import contextlib
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from abi_jax.serve.http.auth import who_asks
from abi_jax.serve.http.body import read
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.keys import Principal
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.store_body import (
    CollectionAnswer,
    CollectionBody,
    CollectionsAnswer,
    DeleteBody,
    FoundAnswer,
    GetBody,
    QueryBody,
    UpsertBody,
    WrittenAnswer,
)
from abi_jax.serve.http.threads import STORE, in_thread
from abi_jax.wdbx import Collection, Database, Row
from abi_jax.wdbx.errors import ForbiddenError, NoCollectionError, WdbxError
from abi_jax.wdbx.policy import Role, needed

_T = TypeVar("_T")


async def collections(http: Request) -> Response:
    """Lists the collections that one may read."""
    store, who = open_store(http), who_asks(http)

    def found() -> dict[str, Any]:
        version, data = store.version, []
        for name in store.collections():
            if _sees(who, name) and _allowed(http, "get", name):
                with contextlib.suppress(NoCollectionError):  # somebody has dropped it meanwhile
                    data.append(_told(store.collection(name), who))
        return {"version": version, "data": data}

    return _json(await _ask(found))


async def create(http: Request) -> Response:
    """Makes a collection."""
    store, who, body = open_store(http), who_asks(http), await read(http, CollectionBody)
    name = _prefix(who) + body.name
    _check(http, "create", name)
    service: Service = http.app.state.service
    if body.texts and service.store_encoder is None:
        raise ApiError(400, "texts = True: this server has no sentence encoder", "texts", "invalid_value")

    def made() -> dict[str, Any]:
        if name in store.collections():
            raise ApiError(409, f"there is a collection {body.name!r} already", "name", "exists")
        encoder = service.store_encoder if body.texts else None
        tenant = who.tenant if store.storage.ring is not None else ""
        made = store.create_collection(name, body.dim, body.metric, body.dtype, body.fields, body.ids, encoder, tenant)
        return _told(made, who)

    return _json(await _ask(made), 201)


async def collection(http: Request) -> Response:
    """Tells of a collection."""
    return _json(await _do(http, "stats", lambda found: _told(found, who_asks(http))))


async def drop(http: Request) -> Response:
    """Takes a collection away."""
    store = open_store(http)

    def dropped(found: Collection) -> dict[str, Any]:
        store.drop_collection(found.name)
        return {"version": store.version}

    return _json(await _do(http, "drop", dropped))


async def upsert(http: Request) -> Response:
    """Writes rows, all or none; durable when it answers."""
    body = await read(http, UpsertBody)
    return _json(
        await _do(
            http, "upsert", lambda c: {"version": c.upsert(body.ids, body.vectors, body.metadata, body.documents)}
        )
    )


async def query(http: Request) -> Response:
    """Finds rows."""
    body, store = await read(http, QueryBody), open_store(http)

    def found(target: Collection) -> dict[str, Any]:
        version = store.resolve(body.at)
        hits = target.query(
            body.vector, body.top_k, body.where, version, text=body.text, mode=body.mode, recall=body.recall
        )
        data = [
            {"id": hit.id, "score": hit.score, "metadata": _plain(hit.metadata), "document": hit.document}
            for hit in hits
        ]
        return {"version": version, "data": data}

    return _json(await _do(http, "query", found))


async def get(http: Request) -> Response:
    """Tells rows, by id."""
    body, store = await read(http, GetBody), open_store(http)

    def found(target: Collection) -> dict[str, Any]:
        version = store.resolve(body.at)
        rows = target.get(body.ids, version)
        return {"version": version, "data": [None if row is None else _row(row, body.vectors) for row in rows]}

    return _json(await _do(http, "get", found))


async def delete(http: Request) -> Response:
    """Deletes rows; durable when it answers."""
    body, store = await read(http, DeleteBody), open_store(http)

    def gone(target: Collection) -> dict[str, Any]:
        return {"deleted": target.delete(body.ids), "version": store.version}

    return _json(await _do(http, "delete", gone))


async def _do(http: Request, action: str, what: Callable[[Collection], _T]) -> _T:
    """Does something with the collection of the path."""
    return await in_collection(http, action, http.path_params["collection"], what)


async def in_collection(http: Request, action: str, name: str, what: Callable[[Collection], _T]) -> _T:
    """Does something with a collection, as its caller may, on a thread. `name`: as the caller's tenant calls it."""
    store, who = open_store(http), who_asks(http)
    full = _prefix(who) + name
    _check(http, action, full)

    def done() -> _T:
        if not _sees(who, full):
            raise ApiError(404, f"there is no collection {name!r}", "collection", "not_found")
        try:
            return what(store.collection(full))
        except NoCollectionError:  # perhaps no more: somebody else has dropped it meanwhile
            raise ApiError(404, f"there is no collection {name!r}", "collection", "not_found") from None

    return await _ask(done)


async def _ask(what: Callable[[], _T]) -> _T:
    """Does something with the store, on a thread. Raises `WdbxError` also where a file of it cannot be read."""

    def done() -> _T:
        try:
            return what()
        except WdbxError:
            raise
        except OSError as error:
            raise WdbxError(str(error)) from error

    return await in_thread(done, threads=STORE)


def _check(http: Request, action: str, name: str) -> None:
    if not _allowed(http, action, name):
        message = f"{who_asks(http).name!r} may not {action} here; expected {needed(action).name.lower()}"
        raise ApiError(403, message, code="forbidden")


def _allowed(http: Request, action: str, name: str) -> bool:
    service: Service = http.app.state.service
    who = who_asks(http)
    try:
        if service.policy is not None:
            service.policy.check(who.name, action, name)
    except ForbiddenError:
        return False
    return who.role >= needed(action)


def _told(found: Collection, who: Principal) -> dict[str, Any]:
    spec = found.spec
    told = {name: getattr(spec, name) for name in ("dim", "metric", "dtype", "ids")}
    name = found.name.removeprefix(_prefix(who))
    return {"name": name, **told, "fields": dict(spec.schema), "rows": len(found)}


def _row(row: Row, vectors: bool) -> dict[str, Any]:
    told = {"id": row.id, "metadata": _plain(row.metadata), "document": row.document, "born": row.born}
    return {**told, "vector": row.vector.astype("float64").tolist()} if vectors else told


def _json(told: Any, status: int = 200) -> Response:
    """An answer. JSON has no numbers that are not finite; rows that the library wrote may hold some: null."""
    return Response(to_json(told, inf_nan_mode="null"), status, media_type="application/json")


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Metadata as JSON: times as ISO 8601, bytes as base64."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime):
            return value.isoformat()
        return base64.b64encode(value).decode() if isinstance(value, bytes) else value

    return {name: plain(value) for name, value in metadata.items()}


def _prefix(who: Principal) -> str:
    return f"{who.tenant}." if who.tenant else ""


def _sees(who: Principal, name: str) -> bool:
    """Whether a collection, by its full name, is there for somebody at all."""
    if who.tenant:
        return name.startswith(_prefix(who))
    return who.role >= Role.ADMIN or "." not in name


def open_store(http: Request) -> Database:
    """The server's store. Raises `ApiError` where it has none."""
    service: Service = http.app.state.service
    if service.store is None:
        raise ApiError(404, "this server has no vector store; its configuration names one as `memory`", code="no_store")
    return service.store


_ALL, _ONE = "/v1/wdbx/collections", "/v1/wdbx/collections/{collection}"
RULES = (
    Rule("GET", _ALL, collections, Role.READER, "Lists collections.", None, CollectionsAnswer),
    Rule("POST", _ALL, create, Role.ADMIN, "Makes a collection.", CollectionBody, CollectionAnswer, 201),
    Rule("GET", _ONE, collection, Role.READER, "Tells of a collection.", None, CollectionAnswer),
    Rule("DELETE", _ONE, drop, Role.ADMIN, "Takes a collection away.", None, WrittenAnswer),
    Rule("POST", f"{_ONE}/upsert", upsert, Role.WRITER, "Writes rows.", UpsertBody, WrittenAnswer),
    Rule("POST", f"{_ONE}/query", query, Role.READER, "Finds rows.", QueryBody, FoundAnswer),
    Rule("POST", f"{_ONE}/get", get, Role.READER, "Tells rows.", GetBody, FoundAnswer),
    Rule("POST", f"{_ONE}/delete", delete, Role.WRITER, "Deletes rows.", DeleteBody, WrittenAnswer),
)
