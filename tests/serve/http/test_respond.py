"""Chunks of a stream: those that are written by a template are what the others would be."""

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from abi_jax.serve.engine.seam import TokenLogprobs
from abi_jax.serve.http.chat import ChatForm
from abi_jax.serve.http.completions import CompletionForm
from abi_jax.serve.http.generation import Choice
from abi_jax.serve.http.respond import Form
from abi_jax.text import TextStream
from abi_jax.text.pieces import Pieces
from tests.serve.http.serving import tokenizer
from tests.serve.jobs import job

pytestmark = pytest.mark.smoke
MADE = cast(Any, SimpleNamespace(id="cmpl-1", created=7, asked=SimpleNamespace(model='abbey=0.5,"aviva"=0.5')))
PIECES = Pieces(tokenizer())
FORMS: list[Form] = [ChatForm(PIECES, usage) for usage in (True, False)]
FORMS += [CompletionForm(PIECES, usage) for usage in (True, False)]


def choice(text: str, **settings: Any) -> Choice:
    """A choice of which `text` is new."""
    made = Choice(3, 0, job(**settings), TextStream(tokenizer()))
    made.tokens, made.logprobs, made.fresh, made.opened = [5], [TokenLogprobs(-1.0)], text, True
    return made


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{type(form).__name__} {form.include_usage}")
def test_a_line_is_what_the_chunk_would_be(form: Form) -> None:
    for text in (" hello", 'a "quote" \\', "\0", "\u2028\n\U0001f600", '"content":"\\u0000"'):
        said = choice(text)
        line = form.line(MADE, said)
        assert line is not None and line.startswith(b"data: ") and line.endswith(b"\n\n") and line.count(b"\n") == 2
        assert json.loads(line[6:]) == form.chunk(MADE, choice(text)) and said.fresh == ""


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{type(form).__name__} {form.include_usage}")
def test_what_is_more_than_text_is_no_line(form: Form) -> None:
    ended = choice(" hello")
    ended.finish = "stop"
    for each in (choice(""), choice(" hello", logprobs=1), ended):
        assert form.line(MADE, each) is None
    assert ChatForm(PIECES, False, calls=frozenset({"f"})).line(MADE, choice(" hello")) is None
    first = choice(" hello")
    first.opened = False
    assert CompletionForm(PIECES, False, ["the prompt"]).line(MADE, first) is None
