"""Answers of a form: JSON, grammars, calls of functions."""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from abi_jax.serve.engine.fake import FakeEngine
from tests.serve.http.serving import ASKED, ObedientEngine, Running, script, serving

pytestmark = pytest.mark.smoke
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"day": {"enum": ["today", "tomorrow"]}, "hour": {"type": "integer", "maximum": 24}},
            "required": ["day"],
            "additionalProperties": False,
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"day": "today"}}\n</tool_call>'


@pytest.fixture(scope="module")
def obedient() -> Iterator[Running]:
    with serving(ObedientEngine(vocab_size=400, max_length=2048, pages=256, chunk=512)) as running:
        yield running


def ask(running: Running, **settings: Any) -> Any:
    return running.openai().chat.completions.create(
        **{"model": "base", "messages": ASKED, "max_tokens": 400, "seed": 1} | settings
    )


def said(running: Running, **settings: Any) -> list[str]:
    answers = [ask(running, n=4, **settings)]
    assert all(choice.finish_reason == "stop" for answer in answers for choice in answer.choices)
    return [choice.message.content for answer in answers for choice in answer.choices]


def test_json_of_a_schema(obedient: Running) -> None:
    schema = WEATHER["function"]["parameters"]
    form = {"type": "json_schema", "json_schema": {"name": "when", "schema": schema, "strict": True}}
    for text in said(obedient, response_format=form):
        found = json.loads(text)
        assert found["day"] in ("today", "tomorrow") and set(found) <= {"day", "hour"}


def test_any_json_object(obedient: Running) -> None:
    for choice in ask(obedient, n=4, response_format={"type": "json_object"}).choices:
        assert choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)


def test_grammars_and_regular_expressions(obedient: Running) -> None:
    for text in said(obedient, extra_body={"regex": "[ab]{3}c"}):
        assert re.fullmatch("[ab]{3}c", text)
    assert set(said(obedient, extra_body={"grammar": 'start: "yes" | "no"'})) <= {"yes", "no"}
    answer = obedient.openai().completions.create(model="base", prompt="a", extra_body={"regex": "b{5}"})
    assert answer.choices[0].text == "bbbbb" and answer.choices[0].finish_reason == "stop"


def test_a_function_that_must_be_called(obedient: Running) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        answer = ask(obedient, tools=[WEATHER, CLOCK], tool_choice=choice, parallel_tool_calls=False, n=3)
        for one in answer.choices:
            assert one.finish_reason == "tool_calls" and one.message.content is None
            (call,) = one.message.tool_calls
            assert call.type == "function" and call.id.startswith("call_")
            assert isinstance(json.loads(call.function.arguments), dict)
            assert call.function.name == "weather" or choice == "required"


def test_calls_are_told_whole_and_streamed_alike() -> None:
    text = f"hello{CALLED}\n{CALLED.replace('today', 'tomorrow')}"
    with serving(FakeEngine(vocab_size=400, max_length=2048, script=script(text), pages=256)) as running:
        answer = ask(running, tools=[WEATHER]).choices[0]
        assert answer.message.content == "hello" and answer.finish_reason == "tool_calls"
        days = [json.loads(call.function.arguments)["day"] for call in answer.message.tool_calls]
        assert days == ["today", "tomorrow"]
        content, calls = "", list[Any]()
        for chunk in ask(running, tools=[WEATHER], stream=True):
            content += chunk.choices[0].delta.content or ""
            calls += chunk.choices[0].delta.tool_calls or []
        assert content == "hello" and chunk.choices[0].finish_reason == "tool_calls"
        assert [(call.index, json.loads(call.function.arguments)["day"]) for call in calls] == list(enumerate(days))
        # who asks for no tools gets text
        assert ask(running).choices[0].message.content == text
        assert ask(running, tools=[WEATHER], tool_choice="none").choices[0].message.content == text


