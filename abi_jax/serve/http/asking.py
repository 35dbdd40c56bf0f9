"""From a request to jobs: who speaks, how it is drawn, what is counted."""

import secrets
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request as HttpRequest

from abi_jax.errors import InputError
from abi_jax.model.generate import Prompt
from abi_jax.persona import check_mixture, parse_mixture
from abi_jax.serve.engine.seam import Job
from abi_jax.serve.http.auth import who_asks
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.generation import Asked, Choice, Generation, Operation
from abi_jax.serve.http.schema import Sampled
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.threads import in_thread
from abi_jax.serve.voices import Message, Request, Voices

_IDS: Mapping[Operation, str] = {"chat": "chatcmpl", "text_completion": "cmpl"}


@dataclass(frozen=True)
class Wanted:
    """How long an answer may be, what is told of its tokens, and its form, as `serve.grammar` writes it.

    max_tokens: None leaves it to the persona, and with it to the context.
    """

    max_tokens: int | None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str | None = None


def find_mixture(body: Sampled, voices: Voices) -> dict[str, float]:
    """Who answers. Raises `ApiError` that names `model` or `abi.mixture`."""
    try:
        mixture = parse_mixture(body.model, voices.names)
    except InputError as error:
        raise ApiError(404, f"model {body.model!r}: {error}", "model", "model_not_found") from None
    if body.options.mixture is None:
        return mixture
    try:
        return check_mixture(body.options.mixture, voices.names)
    except InputError as error:
        raise ApiError(400, str(error), "abi.mixture", "invalid_value") from None


def check_length(service: Service, texts: Iterable[str]) -> None:
    """Raises `ApiError` for texts that no tokenizing could make fit, before it is tried."""
    longest, limit = service.pieces.longest, service.worker.engine.max_length
    if longest is None:
        return
    size = sum(map(len, texts))  # characters, of at least a byte each
    if size > limit * longest:
        message = f"prompt of {size} characters does not fit: the model's context is {limit} tokens"
        raise ApiError(400, message, code="context_length_exceeded")


def to_voices(body: Sampled, mixture: Mapping[str, float], messages: Sequence[Message], wanted: Wanted) -> Request:
    """The request of the layer below. A seed that is left out is drawn, and told with the answer."""
    return Request(
        messages,
        mixture,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        max_tokens=wanted.max_tokens or None,
        seed=secrets.randbits(32) if body.seed is None else body.seed,
        stop=body.stops,
    )


def user_of(http: HttpRequest, name: str) -> str:
    """A user as all tenants together know it."""
    return f"{who_asks(http).tenant}/{name}"


def check_count(service: Service, body: Sampled, prompts: int) -> None:
    """Raises `ApiError` for more choices than are allowed, or than may ever wait; see `Worker.submit_all`."""
    count, limits = prompts * (body.n or 1), service.limits
    places = limits.max_waiting if service.gate.open else max(1, limits.max_waiting // 2)
    if count > (limit := min(limits.choices, places)):
        why = "" if limit == limits.choices else f", as no more may wait with max_waiting = {limits.max_waiting}"
        raise ApiError(400, f"{prompts} prompts with n = {body.n or 1}: expected at most {limit} choices{why}", "n")


def make_jobs(
    service: Service, body: Sampled, prompts: Sequence[Prompt], wanted: Wanted, scope: bytes, user: str
) -> list[tuple[int, Job]]:
    """Jobs with the number of their prompt: `n` of each prompt, with seeds that follow each other."""
    assert wanted.max_tokens is not None
    grammar = None if wanted.grammar is None else service.grammar(wanted.grammar)
    return [
        (
            number,
            Job(
                replace(prompt, sampling=replace(prompt.sampling, seed=(prompt.sampling.seed + i) % 2**32)),
                wanted.max_tokens,
                frequency_penalty=body.frequency_penalty or 0.0,
                presence_penalty=body.presence_penalty or 0.0,
                logit_bias=body.logit_bias or {},
                ignore_eos=body.ignore_eos,
                logprobs=wanted.logprobs,
                prompt_logprobs=wanted.prompt_logprobs,
                grammar=None if grammar is None else grammar.copy(),
                scope=scope,
                user=user,
            ),
        )
        for number, prompt in enumerate(prompts)
        for i in range(body.n or 1)
    ]


async def begin(
    http: HttpRequest,
    body: Sampled,
    request: Request,
    prompts: Sequence[Prompt],
    wanted: Wanted,
    operation: Operation,
    memories: Sequence[Mapping[str, Any]] = (),
    memory_seconds: float = 0.0,
) -> Generation:
    """Submits what was asked; `memories`: what is told of those that were found, which took so long.

    Raises `ApiError` for more choices than are allowed, and what the engine refuses."""
    service: Service = http.app.state.service
    check_count(service, body, len(prompts))
    state, who = http.scope["state"], who_asks(http)
    user = "" if body.options.user is None else user_of(http, body.options.user)
    jobs = await in_thread(make_jobs, service, body, prompts, wanted, who.tenant.encode(), user)
    tokenizer = service.voices.tokenizer
    choices = [Choice.of(i, number, job, tokenizer, body.stops) for i, (number, job) in enumerate(jobs)]
    about = (operation, body.model, request.mixture, request.seed, memories, memory_seconds)
    asked = Asked(*about, receipt=body.options.receipt, trace=state.get("trace"))
    if asked.receipt and await in_thread(service.lineage.receipt, choices[0].answered(asked)) is None:
        raise ApiError(400, "abi.receipt = True: this server gives no receipts", "abi.receipt", "unsupported_parameter")
    id_ = f"{_IDS[operation]}-{uuid.uuid4().hex}"
    whose = "" if service.gate.open else who.share
    made = Generation(service, asked, choices, id_=id_, arrived=state["arrived"], whose=whose)
    state["model"], state["made"] = body.model, made
    made.submit()
    service.gate.count(who, len(choices) - 1)  # the first was counted before the body was read
    service.queries.add(made, who)
    return made
