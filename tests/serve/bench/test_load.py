"""Requests to servers of known behaviour."""

import asyncio
import contextlib
import json
import math
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from abi_jax.errors import InputError
from abi_jax.serve.bench.load import Point, Sweep, first_model, run, understood
from abi_jax.serve.bench.prompts import PATHS, WORDS, Ask, FixedLengths, RealPrompts, Style
from abi_jax.serve.bench.wire import Address, Wire
from abi_jax.serve.engine.fake import FakeEngine
from tests.serve.bench.scripted import Script, chunk, event, head, said, scripted, whole
from tests.serve.http.serving import PATIENCE, script, serving

COMPLETIONS = Style("completions", ("m",), {}, {})


def asked(url: str, what: Any, seconds: float = PATIENCE, **headers: str) -> Any:
    """What `what(wire)` returns."""

    async def go() -> Any:
        wire = Wire(Address.parse(url), headers, seconds)
        with contextlib.closing(wire):
            return await what(wire)

    return asyncio.run(go())


def undisturbed(measured: Callable[[], list[bool]], tries: int = 10) -> None:
    """Measures again where times are not as they should be: a machine that stalls spoils some, but not all."""
    for _ in range(tries - 1):
        if all(measured()):
            return
    last = measured()
    assert all(last), last


def requests(wire: Wire, count: int, style: Style = COMPLETIONS) -> list[bytes]:
    return [wire.post(PATHS[style.endpoint], body) for body in style.bodies([Ask("why", 4)] * count)]


def tokens(count: int, wait: float = 0.0, first: float = 0.0) -> Script:
    """A stream of that many tokens."""
    told = [(wait if i else first, chunk(said(f"t{i}"))) for i in range(count)]
    usage = {"prompt_tokens": 2, "completion_tokens": count}
    return [(0.0, head()), *told, (0.0, chunk(said("", "length", usage)) + chunk(event(b"[DONE]")) + chunk(b""))]


def test_times_of_a_schedule() -> None:
    def measured() -> list[bool]:
        with scripted(lambda path, body: tokens(6, 0.04, 0.1)) as server:
            ran = asked(server.url, lambda wire: run(wire, requests(wire, 3), Point(1, math.inf, 3)))
        assert server.connections == 1
        times = [ran.seconds == pytest.approx(sum(answer.e2e for answer in ran.answers), rel=0.2)]
        for answer in ran.answers:
            assert (answer.failure, answer.text, answer.tokens) == ("", "t0t1t2t3t4t5", 6)
            assert len(answer.itl) == 5
            times += [answer.ttft == pytest.approx(0.1, abs=0.05), sum(answer.itl) == pytest.approx(0.2, abs=0.1)]
            times += [min(answer.itl) > 0.03, answer.tpot == pytest.approx(sum(answer.itl) / 5, rel=0.2)]
        return times

    undisturbed(measured)


