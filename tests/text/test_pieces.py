"""Tokens one at a time."""

from collections.abc import Callable

import pytest

from abi_jax.text import Tokenizer
from abi_jax.text.pieces import Pieces

pytestmark = pytest.mark.smoke
TEXT = "the quick \u2014 brown \U0001f98a"


def test_the_bytes_of_a_text_are_those_of_its_tokens(own: Tokenizer, styled: Callable[[str], Tokenizer]) -> None:
    for tokenizer in (own, styled("qwen"), styled("llama3")):
        pieces = Pieces(tokenizer)
        ids = tokenizer.encode(TEXT)
        assert b"".join(map(pieces.bytes, ids)) == TEXT.encode()
        assert any(pieces.text(i).startswith("bytes:\\x") for i in ids)
        assert pieces.text(tokenizer.eos_ids[0]) == tokenizer.special_tokens["eos_token"]


def test_low_lines_and_byte_tokens(sentencepiece: Tokenizer) -> None:
    pieces = Pieces(sentencepiece)
    ids = sentencepiece.encode("the a\u2014")
    assert b"".join(map(pieces.bytes, ids)) == " the a\u2014".encode()
    assert pieces.bytes(10_000) == b""
