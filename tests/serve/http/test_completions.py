"""`/v1/completions`, through the official client and as lm-evaluation-harness asks."""

from typing import Any

import openai
import pytest

from abi_jax.serve.http import completions
from tests.serve.http.serving import Running, tokenizer

pytestmark = pytest.mark.smoke
SAID = "hello, world! She said: hello"


def ask(running: Running, **settings: Any) -> Any:
    return running.openai().completions.create(**{"model": "base", "prompt": "the quick", "max_tokens": 100} | settings)


def test_a_text_is_gone_on_with(hello: Running) -> None:
    answer = ask(hello)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (SAID, "stop")
    assert answer.object == "text_completion" and answer.usage.prompt_tokens == len(tokenizer().encode("the quick"))
    assert "".join(c.choices[0].text for c in ask(hello, stream=True)) == SAID
    assert ask(hello, max_tokens=openai.NOT_GIVEN).usage.completion_tokens <= 16


def test_texts_and_token_ids_are_the_same_prompts(plain: Running) -> None:
    texts = ["the quick", "brown fox"]
    ids = [tokenizer().encode(text) for text in texts]
    alone = [ask(plain, prompt=text, seed=3, max_tokens=7).choices[0].text for text in texts]
    for prompt in (texts, ids):
        assert [c.text for c in ask(plain, prompt=prompt, seed=3, max_tokens=7).choices] == alone
    assert ask(plain, prompt=ids[0], seed=3, max_tokens=7).choices[0].text == alone[0]
    several = ask(plain, prompt=texts, seed=3, max_tokens=7, n=2)
    assert [several.choices[i].text for i in (0, 2)] == alone and [c.index for c in several.choices] == [0, 1, 2, 3]
    assert several.usage.prompt_tokens == sum(map(len, ids)) and several.usage.completion_tokens == 28


def test_log_likelihoods_as_the_evaluation_harness_asks_for_them(plain: Running) -> None:
    prompts = [tokenizer().encode("the quick brown fox"), tokenizer().encode("hello, world!")]
    asked = {
        "model": "base",
        "prompt": prompts,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = plain.http.post("/v1/completions", json=asked).json()
    for prompt, choice in zip(prompts, sorted(answer["choices"], key=lambda c: c["index"]), strict=True):
        told = choice["logprobs"]
        assert told["token_logprobs"] == [None] + [-1.0] * len(prompt)
        assert len(told["tokens"]) == len(told["top_logprobs"]) == len(prompt) + 1
        assert told["top_logprobs"][0] is None
        context = 2
        likely = zip(told["token_logprobs"][context:-1], told["top_logprobs"][context:-1], strict=True)
        assert all(one == max(top.values()) for one, top in likely)
        assert told["text_offset"][1] == len(told["tokens"][0])


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_can_be_read_and_nothing_said(plain: Running, stream: bool) -> None:
    answer = ask(plain, max_tokens=0, echo=True, logprobs=0, stream=stream)
    (choice,) = answer.choices if not stream else [c.choices[0] for c in answer]
    assert (choice.text, choice.finish_reason) == ("the quick", "length")
    assert "".join(choice.logprobs.tokens) == "the quick" and choice.logprobs.token_logprobs[0] is None
    assert ask(plain, max_tokens=0).choices[0].text == ""


def test_an_echo(hello: Running) -> None:
    assert ask(hello, echo=True).choices[0].text == "the quick" + SAID
    assert ask(hello, echo=True, prompt=tokenizer().encode("the quick")).choices[0].text == "the quick" + SAID
    chunks = list(ask(hello, echo=True, stream=True, logprobs=1, n=2))
    for index in (0, 1):
        mine = [c.choices[0] for c in chunks if c.choices[0].index == index]
        assert "".join(c.text for c in mine) == "the quick" + SAID
        assert "".join(t for c in mine for t in c.logprobs.tokens) == "the quick" + SAID
        offsets = [o for c in mine for o in c.logprobs.text_offset]
        assert offsets[0] == 0 and offsets == sorted(offsets) and offsets[-1] < len("the quick" + SAID)


@pytest.mark.parametrize(
    ("settings", "status", "param", "message"),
    [
        ({"model": "abbey"}, 400, None, "persona 'abbey' of this model is an instruction"),
        ({"prompt": []}, 400, "prompt", "at least 1 item"),
        ({"prompt": [[]]}, 400, "prompt.0", "at least 1 item"),
        ({"prompt": [1, -1]}, 400, "prompt.1", "prompt.1 = -1"),
        ({"prompt": [1, 500]}, 400, None, "token id 500 is outside"),
        ({"prompt": ["a", 3]}, 400, "prompt.1", "prompt.1 = 3: expected a valid string"),
        ({"suffix": "end"}, 400, "suffix", "suffix = 'end': expected null"),
        ({"best_of": 3}, 400, "best_of", "best_of = 3: expected 1"),
        ({"logprobs": 21}, 400, "logprobs", "logprobs = 21"),
        ({"max_tokens": -1}, 400, "max_tokens", "max_tokens = -1"),
        ({"prompt": ["a"] * 100, "n": 2}, 400, "n", "100 prompts with n = 2: expected at most 128 choices"),
        ({"extra_body": {"abi": {"memory": {"texts": ["a"]}}}}, 400, "abi.memory", "no place in a bare text"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_named(
    plain: Running, settings: dict[str, Any], status: int, param: str | None, message: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        ask(plain, **settings)
    assert (caught.value.status_code, caught.value.param) == (status, param)


def test_what_is_too_much_is_refused_before_it_is_read(plain: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("it was tokenised")

    monkeypatch.setattr(completions, "_tokenise", read)
    for prompt, n, message in (
        (["a"] * 65, 2, "65 prompts with n = 2: expected at most 128 choices"),
        ([[1], [1] * 100_000], 1, "prompt of 100000 tokens does not fit"),
    ):
        asked = {"model": "base", "prompt": prompt, "n": n}
        answer = plain.http.post("/v1/completions", json=asked)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]
