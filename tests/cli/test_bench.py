"""`abi bench serve`."""

import json
from pathlib import Path

import pytest

from abi_jax.serve.engine.fake import FakeEngine
from tests.cli.conftest import Abi
from tests.serve.bench.scripted import scripted, whole
from tests.serve.http.serving import script, serving


def test_a_sweep(abi: Abi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    engine = FakeEngine(slots=2, vocab_size=400, script=script("hello, world"))
    with serving(engine) as running:
        common = (
            "bench",
            "serve",
            "--url",
            running.url,
            "--model",
            "base",
            "--input-len",
            "5",
            "--output-len",
            "3",
            "--num-prompts",
            "4",
        )
        figure = tmp_path / "bench.png"
        ran = abi(*common, "--max-concurrency", "1", "2", "--ignore-eos", "--figure", figure, "--json")
        assert ran.status == 0, ran.err
        points = ran.json["points"]
        assert [(p["concurrency"], p["completed"], p["output_tokens"]) for p in points] == [(1, 4, 12), (2, 4, 12)]
        assert ran.json["refused_fields"] == [] and ran.json["endpoint"] == "completions"
        assert all(p["ttft_ms"]["median"] > 0 and p["prompt_tokens"] > 0 for p in points)
        assert figure.read_bytes().startswith(b"\x89PNG")

        asked = tmp_path / "asked.jsonl"
        asked.write_text(json.dumps({"messages": [{"role": "user", "content": "why?"}]}))
        load = ("--request-rate", "200", "inf", "--prompts", str(asked), "--endpoint", "chat", "--model", "abbey")
        text = abi(*common, *load)
        assert text.status == 0
        assert "as many at a time as come, 200 a second: 4 of 4 answered" in text.out and "TTFT" in text.out

        ids = abi(*common, "--token-ids", "400", "--max-concurrency", "2", "--json")
        assert ids.json["points"][0]["prompt_tokens"] == 20

        failed = abi(*common, "--extra", '{"max_tokens": -1}')
        assert failed.status == 2 and "/v1/completions: 400: " in failed.err and "max_tokens" in failed.err


def test_failures_are_told_and_are_the_exit_status(abi: Abi) -> None:
    from tests.serve.bench.test_load import tokens

    answers = iter([tokens(2), tokens(2), whole(429, {"error": {"message": "wait"}}), tokens(2)])
    with scripted(lambda path, body: next(answers)) as server:
        ran = abi(
            *("bench", "serve", "--url", server.url, "--model", "m", "--max-concurrency", "1"),
            *("--num-prompts", "3", "--warm-up", "0"),
        )
    assert ran.status == 1
    assert "2 of 3 answered" in ran.out and "failed 1 times: 429: wait" in ran.out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--url", "localhost"], "expected e.g. http"),
        (["--url", "http://127.0.0.1:9"], "cannot reach http://127.0.0.1:9"),
        (["--extra", "[1]"], "expected an object"),
        (["--extra", "{"], "is not JSON"),
        (["--figure", "x.nonsense"], "expected one of ."),
        (["--figure", "/nowhere/x.png"], "expected a folder that exists"),
        (["--request-rate", "0"], "request rate 0; expected a number above 0"),
        (["--max-concurrency", "0"], "expected at least 1"),
        (["--warm-up", "-1"], "expected 0 or more"),
        (["--prompts", "/nowhere.jsonl"], "/nowhere.jsonl: No such file"),
    ],
)
def test_bad_input(arguments: list[str], why: str, abi: Abi) -> None:
    ran = abi("bench", "serve", *arguments, "--model", "m")
    assert ran.status == 2 and why in ran.err, ran.err
