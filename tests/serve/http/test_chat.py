"""`/v1/chat/completions`, through the official client."""

from typing import Any

import openai
import pytest

from tests.serve.http.serving import ASKED, Running, tokenizer, voices

pytestmark = pytest.mark.smoke
SAID_BEFORE = {"role": "assistant", "content": "What may I do for you?"}
POLICY = {"role": "system", "content": "Be brief."}
SAID = "hello, world! She said: hello"


def ask(running: Running, **settings: Any) -> Any:
    asked = {"model": "abbey", "messages": ASKED, "max_tokens": 100} | settings
    return running.openai().chat.completions.create(**asked)


def test_an_answer(hello: Running) -> None:
    answer = ask(hello)
    (choice,) = answer.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (SAID, "assistant", "stop")
    assert answer.model == "abbey" and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    said = len(tokenizer().encode(SAID))
    usage = answer.usage
    assert (usage.completion_tokens, usage.total_tokens) == (said, usage.prompt_tokens + said)
    assert usage.prompt_tokens_details.cached_tokens == 0
    told = answer.abi
    assert told["mixture"] == {"abbey": 1.0} and told["memories"] == [] and told["lineage"]["model"] is None
    assert set(told["latency_ms"]) == {"api", "queue", "model", "memory", "moderation"}
    assert all(value >= 0 for value in told["latency_ms"].values())


