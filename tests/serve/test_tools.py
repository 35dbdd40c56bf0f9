"""Calls of functions as text."""

import json
import random
from functools import cache
from typing import Literal

import numpy as np
import pytest
import tokenizers

from abi_jax.serve.grammar import Grammars
from abi_jax.serve.tools import BEGIN, MARKS, Call, CallReader, Function, grammar, marks, policy, render_call
from abi_jax.text import Tokenizer
from tests.serve.http.serving import tokenizer

pytestmark = pytest.mark.smoke
WHOLE = render_call(Call("f", '{"x": 1}'))
OTHER = WHOLE.replace('"f"', '"undeclared"')
NUMBER = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
FUNCTIONS = [Function("f", parameters=NUMBER, strict=True), Function("g")]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("text", "rest", "calls"),
    [
        ("plain", "plain", []),
        (WHOLE, "", [Call("f", '{"x": 1}')]),
        (f"before{WHOLE}between{WHOLE}after", "beforebetweenafter", [Call("f", '{"x": 1}')] * 2),
        (f"{WHOLE}\n{WHOLE}", "", [Call("f", '{"x": 1}')] * 2),
        (f"{WHOLE}\n<tool", "\n<tool", [Call("f", '{"x": 1}')]),
        ("<tool_call>\nnonsense\n</tool_call>", "<tool_call>\nnonsense\n</tool_call>", []),
        ('<tool_call>{"name": "f"}</tool_call>', '<tool_call>{"name": "f"}</tool_call>', []),
        ("<tool_call>\n{", "<tool_call>\n{", []),
        ("a < b <tool", "a < b <tool", []),
        (f"hello{OTHER}{WHOLE}", f"hello{OTHER}", [Call("f", '{"x": 1}')]),
        (WHOLE.replace("1", '"</tool_call>"'), "", [Call("f", '{"x": "</tool_call>"}')]),
    ],
)
def test_calls_are_found_however_the_text_is_cut(text: str, rest: str, calls: list[Call], seed: int) -> None:
    rng, reader, found, plain = random.Random(seed), CallReader({"f"}), list[Call](), ""
    at = 0
    while at < len(text):
        size = rng.randrange(1, 6)
        piece, more = reader.push(text[at : at + size])
        plain, found, at = plain + piece, found + more, at + size
    assert (plain + reader.flush(), found) == (rest, calls)


def test_a_model_is_told_of_every_function() -> None:
    told = policy([Function("one", "The first."), Function("two", parameters={"type": "object", "properties": {}})])
    assert '{"name": "one", "description": "The first."' in told and '"name": "two"' in told


Mode = Literal["auto", "required"]
MODES: tuple[Mode, ...] = ("auto", "required")


@cache
def speaking(kind: str) -> tuple[Tokenizer, Grammars]:
    """A tokenizer that spells the marks of a call, or has tokens for them that its texts show, or do not."""
    if kind != "spelled":
        backend = tokenizers.Tokenizer.from_str(tokenizer().backend.to_str())
        backend.add_tokens([tokenizers.AddedToken(mark, special=kind == "hidden") for mark in MARKS])
        end = tokenizer().decode(tokenizer().eos_ids[:1], skip_special=False)
        config = json.dumps({"eos_token": end}).encode()
        made = Tokenizer({"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": config})
    else:
        made = tokenizer()
    return made, Grammars(made, made.vocab_size)


@cache
def pieces(kind: str) -> dict[int, str]:
    """The tokens that texts show; characters, and whatever is longer."""
    known = speaking(kind)[0]
    found = {token: text for token in range(260, known.vocab_size) if (text := known.decode([token]))}
    return found | {known.encode(chr(at))[0]: chr(at) for at in [10, *range(32, 127)]}


def form_of(kind: str, mode: Mode, parallel: bool) -> str:
    return grammar(FUNCTIONS, mode, parallel, marks(speaking(kind)[0]))


def lets(kind: str, form: str, text: str, seed: int = 0) -> bool:
    """Whether an answer of a form may be `text`, cut into tokens in one of the ways that the form leaves."""
    rng, matched = random.Random(seed), speaking(kind)[1].make(form)
    while text:
        may = allowed(matched.mask())
        ways = [token for token, piece in pieces(kind).items() if may[token] and text.startswith(piece)]
        if not ways:
            return False
        # a mark that has a token is no mark when it is spelled
        marked = [token for token in ways if pieces(kind)[token] in MARKS]
        token = marked[0] if marked else rng.choice(ways)
        matched.accept(token)
        text = text[len(pieces(kind)[token]) :]
    assert matched.failed is None
    return matched.complete


def allowed(mask: np.ndarray) -> np.ndarray:
    return np.unpackbits(mask.view(np.uint8), bitorder="little").astype(bool)


@pytest.mark.parametrize("kind", ["spelled", "marked", "hidden"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parallel", [True, False])
def test_an_answer_is_text_then_calls_of_what_was_declared(kind: str, mode: Mode, parallel: bool, seed: int) -> None:
    form, free = form_of(kind, mode, parallel), mode == "auto"
    expected = {
        "": free,
        "hello": free,
        "<b>hello</b>": free,
        "1 < 2 <tool_cal <": free,
        WHOLE: True,
        f"{WHOLE}\n": False,
        f"hello\n{WHOLE}": free,
        f"<b>{WHOLE}": free,
        f"<{WHOLE}": free,
        WHOLE + WHOLE: parallel,
        f"{WHOLE}\n{WHOLE}": parallel,
        f"hello {WHOLE}{WHOLE}": free and parallel,
        f"{WHOLE}hello": False,
        OTHER: False,
        f"hello {OTHER}": False,
        f"{WHOLE}\n{OTHER}": False,
        f"hello {WHOLE.replace('1', 'true')}": False,
        f"hello {BEGIN}": False,
        f"hello {BEGIN} is how a call begins": False,
    }
    assert {text: lets(kind, form, text, seed) for text in expected} == expected


@pytest.mark.parametrize("kind", ["spelled", "marked", "hidden"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("parallel", [True, False])
def test_whoever_tries_to_call_something_else_cannot(kind: str, mode: Mode, parallel: bool, seed: int) -> None:
    """A speaker that wants to write one thing, and writes any other where it may not."""
    rng, matched = random.Random(seed), speaking(kind)[1].make(form_of(kind, mode, parallel))
    wanted, said = rng.choice(["", "hello ", "<b>"]) + OTHER + WHOLE * 3, ""
    for _ in range(400):
        mask = allowed(matched.mask())
        may = [token for token in pieces(kind) if mask[token]]
        if not may:
            break
        ready = [token for token in may if wanted.startswith(pieces(kind)[token])]
        token = rng.choice(ready or may)
        said += pieces(kind)[token]
        wanted = wanted[len(pieces(kind)[token]) :] if ready else wanted
        matched.accept(token)
    calls = CallReader({"f", "g", "undeclared"}).push(said)[1]
    assert matched.failed is None and {call.name for call in calls} <= {"f", "g"} and (parallel or len(calls) <= 1)
