"""What answers look like, for the description of the interface; they are not checked against it on their way out."""

from typing import Any, Literal

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What is wrong, and with which parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Of every status that is not 200."""

    error: ErrorDetail


class Usage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int
    prompt_tokens_details: dict[str, int] | None = None


class Told(BaseModel):
    """The extension field `abi`: who answered, from what, and what took how long."""

    mixture: dict[str, float]
    seed: int
    memories: list[dict[str, Any]]
    latency_ms: dict[str, float]
    lineage: dict[str, Any]
    lineages: list[dict[str, Any]] | None = None
    receipts: list[dict[str, Any] | None] | None = None


class Answer(BaseModel):
    """What completions of both kinds have in common."""

    id: str
    created: int
    model: str
    usage: Usage
    abi: Told


class ChatMessage(BaseModel):
    """What was said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatAnswer(Answer):
    """Of `/v1/chat/completions`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionChoice(BaseModel):
    """One text."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: Literal["stop", "length"]


class CompletionAnswer(Answer):
    """Of `/v1/completions`."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelAnswer(BaseModel):
    """Who can speak."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    abi: dict[str, Any] | None = None


class ModelsAnswer(BaseModel):
    """All who can speak by themselves."""

    object: Literal["list"]
    data: list[ModelAnswer]


class StateAnswer(BaseModel):
    """Whether it works, and why not."""

    ok: bool
    error: str | None


class QueryState(BaseModel):
    """How far a query is."""

    id: str
    object: Literal["abi.query"]
    status: Literal["waiting", "reading", "speaking", "done", "cancelled", "failed"]
    created: int
    model: str
    mixture: dict[str, float]
    usage: Usage
    error: ErrorDetail | None


class QueryAnswer(QueryState):
    """And its answer."""

    answer: ChatAnswer | None


class QueriesAnswer(BaseModel):
    """All that one may see."""

    object: Literal["list"]
    data: list[QueryState]