def test_what_was_called_is_part_of_the_conversation(obedient: Running) -> None:
    first = ask(obedient, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
    message = first.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It rains."}
    second = ask(obedient, tools=[WEATHER], messages=[*ASKED, message, result])
    assert second.usage.prompt_tokens > first.usage.prompt_tokens + 10


def test_a_form_that_becomes_too_complex_is_an_error_and_no_answer() -> None:
    pattern = {"type": "string", "pattern": "^((a{0,100}){0,100}){1,100}b$"}
    schema = {"type": "object", "properties": {"a": pattern}, "required": ["a"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "hard", "schema": schema, "strict": True}}
    said = '{"a": "' + "a" * 200
    with serving(FakeEngine(vocab_size=400, script=script(said))) as running:
        with pytest.raises(openai.BadRequestError, match="could not be followed to its end: lexer error") as caught:
            ask(running, response_format=form)
        assert caught.value.code == "form_failed"
        with pytest.raises(openai.APIError, match="could not be followed to its end"):
            list(ask(running, response_format=form, stream=True))


class Weather(BaseModel):
    """For the official client to read arguments and answers as."""

    day: Literal["today", "tomorrow"]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_what_the_official_client_made_of_an_answer_is_sent_back_as_it_is(obedient: Running) -> None:
    asked: Any = {"model": "base", "max_tokens": 400, "seed": 1}
    completions, tool = obedient.openai().chat.completions, openai.pydantic_function_tool(Weather, name="weather")
    form = completions.parse(messages=ASKED, response_format=Weather, **asked).choices[0].message
    assert isinstance(form.parsed, Weather)
    with completions.stream(messages=ASKED, tools=[tool], tool_choice="required", **asked) as stream:
        called = stream.get_final_completion().choices[0].message
    assert isinstance(called.tool_calls[0].function.parsed_arguments, Weather)
    results = [{"role": "tool", "tool_call_id": c.id, "name": "weather", "content": "Rain."} for c in called.tool_calls]
    indexed = called.to_dict() | {"tool_calls": [{"index": 0, **call.to_dict()} for call in called.tool_calls]}
    for turns in ([form], [called, *results], [indexed, *results]):
        assert ask(obedient, messages=[*ASKED, *turns, {"role": "user", "name": "ada", "content": "And then?"}]).choices


def test_notes_of_the_client_change_nothing(obedient: Running) -> None:
    notes = {"metadata": {"a": "b"}, "safety_identifier": "ada", "prompt_cache_key": "k"}
    plain, noted = ask(obedient, max_tokens=9), ask(obedient, max_tokens=9, **notes)
    assert plain.choices[0].message == noted.choices[0].message


@pytest.mark.parametrize(
    ("settings", "param", "message"),
    [
        ({"tools": [WEATHER, WEATHER]}, "tools", "function 'weather' is given twice"),
        ({"tool_choice": "required"}, "tool_choice", "is for requests with tools"),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            *("tool_choice", "names 'weather'; expected one of clock"),
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "'custom': expected 'function'"),
        ({"tools": [CLOCK], "response_format": {"type": "json_object"}}, "tools", "response_format and tools at once"),
        ({"extra_body": {"regex": "("}}, "regex", "regex: it cannot be followed"),
        ({"extra_body": {"grammar": "start: nothing"}}, "grammar", "unknown name"),
        ({"extra_body": {"regex": "a", "ignore_eos": True}}, "ignore_eos", "ignore_eos with regex"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}},
            *("response_format", "Invalid type: thing"),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": {"not": {"type": "string"}}},
                }
            },
            *("response_format", "Unimplemented keys"),
        ),
        ({"response_format": {"type": "xml"}}, "response_format", "'xml'"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "kind": 1}}},
            *("response_format.json_schema.kind", "unsupported parameter"),
        ),
        (
            {"messages": [*ASKED, {"role": "tool", "tool_call_id": "call_1", "content": "x"}]},
            *("messages.1.tool_call_id", "no earlier message makes that call"),
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_named(obedient: Running, settings: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        ask(obedient, **settings)
    assert caught.value.param == param