def test_a_stream_is_the_answer_in_pieces(hello: Running) -> None:
    chunks = list(ask(hello, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == SAID
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == "stop" and set(reasons[:-1]) == {None}
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == len(tokenizer().encode(SAID))
    assert all(c.usage is None for c in chunks[:-1]) and len({c.id for c in chunks}) == 1
    assert chunks[-2].abi["mixture"] == {"abbey": 1.0}
    assert all(c.usage is None for c in ask(hello, stream=True))


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_end_an_answer_and_are_not_shown(hello: Running, stream: bool) -> None:
    answer = ask(hello, stop=["She", "never"], stream=stream)
    if stream:
        chunks = list(answer)
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
        finish = chunks[-1].choices[0].finish_reason
    else:
        text, finish = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, finish) == ("hello, world! ", "stop")


def test_max_tokens(hello: Running) -> None:
    answer = ask(hello, max_tokens=2)
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 2
    assert ask(hello, max_tokens=openai.NOT_GIVEN, max_completion_tokens=3).usage.completion_tokens == 3
    # the persona's own, where nothing is said
    assert ask(hello, max_tokens=openai.NOT_GIVEN).usage.completion_tokens == voices().personas[0].sampling.max_tokens


def test_an_answer_that_nothing_limits_ends_with_the_context(plain: Running) -> None:
    answer = ask(plain, model="base", max_tokens=openai.NOT_GIVEN)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == plain.service.worker.engine.max_length


def test_messages_may_stand_in_any_order_that_has_a_question(plain: Running) -> None:
    def said(*messages: dict[str, str]) -> str:
        return str(ask(plain, messages=list(messages), seed=1, max_tokens=9).choices[0].message.content)

    (question,) = ASKED
    assert said(question, POLICY) == said(question, {**POLICY, "role": "developer"}) == said(POLICY, question)
    assert said(question, SAID_BEFORE, POLICY, question) == said(POLICY, question, SAID_BEFORE, question)
    assert said(POLICY, SAID_BEFORE, question) != said(POLICY, question)
    # of policy alone, the last is the question
    assert said(POLICY) == said({**POLICY, "role": "user"})
    assert said(POLICY, {**question, "role": "system"}) == said(POLICY, question)


def test_several_choices_have_seeds_that_follow_each_other(plain: Running) -> None:
    several = ask(plain, n=3, seed=5, max_tokens=9)
    alone = [ask(plain, seed=5 + i, max_tokens=9).choices[0].message.content for i in range(3)]
    assert [c.message.content for c in several.choices] == alone and len(set(alone)) == 3
    assert several.usage.completion_tokens == 27
    assert several.usage.prompt_tokens == ask(plain, seed=5, max_tokens=9).usage.prompt_tokens
    streamed = ["", "", ""]
    for chunk in ask(plain, n=3, seed=5, max_tokens=9, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == alone


def test_a_seed_that_is_left_out_is_drawn_and_told(plain: Running) -> None:
    answer = ask(plain, max_tokens=9)
    assert ask(plain, max_tokens=9).choices[0].message.content != answer.choices[0].message.content
    again = ask(plain, max_tokens=9, seed=answer.abi["seed"])
    assert again.choices[0].message.content == answer.choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities(hello: Running, stream: bool) -> None:
    answer = ask(hello, logprobs=True, top_logprobs=2, stream=stream)
    if stream:
        content = [one for c in answer if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    else:
        content = answer.choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in content).decode() == SAID
    assert {one.logprob for one in content} == {-1.0}
    assert [[top.logprob for top in one.top_logprobs] for one in content] == [[-1.0, -2.0]] * len(content)
    assert ask(hello, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(hello).choices[0].logprobs is None


def test_a_mixture_is_a_model_or_a_field(plain: Running) -> None:
    by_name = ask(plain, model="abbey=0.6,aviva=0.4", seed=1, max_tokens=9)
    by_field = ask(
        plain, model="base", seed=1, max_tokens=9, extra_body={"abi": {"mixture": {"abbey": 0.6, "aviva": 0.4}}}
    )
    assert by_name.abi["mixture"] == by_field.abi["mixture"] == {"abbey": 0.6, "aviva": 0.4}
    assert by_name.choices == by_field.choices
    assert ask(plain, model="base").abi["mixture"] == {}


def test_texts_to_remember_are_read(plain: Running) -> None:
    without = ask(plain, seed=1, max_tokens=9)
    memory = {"abi": {"memory": {"texts": ["The cluster is called Juno."]}, "user": "someone"}}
    remembered = ask(plain, seed=1, max_tokens=9, extra_body=memory)
    assert remembered.usage.prompt_tokens > without.usage.prompt_tokens


def test_a_conversation_in_parts(plain: Running) -> None:
    turns = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Why does my "}, {"type": "text", "text": "build fail?"}],
        },
        {"role": "assistant", "content": "It lacks a file."},
        {"role": "user", "content": "Which?"},
    ]
    joined = [turns[0], {"role": "user", "content": "Why does my build fail?"}, *turns[2:]]
    answers = [ask(plain, messages=messages, seed=1, max_tokens=9) for messages in (turns, joined)]
    assert answers[0].choices == answers[1].choices


@pytest.mark.parametrize(
    ("settings", "status", "param", "message"),
    [
        ({"model": "abby"}, 404, "model", r"unknown persona 'abby' \(nearest: 'abbey'\)"),
        ({"model": "abbey=0.5"}, 404, "model", "sum to 0.5; expected 1"),
        ({"extra_body": {"abi": {"mixture": {"abbey": 2.0}}}}, 400, "abi.mixture", "sum to 2; expected 1"),
        ({"extra_body": {"abi": {"mood": "gay"}}}, 400, "abi.mood", "unsupported parameter abi.mood = 'gay'"),
        ({"extra_body": {"abi": {"receipt": True}}}, 400, "abi.receipt", "gives no receipts"),
        ({"extra_body": {"best_of": 2}}, 400, "best_of", "unsupported parameter best_of = 2"),
        ({"reasoning_effort": "low"}, 400, "reasoning_effort", "unsupported parameter reasoning_effort = 'low'"),
        ({"store": True}, 400, "store", "store = True: expected False"),
        ({"modalities": ["audio"]}, 400, "modalities.0", "expected 'text'"),
        ({"temperature": 2.5}, 400, "temperature", "temperature = 2.5: expected less than or equal to 2"),
        ({"n": 0}, 400, "n", "n = 0: expected greater than or equal to 1"),
        ({"n": 129}, 400, "n", "n = 129"),
        ({"seed": -1}, 400, "seed", "seed = -1"),
        ({"stop": list("abcde")}, 400, "stop", "at most 4 items"),
        ({"top_logprobs": 3}, 400, "top_logprobs", "expected logprobs = true with it"),
        ({"max_completion_tokens": 3}, 400, "max_tokens", "expected max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, 400, "stream_options", "stream = true"),
        ({"logit_bias": {"500": 1}}, 400, None, "token id 500 is outside the model's vocabulary of 400"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "content": "a " * 600}]}, 400, None, r"prompt of \d+ tokens does not fit"),
        ({"messages": [*ASKED, SAID_BEFORE, POLICY]}, 400, "messages.1", "the last turn is the assistant's"),
        (
            {"messages": [{"role": "user", "content": "a", "weight": 1}]},
            400,
            "messages.0.weight",
            "unsupported parameter",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            *(400, "messages.0.content.0.type", "'image_url': expected 'text'"),
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_named(
    plain: Running, settings: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        ask(plain, **settings)
    assert (caught.value.status_code, caught.value.param) == (status, param)
    assert caught.value.request_id


def test_an_answer_goes_back_into_the_conversation_as_the_client_has_it(hello: Running) -> None:
    said = hello.openai().chat.completions.create(model="base", messages=ASKED).choices[0].message
    for answer in (said.model_dump(), said.model_dump() | {"annotations": []}, said):
        again: Any = [*ASKED, answer, *ASKED]
        assert hello.openai().chat.completions.create(model="base", messages=again).choices
    for name, value in (("annotations", [{}]), ("audio", {"id": "a"}), ("function_call", {"name": "f"}), ("weight", 1)):
        with pytest.raises(openai.BadRequestError) as refused:
            again = [*ASKED, said.model_dump() | {name: value}, *ASKED]
            hello.openai().chat.completions.create(model="base", messages=again)
        assert name in str(refused.value)
