"""`/v1/completions`: bare texts or token ids gone on with, and told how likely they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.requests import Request as HttpRequest

from abi_jax.model.generate import Prompt
from abi_jax.serve.engine.seam import TokenLogprobs
from abi_jax.serve.http.answers import CompletionAnswer
from abi_jax.serve.http.asking import Wanted, begin, check_count, check_length, find_mixture, to_voices
from abi_jax.serve.http.body import read
from abi_jax.serve.http.chunks import LOWEST, Chunks, wants_usage
from abi_jax.serve.http.completion_request import CompletionRequest
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.forms import find_form
from abi_jax.serve.http.generation import Choice, Generation
from abi_jax.serve.http.respond import Answering
from abi_jax.serve.http.rule import Rule
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.threads import in_thread
from abi_jax.serve.voices import Request, Voices
from abi_jax.wdbx.policy import Role

DEFAULT_MAX_TOKENS = 16  # OpenAI's


async def completions(http: HttpRequest) -> Answering:
    """Goes on with prompts."""
    service: Service = http.app.state.service
    body = await read(http, CompletionRequest)
    usage = wants_usage(body)
    if body.options.memory is not None:
        message = "abi.memory has no place in a bare text: expected a conversation"
        raise ApiError(400, message, "abi.memory", "unsupported_parameter")
    check_count(service, body, len(body.prompts))
    for each in body.prompts:
        _check_length(service, each)
    voices = service.voices
    limit = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    # a prompt that nothing follows is read for its own probabilities, or for nothing
    prompt_logprobs = (body.logprobs or 0) if limit == 0 or (body.echo and body.logprobs is not None) else None
    wanted = Wanted(limit, body.logprobs, prompt_logprobs, await find_form(body, service))
    request = to_voices(body, find_mixture(body, voices), (), wanted)
    prompts = await in_thread(_tokenise, voices, body.prompts, request)
    texts = body.prompts if isinstance(body.prompts[0], str) else None
    echo = await in_thread(_echo, voices, prompts, texts) if body.echo else None
    made = await begin(http, body, request, prompts, wanted, "text_completion")
    return Answering(made, CompletionForm(service.pieces, usage, echo), bool(body.stream))


def _check_length(service: Service, prompt: str | list[int]) -> None:
    if isinstance(prompt, str):
        check_length(service, [prompt])
    elif len(prompt) > (limit := service.worker.engine.max_length):
        message = f"prompt of {len(prompt)} tokens does not fit: the model's context is {limit} tokens"
        raise ApiError(400, message, code="context_length_exceeded")


def _tokenise(voices: Voices, prompts: Sequence[str | list[int]], request: Request) -> list[Prompt]:
    found = []
    for prompt in prompts:
        ids = voices.tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else prompt
        if not ids and voices.tokenizer.bos_id is not None:
            ids = [voices.tokenizer.bos_id]  # of nothing, the beginning of a text
        found.append(voices.continuation(np.asarray(ids, np.int32), request))
    return found


def _echo(voices: Voices, prompts: Sequence[Prompt], texts: Any) -> list[str]:
    return list(texts) if texts else [voices.tokenizer.decode(prompt.tokens.tolist()) for prompt in prompts]


@dataclass(eq=False)
class CompletionForm(Chunks):
    """`text_completion`, whole and in chunks. echo: the texts of the prompts, where answers begin with them."""

    OBJECT = CHUNK = "text_completion"

    echo: Sequence[str] | None = None

    def whole(self, made: Generation) -> Mapping[str, Any]:
        """All choices, finished."""
        choices = [
            {
                "index": choice.index,
                "text": self._prefix(choice) + "".join(choice.said),
                "logprobs": self._logprobs(choice, 0, True),
                "finish_reason": choice.finish,
            }
            for choice in made.choices
        ]
        return self._whole(made, choices)

    def opening(self, made: Generation) -> list[Mapping[str, Any]]:
        """Nothing: a prompt is echoed with what comes first after it, when its probabilities are known."""
        del made
        return []

    def chunk(self, made: Generation, choice: Choice) -> dict[str, Any] | None:
        """What is new of a choice."""
        first = choice.fresh_from == 0 and not choice.opened
        logprobs = self._logprobs(choice, choice.fresh_from, first)
        text = (self._prefix(choice) if first else "") + choice.fresh
        if not text and choice.finish is None and (logprobs is None or not logprobs["tokens"]):
            return None
        choice.told()
        return self._text(made, choice, text, logprobs)

    def _plain(self, choice: Choice) -> bool:
        return choice.opened or self.echo is None

    def _text(self, made: Generation, choice: Choice, text: str, logprobs: Any = None) -> dict[str, Any]:
        told = {"index": choice.index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish}
        return self._chunk(made, [told])

    def _prefix(self, choice: Choice) -> str:
        return "" if self.echo is None else self.echo[choice.prompt]

    def _logprobs(self, choice: Choice, start: int, with_prompt: bool) -> dict[str, Any] | None:
        if choice.job.logprobs is None:
            return None
        tokens, found = choice.tokens[start:], choice.logprobs[start:]
        offset = sum(len(self.pieces.text(token)) for token in choice.tokens[:start])
        if self.echo is not None:
            prompt = choice.job.prompt.tokens.tolist()
            if with_prompt:
                tokens, found = [*prompt, *tokens], [*(choice.prompt_logprobs or [None] * len(prompt)), *found]
            else:
                offset += sum(map(len, map(self.pieces.text, prompt)))
        texts = [self.pieces.text(token) for token in tokens]
        offsets = np.cumsum([offset, *map(len, texts)])[:-1].tolist()
        return {
            "tokens": texts,
            "token_logprobs": [None if one is None else max(one.logprob, LOWEST) for one in found],
            "top_logprobs": [self._top(token, one) for token, one in zip(tokens, found, strict=True)],
            "text_offset": offsets,
        }

    def _top(self, token: int, found: TokenLogprobs | None) -> dict[str, float] | None:
        if found is None:
            return None
        told: dict[str, float] = {}
        for other, value in ((token, found.logprob), *found.top):
            text = self.pieces.text(other)
            told[text] = max(value, LOWEST, told.get(text, LOWEST))
        return told


_ABOUT = "Goes on with texts."
RULES = (Rule("POST", "/v1/completions", completions, Role.READER, _ABOUT, CompletionRequest, CompletionAnswer),)
