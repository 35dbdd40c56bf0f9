"""Streams: whole characters, nothing lost, nothing after a stop string."""

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abi_jax.text import TextStream, Tokenizer
from abi_jax.text.bpe import SPECIAL
from abi_jax.text.stream import PATIENCE, UNFINISHED


def plain(text: str) -> bool:
    return not any(special in text for special in SPECIAL)


def pieces(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(tokenizer, stop)
    return [*(stream.push(i) for i in ids), stream.flush()]


TEXTS = st.text(max_size=40).filter(plain)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
@example("na\u00efve \U0001f9d1\u200d\U0001f680 \u4f60\u597d  two spaces ")
def test_pieces_make_the_whole_and_are_valid_text(own: Tokenizer, sentencepiece: Tokenizer, text: str) -> None:
    for tokenizer in (own, sentencepiece):
        ids = tokenizer.encode(text)
        got = pieces(tokenizer, ids)
        assert "".join(got) == tokenizer.decode(ids)
        if UNFINISHED not in text:
            assert not any(UNFINISHED in p for p in got)
    assert "".join(pieces(own, own.encode(text))) == text


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 399), max_size=80))
def test_any_ids_give_their_decoding(own: Tokenizer, ids: list[int]) -> None:
    ids = [i for i in ids if i < own.vocab_size]
    assert "".join(pieces(own, ids)) == own.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_their_decoding(own: Tokenizer, data: bytes) -> None:
    ids = byte_ids(own, data)
    assert own.decode(ids) == data.decode(errors="replace")
    assert "".join(pieces(own, ids)) == own.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 290), max_size=40))
def test_noise_never_raises(sentencepiece: Tokenizer, ids: list[int]) -> None:
    pieces(sentencepiece, [i for i in ids if i < sentencepiece.vocab_size])


def test_noise_is_shown_before_the_end(own: Tokenizer) -> None:
    ids = byte_ids(own, b"\x80" * (PATIENCE * 40))
    stream = TextStream(own)
    early = "".join(stream.push(i) for i in ids)
    assert len(early) > len(ids) - 2 * PATIENCE
    assert early + stream.flush() == own.decode(ids)
    assert len(stream._ids) <= 2 * PATIENCE  # bounded, however long the noise


@settings(max_examples=200, deadline=None)
@given(st.text("ab\u00e9\U0001f600 ", max_size=30), st.lists(st.text("ab\u00e9\U0001f600 ", max_size=4), max_size=3))
@example("abaabab", ["abab"])
@example("aab", ["ab", "b"])
@example("a\u00e9a", ["\u00e9", "a\u00e9a"])
def test_stop_strings_anywhere(own: Tokenizer, sentencepiece: Tokenizer, text: str, stops: list[str]) -> None:
    for tokenizer in (own, sentencepiece):
        ids = tokenizer.encode(text)
        whole = tokenizer.decode(ids)
        ends = [(at + len(s), at) for s in stops if s and (at := whole.find(s)) >= 0]
        end, begin = min(ends, default=(len(whole), len(whole)))
        stream = TextStream(tokenizer, stops)
        got, after = "", ""
        for i in ids:
            was_stopped = stream.stopped
            piece = stream.push(i)
            got += piece
            after += piece if was_stopped else ""
        got += stream.flush()
        assert got == whole[:begin]
        assert stream.stopped == bool(ends) and not after
        assert (stream.stop or "") == whole[begin:end]


def test_a_beginning_of_a_stop_string_is_held_until_it_is_certain(own: Tokenizer) -> None:
    stream = TextStream(own, ["STOP"])
    got = [stream.push(i) for i in byte_ids(own, b"xSTxSTOPy")]
    assert got == ["x", "", "", "STx", "", "", "", "", ""]
    assert stream.stopped and stream.stop == "STOP" and stream.flush() == ""


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 340), max_size=60))
def test_tokens_that_were_added_as_text_are_text(own: Tokenizer, ids: list[int]) -> None:
    """Those of a byte-level tokenizer's own characters, of others, and of both."""
    backend = tokenizers.Tokenizer.from_str(own.backend.to_str())
    backend.add_tokens(["<mark>", "\u0120x", "\u4f60", "a\u4f60\u0120", "\u00e9"])
    backend.add_special_tokens(["<control>"])
    made = Tokenizer({"tokenizer.json": backend.to_str().encode()})
    assert made.vocab_size > own.vocab_size + 4
    assert "".join(pieces(made, ids)) == made.decode(ids)


def test_control_tokens_are_not_text(own: Tokenizer) -> None:
    assert "".join(pieces(own, [*own.encode("the fox"), *own.eos_ids])) == "the fox"


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """Ids of single bytes: byte-level tokenizers begin their vocabulary with the 256 bytes as characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {b: chr(b) for b in printable}
    characters |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in printable)}
    ids = [tokenizer.backend.token_to_id(characters[b]) for b in data]
    return [i for i in ids if i is not None]


@pytest.mark.parametrize("stop", [(), ("",)])
def test_no_stop_strings(own: Tokenizer, stop: tuple[str, ...]) -> None:
    assert "".join(pieces(own, own.encode("hello"), stop)) == "hello"
