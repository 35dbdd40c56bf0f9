"""What a conversation may say of an answer's form: functions to call, JSON."""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from abi_jax.serve.http.schema import Strict, Text

FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class FunctionSpec(Strict):
    """A function; `parameters` is a JSON schema."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """Something that may be called."""

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(Strict):
    """A function by its name."""

    name: FunctionName


class ToolChoice(Strict):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Strict):
    """What was called, and with what, as JSON. parsed_arguments: OpenAI's client has them beside; passed over."""

    name: FunctionName
    arguments: Text
    parsed_arguments: Any = None


class ToolCall(Strict):
    """A call of an earlier answer. index: its place, as a stream tells it; passed over."""

    id: Annotated[str, StringConstraints(max_length=256)]
    type: Literal["function"]
    function: CalledFunction
    index: int | None = None


class JsonSchemaSpec(Strict):
    """A JSON schema. strict: nothing of it may be passed over."""

    name: Annotated[str, StringConstraints(max_length=256)]
    schema_: Annotated[dict[str, Any], Field(alias="schema", default_factory=dict)]
    description: Text | None = None
    strict: bool | None = None


class AsText(Strict):
    """Any text."""

    type: Literal["text"]


class AsJson(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class AsSchema(Strict):
    """JSON that a schema describes."""

    type: Literal["json_schema"]
    json_schema: JsonSchemaSpec


ResponseFormat = Annotated[AsText | AsJson | AsSchema, Field(discriminator="type")]