def test_time_per_token_is_that_of_the_engines_steps() -> None:
    engine = FakeEngine(slots=4, vocab_size=400, step_seconds=0.02, script=script("hello ") * 12)
    with serving(engine) as running:
        style = Style(
            "completions", ("base", "abbey"), {"ignore_eos": True}, {"stream_options": {"include_usage": True}}
        )
        chat = replace(style, endpoint="chat")
        sweep = Sweep(chat, FixedLengths(6, 12), 0, 1)

        def measured() -> list[bool]:
            ran = asked(running.url, lambda wire: sweep.at(wire, 0, Point(4, math.inf, 8)))
            assert [answer.failure for answer in ran.answers] == [""] * 8
            assert {answer.tokens for answer in ran.answers} == {12}
            assert all(answer.prompt_tokens for answer in ran.answers)
            tpot = sorted(answer.tpot for answer in ran.answers)
            # two rounds of twelve steps: a machine that stalls makes all of it slower
            return [0.017 < tpot[len(tpot) // 2] < max(0.024, ran.seconds / 22)]

        undisturbed(measured)
        assert asked(running.url, first_model) in {"abbey", "aviva", "base"}


def test_no_more_at_a_time_than_asked_for() -> None:
    with scripted(lambda path, body: tokens(2, 0.02, 0.02)) as server:
        for most in (1, 3):
            server.most, server.expected = 0, most
            asked(server.url, lambda wire, n=most: run(wire, requests(wire, 9), Point(n, math.inf, 9)))
            assert server.most == most
        server.expected = 9
        asked(server.url, lambda wire: run(wire, requests(wire, 9), Point(None, math.inf, 9)))
        assert server.most == 9


def test_arrivals_are_a_poisson_process() -> None:
    gaps = Point(None, 20.0, 4001).gaps(7)
    assert gaps[0] == 0.0 and sum(gaps) / 4000 == pytest.approx(1 / 20, rel=0.05)
    assert sum(gap > 1 / 20 for gap in gaps) / 4000 == pytest.approx(math.exp(-1), abs=0.03)
    assert gaps == Point(None, 20.0, 4001).gaps(7) != Point(None, 20.0, 4001).gaps(8)
    point = Point(None, 100.0, 30)
    due = [sum(point.gaps(3)[: i + 1]) for i in range(30)]

    def measured() -> list[bool]:
        with scripted(lambda path, body: tokens(1)) as server:
            ran = asked(server.url, lambda wire: run(wire, requests(wire, 30), point, 3))
        assert [answer.failure for answer in ran.answers] == [""] * 30
        starts = [answer.start - ran.answers[0].start for answer in ran.answers]
        late = [start - at for start, at in zip(starts, due, strict=True)]
        return [min(late) > -0.002, sorted(late)[15] < 0.02]

    undisturbed(measured)


def test_a_connection_that_was_closed_meanwhile_is_made_anew() -> None:
    with scripted(lambda path, body: tokens(2), closes=True) as server:

        async def twice(wire: Wire) -> Any:
            first = await run(wire, requests(wire, 1), Point(1, math.inf, 1))
            await asyncio.sleep(0.05)
            return [*first.answers, *(await run(wire, requests(wire, 2), Point(1, math.inf, 2))).answers]

        assert [answer.failure for answer in asked(server.url, twice)] == [""] * 3


def test_a_body_may_end_with_its_connection() -> None:
    unframed = [
        (0.0, head(200, "text/event-stream", "connection: close")),
        (0.02, said("a")),
        (0.02, said("b", "stop")),
    ]

    def measured() -> list[bool]:
        with scripted(lambda path, body: unframed, closes=True) as server:
            answer = asked(server.url, lambda wire: run(wire, requests(wire, 1), Point(1, math.inf, 1))).answers[0]
        assert (answer.failure, answer.text) == ("", "ab")
        return [answer.itl[0] > 0.01]

    undisturbed(measured)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ([(0.0, head()), (0.0, chunk(said("a")))], "the server closed the connection in the middle of its answer"),
        ([], "the server closed the connection without an answer"),
        ([(0.0, b"SSH-2.0-OpenSSH\r\n\r\n")], "what came is not HTTP"),
        ([(0.0, head()), (5.0, b"")], "no whole answer in 0.3 seconds"),
        (whole(429, {"error": {"message": "128 requests are waiting"}}), "429: 128 requests are waiting"),
    ],
)
def test_failures_say_why(answer: Script, failure: str) -> None:
    seconds = 0.3 if "seconds" in failure else PATIENCE
    with scripted(lambda path, body: answer, closes=True) as server:
        ran = asked(server.url, lambda wire: run(wire, requests(wire, 2), Point(2, math.inf, 2)), seconds)
    assert len(ran.answers) == 2
    assert all(one.failure.startswith(failure) for one in ran.answers), ran.answers[0].failure


def test_nobody_there() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nobody else can listen there
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=r"cannot reach http://127\.0\.0\.1:\d+: "):
            asked(url, lambda wire: understood(wire, COMPLETIONS, Ask("why", 1)))


def test_fields_that_a_server_refuses_are_left_out() -> None:
    known = {"model", "prompt", "max_tokens", "temperature", "stream", "ignore_eos"}

    def strict(path: str, body: dict[str, Any]) -> Script:
        extra = sorted(set(body) - known)
        return whole(422, {"detail": f"Unexpected fields in the request: {extra}"}) if extra else tokens(1)

    style = replace(COMPLETIONS, optional={"stream_options": {"include_usage": True}, "ignore_eos": True})
    with scripted(strict) as server:
        found = asked(server.url, lambda wire: understood(wire, style, Ask("why", 1)))
        assert found.optional == {"ignore_eos": True} and len(server.bodies) == 2
        with pytest.raises(InputError, match=r"/v1/completions: 422: .*\['nonsense'\]"):
            asked(server.url, lambda wire: understood(wire, replace(style, extra={"nonsense": 1}), Ask("why", 1)))


