"""Queries by id: `/v1/abi/process`, `/v1/abi/queries`. An answer that nobody waits for is fetched later."""

import asyncio
import logging

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from abi_jax.serve.http.answers import QueriesAnswer, QueryAnswer
from abi_jax.serve.http.auth import who_asks
from abi_jax.serve.http.body import read
from abi_jax.serve.http.chat import ChatForm, prepare
from abi_jax.serve.http.chat_request import ChatRequest
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.generation import Generation
from abi_jax.serve.http.queries import Cancelled, Query
from abi_jax.serve.http.respond import write
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.service import Service
from abi_jax.wdbx.policy import Role

LOG = logging.getLogger("abi_jax.serve.http")


async def process(http: Request) -> Response:
    """Takes a conversation on and returns at once with the id that its answer is asked for by."""
    service: Service = http.app.state.service
    body = await read(http, ChatRequest)
    if body.stream:
        raise ApiError(400, "stream = True: expected a request that nobody listens to", "stream", "invalid_value")
    made, form = await prepare(http, body)
    query = service.queries.keep(made)
    service.running += 1  # before the task's first step: draining never sees a moment without it
    task = asyncio.create_task(_follow(service, query, made, form))
    service.background.add(task)
    task.add_done_callback(service.background.discard)
    return _told(query, 202)


async def queries(http: Request) -> Response:
    """Lists what runs and what waits to be asked for, without the answers."""
    service: Service = http.app.state.service
    return JSONResponse({"object": "list", "data": [query.told() for query in service.queries.all(who_asks(http))]})


async def query(http: Request) -> Response:
    """Tells how far a query is, and its answer once there is one."""
    service: Service = http.app.state.service
    return _told(service.queries.find(http.path_params["id"], who_asks(http)))


async def cancel(http: Request) -> Response:
    """Ends a query, whoever waits for it; one that has ended stays as it is."""
    service: Service = http.app.state.service
    found = service.queries.find(http.path_params["id"], who_asks(http))
    if found.made is not None:
        found.made.give_up(Cancelled())
    return _told(found)


async def _follow(service: Service, query: Query, made: Generation, form: ChatForm) -> None:
    try:
        await made.finish()
        query.answer = await write(made, form)
    except ApiError as error:
        query.error = error
    except Exception:
        LOG.exception("a query failed", extra={"told": {"id": made.id}})
        query.error = ApiError(500, "the server failed; its log says how", code="internal_error")
    finally:
        service.running -= 1
        made.close()
        service.gate.charge(query.owner, made.usage()["total_tokens"])


def _told(query: Query, status: int = 200) -> Response:
    return Response(query.whole(), status, media_type="application/json")


RULES = (
    Rule("POST", "/v1/abi/process", process, Role.READER, "Answers, but not at once.", ChatRequest, QueryAnswer, 202),
    Rule("GET", "/v1/abi/queries", queries, Role.READER, "Lists one's queries.", None, QueriesAnswer),
    Rule("GET", "/v1/abi/queries/{id}", query, Role.READER, "Tells how far a query is.", None, QueryAnswer),
    Rule("DELETE", "/v1/abi/queries/{id}", cancel, Role.READER, "Ends a query.", None, QueryAnswer, late=True),
)
