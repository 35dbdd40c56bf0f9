"""`/v1/chat/completions`."""

import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request as HttpRequest

from abi_jax.errors import InputError
from abi_jax.model.generate import Prompt
from abi_jax.serve.engine.seam import TokenLogprobs
from abi_jax.serve.http.answers import ChatAnswer
from abi_jax.serve.http.asking import Wanted, begin, check_length, find_mixture, to_voices
from abi_jax.serve.http.body import read
from abi_jax.serve.http.chat_request import ChatRequest
from abi_jax.serve.http.chunks import LOWEST, Chunks, wants_usage
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.forms import find_form, functions_of, messages_of, question_of
from abi_jax.serve.http.generation import Choice, Generation
from abi_jax.serve.http.recall import recall
from abi_jax.serve.http.respond import Answering
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.threads import in_thread
from abi_jax.serve.tools import Call, CallReader, policy
from abi_jax.serve.voices import Request, Voices
from abi_jax.wdbx.policy import Role


async def chat(http: HttpRequest) -> Answering:
    """Answers a conversation."""
    body = await read(http, ChatRequest)
    made, form = await prepare(http, body)
    return Answering(made, form, bool(body.stream))


async def prepare(http: HttpRequest, body: ChatRequest) -> "tuple[Generation, ChatForm]":
    """Submits what a conversation asks for. Raises `ApiError` for what cannot be done."""
    service: Service = http.app.state.service
    voices, usage, wanted = service.voices, wants_usage(body), _wanted(body)
    mixture = find_mixture(body, voices)
    functions = functions_of(body)
    messages = messages_of(body.messages)
    check_length(service, (message["content"] for message in messages))
    recalled = await recall(http, body.options.memory, question_of(body.messages))
    check_length(service, recalled.texts)
    request = replace(to_voices(body, mixture, messages, wanted), memory=recalled.texts)
    if functions:
        told = await in_thread(policy, functions)
        check_length(service, [told])
        request = replace(request, policy=told)
    form = await find_form(body, service, functions)
    prompt, limit = await in_thread(_render, voices, request, service.worker.engine.max_length)
    wanted = replace(wanted, max_tokens=limit, grammar=form)
    made = await begin(http, body, request, [prompt], wanted, "chat", recalled.told, recalled.seconds)
    return made, ChatForm(service.pieces, usage, frozenset(f.name for f in functions))


def _render(voices: Voices, request: Request, context: int) -> tuple[Prompt, int]:
    try:
        prompt = voices.prompt(request)
    except InputError as error:
        raise ApiError(400, str(error), "messages", "invalid_value") from None
    return prompt, voices.settings(request).limit(context - len(prompt.tokens))


def _wanted(body: ChatRequest) -> Wanted:
    limits = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(limits) > 1:
        message = f"max_tokens = {body.max_tokens}: expected max_completion_tokens, {body.max_completion_tokens}"
        raise ApiError(400, message, "max_tokens", "invalid_value")
    if body.top_logprobs is not None and not body.logprobs:
        message = f"top_logprobs = {body.top_logprobs}: expected logprobs = true with it"
        raise ApiError(400, message, "top_logprobs", "invalid_value")
    return Wanted(next(iter(limits), None), (body.top_logprobs or 0) if body.logprobs else None)


@dataclass(eq=False)
class ChatForm(Chunks):
    """`chat.completion` and its chunks. calls: the functions that answers may call."""

    OBJECT, CHUNK = "chat.completion", "chat.completion.chunk"

    calls: frozenset[str] = frozenset()
    _readers: dict[int, CallReader] = field(default_factory=dict)
    _called: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    def whole(self, made: Generation) -> Mapping[str, Any]:
        """All choices, finished."""
        return self._whole(made, [self._choice(choice) for choice in made.choices])

    def opening(self, made: Generation) -> list[Mapping[str, Any]]:
        """Who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [self._delta(made, choice.index, delta) for choice in made.choices]

    def chunk(self, made: Generation, choice: Choice) -> dict[str, Any] | None:
        """What is new of a choice."""
        logprobs = self._logprobs(choice, choice.fresh_from)
        text, calls = self._read(choice)
        if not (text or calls or choice.finish or (logprobs and logprobs["content"])):
            return None
        delta: dict[str, Any] = {"content": text} if text or not (calls or choice.finish) else {}
        if calls:
            start = self._called[choice.index] - len(calls)
            delta["tool_calls"] = [{"index": start + i, **_call(call)} for i, call in enumerate(calls)]
        choice.told()
        return self._delta(made, choice.index, delta, logprobs, self._finish(choice))

    def _choice(self, choice: Choice) -> dict[str, Any]:
        choice.fresh = "".join(choice.said)
        text, calls = self._read(choice)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if calls:
            message |= {"content": text or None, "tool_calls": [_call(call) for call in calls]}
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice, 0),
            "finish_reason": self._finish(choice),
        }

    def _read(self, choice: Choice) -> tuple[str, list[Call]]:
        """What is new of a choice, as text and calls."""
        if not self.calls:
            return choice.fresh, []
        reader = self._readers.setdefault(choice.index, CallReader(self.calls))
        text, calls = reader.push(choice.fresh)
        choice.fresh = ""
        self._called[choice.index] += len(calls)
        return text + (reader.flush() if choice.finish else ""), calls

    def _finish(self, choice: Choice) -> str | None:
        return "tool_calls" if choice.finish == "stop" and self._called[choice.index] else choice.finish

    def _plain(self, choice: Choice) -> bool:
        del choice
        return not self.calls

    def _text(self, made: Generation, choice: Choice, text: str) -> dict[str, Any]:
        return self._delta(made, choice.index, {"content": text})

    def _delta(
        self, made: Generation, index: int, delta: Mapping[str, Any], logprobs: Any = None, finish: str | None = None
    ) -> dict[str, Any]:
        return self._chunk(made, [{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}])

    def _logprobs(self, choice: Choice, start: int) -> dict[str, Any] | None:
        if choice.job.logprobs is None:
            return None
        told = zip(choice.tokens[start:], choice.logprobs[start:], strict=True)
        return {"content": [self._token(token, found) for token, found in told], "refusal": None}

    def _token(self, token: int, found: TokenLogprobs | None) -> dict[str, Any]:
        top = () if found is None else found.top
        told = self._one(token, LOWEST if found is None else found.logprob)
        return {**told, "top_logprobs": [self._one(other, value) for other, value in top]}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        text = self.pieces.text(token)
        return {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(self.pieces.bytes(token))}


def _call(call: Call) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


RULES = (Rule("POST", "/v1/chat/completions", chat, Role.READER, "Answers a conversation.", ChatRequest, ChatAnswer),)