def test_models_are_asked_in_turn_with_the_key() -> None:
    with scripted(lambda path, body: tokens(1)) as server:
        style = Style("chat", ("a", "b"), {"seed": 5}, {})
        sent = asked(
            server.url,
            lambda wire: run(wire, requests(wire, 4, style), Point(1, math.inf, 4)),
            authorization="Bearer secret",
        )
        assert [body["model"] for body in server.bodies] == ["a", "b", "a", "b"]
        assert server.bodies[0]["messages"] == [{"role": "user", "content": "why"}] and server.bodies[0]["seed"] == 5
        assert "POST /v1/chat/completions HTTP/1.1" in server.heads[0] and "Bearer secret" in server.heads[0]
        assert len(sent.answers) == 4


def test_what_lists_no_model() -> None:
    with scripted(lambda path, body: whole(200, {"data": []})) as server, pytest.raises(InputError, match="no model"):
        asked(server.url, first_model)
    refused = whole(404, {"detail": "Not Found"})
    with scripted(lambda path, body: refused) as server, pytest.raises(InputError, match="404: Not Found"):
        asked(server.url, first_model)


def test_random_prompts() -> None:
    fixed = FixedLengths(20, 5, prefix=8, vocab=100)
    one, other = fixed.draw(50, 0, 0), fixed.draw(50, 0, 1)
    assert one == fixed.draw(50, 0, 0) and one != FixedLengths(20, 5, 8, 100).draw(50, 1, 0)
    prompts = [ask.prompt for ask in one + other if isinstance(ask.prompt, list)]
    assert {len(prompt) for prompt in prompts} == {20} and {ask.max_tokens for ask in one} == {5}
    assert len({str(prompt[:8]) for prompt in prompts}) == 1
    assert len({str(prompt) for prompt in prompts}) == 100
    assert all(isinstance(token, int) and token < 100 for prompt in prompts for token in prompt)
    words = str(FixedLengths(7, 5).draw(1, 0, 0)[0].prompt).split()
    assert len(words) == 7 and set(words) <= set(WORDS)
    for wrong in ((0, 1), (1, 0), (4, 1, 5), (4, 1, -1), (4, 1, 0, 0)):
        with pytest.raises(InputError, match="expected"):
            FixedLengths(*wrong)


def test_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    talk = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": "a"}, {"prompt": [1, 2], "max_tokens": 3}, {"messages": talk}]
    path.write_text("\n\n".join(json.dumps(row) for row in rows))
    prompts = RealPrompts.open(path, 9)
    assert prompts.draw(5, 0, 0) == [Ask("a", 9), Ask([1, 2], 3), Ask(talk, 9), Ask("a", 9), Ask([1, 2], 3)]
    with pytest.raises(InputError, match="messages are for the endpoint chat"):
        list(COMPLETIONS.bodies([Ask(talk, 1)]))
    with pytest.raises(InputError, match="token ids are for the endpoint completions"):
        list(replace(COMPLETIONS, endpoint="chat").bodies([Ask([1], 1)]))
    for wrong, why in [
        ("{}", "asked.jsonl:1: {}; expected an object with `prompt`"),
        ("nonsense", "asked.jsonl:1 is not JSON"),
        ('{"prompt": [1, "a"]}', "expected an object with `prompt`"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens = 0; expected a number, at least 1"),
        ("", "has no prompt"),
    ]:
        path.write_text(wrong)
        with pytest.raises(InputError, match=why):
            RealPrompts.open(path, 9)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        RealPrompts.open(path, 9)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("https://example.com/v1/", "https://example.com:443"),
        ("http://h/openai/v1", "http://h:80/openai"),
    ],
)
def test_addresses(url: str, expected: str) -> None:
    assert str(Address.parse(url)) == expected


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://h", "http://", "http://h:nan", "http://h/?a=b"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError, match=r"expected e\.g\."):
        Address.parse(url)


def test_a_header_cannot_smuggle_another() -> None:
    with pytest.raises(InputError, match="line break"):
        Wire(Address.parse("http://h"), {"authorization": "Bearer a\r\nx: y"})


def test_points_are_checked() -> None:
    for wrong in (Point(1, 1.0, 1), Point(None, 1.0, 1)):
        assert wrong.count == 1
    for concurrency, rate, count in ((0, 1.0, 1), (1, 0.0, 1), (1, math.nan, 1), (1, 1.0, 0)):
        with pytest.raises(InputError, match="expected"):
            Point(concurrency, rate, count)
