"""Answers and their times, from what came over the wire."""

import numpy as np
import pytest

from abi_jax.serve.bench.answers import Answer, events, read
from abi_jax.serve.bench.load import Point, Ran
from abi_jax.serve.bench.summary import statistics, summarize, told
from abi_jax.serve.bench.wire import Reply
from tests.serve.bench.scripted import event, said

pytestmark = pytest.mark.smoke
SSE = "text/event-stream"


def reply(*reads: tuple[float, bytes], status: int = 200, kind: str = SSE, failure: str = "") -> Reply:
    return Reply(100.0, reads[-1][0] if reads else 100.0, status, kind, list(reads), failure)


def test_times_and_tokens_of_an_answer() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 8}}
    answer = read(
        reply(
            (100.5, said("a")),
            (100.625, said("b") + said("c")),
            (101.0, said("d")),
            (101.5, said("", "length")),
            (101.75, event({"choices": [], "usage": usage})),
            (102.0, event(b"[DONE]")),
        )
    )
    assert answer.failure == "" and answer.text == "abcd"
    assert answer.ttft == 0.5
    assert answer.itl == [0.125, 0.0, 0.375]
    assert answer.e2e == 1.5
    assert answer.tpot == 0.25  # (1.5 - 0.5) / (5 - 1)
    assert (answer.tokens, answer.counted, answer.prompt_tokens, answer.cached_tokens) == (5, False, 9, 8)


def test_without_usage_chunks_are_counted() -> None:
    answer = read(reply((101.0, said("a")), (102.0, said("b")), (104.0, said("c", "stop"))))
    assert (answer.tokens, answer.counted, answer.prompt_tokens, answer.tpot) == (3, True, None, 1.5)
    assert read(reply((101.0, said("a", "stop")))).tpot is None


def test_the_first_token_of_a_conversation_is_not_who_speaks() -> None:
    role = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    text = event({"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]})
    call = event({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0}]}}]})
    thought = event({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]})
    answer = read(reply((101.0, role), (103.0, thought), (104.0, text), (105.0, call)))
    assert answer.ttft == 3.0 and answer.itl == [1.0, 1.0]


def test_an_answer_that_says_nothing_begins_with_its_end() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    answer = read(reply((102.0, said("", "stop", usage))))
    assert (answer.failure, answer.ttft, answer.e2e, answer.tokens) == ("", 2.0, 2.0, 1)


def test_an_event_has_the_time_of_the_read_that_completes_it() -> None:
    whole = b": a comment\r\n\r\ndata: one\r\n\r\ndata:two\ndata: three\n\ndata: last"
    expected = [b"one", b"two\nthree", b"last"]
    assert [data for _, data in events(reply((7.0, whole)))] == expected
    for cut in range(1, len(whole)):
        found = list(events(reply((1.0, whole[:cut]), (2.0, whole[cut:]))))
        assert [data for _, data in found] == expected
    assert list(events(reply((1.0, b"data: a\n"), (2.0, b"\ndata: b\n\n")))) == [(2.0, b"a"), (2.0, b"b")]


@pytest.mark.parametrize(
    ("came", "failure"),
    [
        (reply((1.0, b'{"error": {"message": "too long"}}'), status=400, kind="application/json"), "400: too long"),
        (reply((1.0, b'{"detail": "no such model"}'), status=404, kind="application/json"), "404: no such model"),
        (reply((1.0, b'{"error": "busy"}'), status=503, kind="application/json"), "503: busy"),
        (reply((1.0, b"<html>Bad gateway"), status=502, kind="text/html"), "502: <html>Bad gateway"),
        (reply(status=500), "500"),
        (reply((1.0, b"{}"), kind="application/json"), "the server does not stream: content-type application/json"),
        (reply((1.0, said("a")), (2.0, event({"error": {"message": "gone"}}))), "in the stream: gone"),
        (reply((1.0, b"data: nonsense\n\n")), "an event that is no chunk of an answer: nonsense"),
        (reply((1.0, event(b"[DONE]"))), "an answer without a chunk"),
        (reply((1.0, said("a")), failure="cut off"), "cut off"),
    ],
)
def test_what_is_no_answer_says_why(came: Reply, failure: str) -> None:
    assert read(came).failure == failure


def test_a_point_in_figures() -> None:
    answers = [Answer(0.0, 1.0 + i, (0.5, 1.0 + i), 3, False, 10, 4) for i in range(4)]
    answers += [Answer(0.0, 9.0, failure="429: busy")] * 2
    found = summarize(Ran(Point(2, 5.0, 6), answers, 4.0, 1.0))
    assert (found["completed"], found["failed"], found["errors"]) == (4, 2, {"429: busy": 2})
    assert (found["output_tokens"], found["prompt_tokens"], found["cached_tokens"]) == (12, 40, 16)
    throughputs = [found[f"{name}_throughput"] for name in ("request", "output", "total")]
    assert throughputs == [1.0, 3.0, 13.0]
    assert found["ttft_ms"] == dict.fromkeys(("mean", "median", "p90", "p95", "p99"), 500.0)
    assert found["e2e_ms"]["mean"] == found["e2e_ms"]["median"] == 2500.0
    assert found["tpot_ms"]["mean"] == 1000.0 and found["itl_ms"]["p99"] == pytest.approx(3470.0)
    assert (found["tokens_counted"], found["client_cpu"], found["rate"]) == ("server", 0.25, 5.0)
    text = told(found)
    assert "2 at a time, 5 a second: 4 of 6 answered" in text and "failed 2 times: 429: busy" in text


def test_a_point_where_all_failed() -> None:
    found = summarize(Ran(Point(None, float("inf"), 1), [Answer(0.0, 1.0, failure="x")], 1.0, 0.95))
    assert found["ttft_ms"] is None and found["output_throughput"] == 0.0 and found["total_throughput"] is None
    assert "it may be what was measured" in told(found)


def test_percentiles_are_numpys() -> None:
    seconds = np.random.default_rng(0).exponential(1, 101)
    found = statistics(seconds.tolist())
    assert found is not None and found["p90"] == pytest.approx(1e3 * np.quantile(seconds, 0.9), abs=1e-3)
    assert found["mean"] == pytest.approx(1e3 * seconds.mean(), abs=1e-3)
