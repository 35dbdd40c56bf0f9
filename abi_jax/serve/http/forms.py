"""The form that a request wants its answer in, as a grammar; made ready on a thread, since compiling takes a while."""

from collections.abc import Mapping, Sequence
from typing import Any

from abi_jax.errors import InputError
from abi_jax.serve import tools
from abi_jax.serve.http.chat_request import (
    AssistantMessage,
    ChatRequest,
    Message,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from abi_jax.serve.http.errors import ApiError
from abi_jax.serve.http.form_request import AsJson, AsSchema, AsText, ToolChoice
from abi_jax.serve.http.schema import Sampled, text_of
from abi_jax.serve.http.service import Service
from abi_jax.serve.http.threads import in_thread

_POLICY = ("system", "developer")
_ANY: Mapping[str, Any] = {"type": "object"}


def functions_of(body: ChatRequest) -> list[tools.Function]:
    """The functions that the model is told of. Raises `ApiError` for a choice among those that are not there."""
    listed = [
        tools.Function(f.name, f.description or "", f.parameters or dict(_ANY), bool(f.strict))
        for f in (tool.function for tool in body.tools or ())
    ]
    names = [f.name for f in listed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ApiError(400, f"tools: function {twice[0]!r} is given twice", "tools", "invalid_value")
    choice = body.tool_choice
    if choice == "none":
        return []
    if choice is not None and not listed:
        raise ApiError(400, "tool_choice is for requests with tools", "tool_choice", "invalid_value")
    if isinstance(choice, ToolChoice):
        listed = [f for f in listed if f.name == choice.function.name]
        if not listed:
            message = f"tool_choice names {choice.function.name!r}; expected one of {', '.join(names)}"
            raise ApiError(400, message, "tool_choice", "invalid_value")
    return listed


async def find_form(body: Sampled, service: Service, functions: Sequence[tools.Function] = ()) -> str | None:
    """The grammar of an answer, compiled; None for any text.

    Raises `ApiError` that names the parameter: for a grammar that is none, and for two forms at once.
    """
    given = [(name, make) for name, make in _given(body, functions, service).items() if make is not None]
    if not given:
        return None
    names = [name for name, _ in given]
    if len(given) > 1:
        raise ApiError(400, f"{' and '.join(names)} at once: expected one of them", names[1], "invalid_value")
    if body.ignore_eos:
        raise ApiError(
            400, f"ignore_eos with {names[0]}: an answer of a form ends with it", "ignore_eos", "invalid_value"
        )
    name, make = given[0]
    try:
        return await in_thread(_compile, service, make)
    except InputError as error:
        raise ApiError(400, f"{name}: {error}", name, "invalid_value") from None
    except ImportError:
        raise ApiError(501, f"{name} needs llguidance, which is not installed here", name, "not_installed") from None


def messages_of(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The conversation as texts: calls and what they returned are written as the model writes and is shown them.

    Policy comes first, wherever it was given; of policy alone the last message is the question. Raises `ApiError` that
    names the message for one that is out of place.
    """
    known: set[str] = set()
    found = []
    for at, message in enumerate(messages):
        text = text_of(message.content)
        role: str = message.role
        if isinstance(message, AssistantMessage):
            calls = message.tool_calls or []
            known |= {call.id for call in calls}
            written = [tools.render_call(tools.Call(c.function.name, c.function.arguments)) for c in calls]
            text = "\n".join([*filter(None, [text]), *written])
        elif isinstance(message, ToolMessage):
            if message.tool_call_id not in known:
                where = f"messages.{at}.tool_call_id"
                raise ApiError(400, f"{where} = {message.tool_call_id!r}: no earlier message makes that call", where)
            role, text = "user", tools.render_result(text)
        found.append({"role": role, "content": text})
    turns = [at for at, message in enumerate(messages) if not isinstance(message, SystemMessage)]
    if not turns:
        found[-1]["role"] = "user"
    elif found[turns[-1]]["role"] == "assistant":
        where = f"messages.{turns[-1]}"
        expected = "expected the user's, or what a function returned"
        raise ApiError(400, f"{where}: the last turn is the assistant's; {expected}", where, "invalid_value")
    return sorted(found, key=lambda each: each["role"] not in _POLICY)


def question_of(messages: Sequence[Message]) -> str:
    """What the user asked last; what functions returned since then is no question."""
    asked = [message for message in messages if isinstance(message, UserMessage)] or messages
    return text_of(asked[-1].content)


def _given(body: Sampled, functions: Sequence[tools.Function], service: Service) -> dict[str, Any]:
    """Of every parameter that asks for a form: what makes its grammar, or None."""
    made: dict[str, Any] = {"grammar": body.grammar and ("of_lark", body.grammar)}
    made["regex"] = body.regex and ("of_regex", body.regex)
    if not isinstance(body, ChatRequest):
        return made
    form = body.response_format
    if isinstance(form, AsJson):
        made["response_format"] = ("of_schema", dict(_ANY))
    elif isinstance(form, AsSchema):
        made["response_format"] = ("of_schema", form.json_schema.schema_, not form.json_schema.strict)
    else:
        assert form is None or isinstance(form, AsText)
    if functions:
        forced = body.tool_choice == "required" or isinstance(body.tool_choice, ToolChoice)
        parallel = body.parallel_tool_calls is not False and not isinstance(body.tool_choice, ToolChoice)
        marked = tools.marks(service.voices.tokenizer)
        made["tools"] = ("of_lark", tools.grammar(functions, "required" if forced else "auto", parallel, marked))
    return {name: how or None for name, how in made.items()}


def _compile(service: Service, how: tuple[Any, ...]) -> str:
    from abi_jax.serve import grammar

    maker, *arguments = how
    source: str = getattr(grammar, maker)(*arguments)
    service.grammar(source)
    return source
