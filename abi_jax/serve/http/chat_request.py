"""What `/v1/chat/completions` takes."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from abi_jax.serve.http.form_request import ResponseFormat, Tool, ToolCall, ToolChoice
from abi_jax.serve.http.schema import Content, Name, Sampled, Strict

Note = Annotated[str, StringConstraints(max_length=256)]


class Named(Strict):
    """A message of any role. name: who of several speaks; passed over."""

    name: Note | None = None


class SystemMessage(Named):
    """Policy; it stands before the conversation, wherever it is given."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Named):
    """A question."""

    role: Literal["user"]
    content: Content


class AssistantMessage(Named):
    """An earlier answer, as a client has it, with what it has of none. parsed: what it read in it; passed over."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    audio: None = None
    function_call: None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    parsed: Any = None


class ToolMessage(Named):
    """What a function returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: Name


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class ChatRequest(Sampled):
    """OpenAI's request, less what is not done here.

    metadata, safety_identifier and prompt_cache_key are its clients' notes for their own use; passed over.
    """

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=8)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    safety_identifier: Note | None = None
    prompt_cache_key: Note | None = None
