"""Cleaning: what people cannot see goes, what they can see stays."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi_jax.data import read_records
from abi_jax.data.clean import clean_record, clean_text, clean_value, one_line
from abi_jax.errors import InputError
from tests.data.conftest import Write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\r\ntwo\rthree\n", "one\ntwo\nthree"),
        ("cafe\u0301", "caf\u00e9"),
        ("a\x00b\x1b[0m\x7f\ufeff", "ab[0m"),
        ("  indented  \n\tcode \t\n\n\n", "  indented\n\tcode"),
        ("\N{WOMAN}\u200d\N{PERSONAL COMPUTER}", "\N{WOMAN}\u200d\N{PERSONAL COMPUTER}"),
        ("co\u00adop\u200berate\u2060, \u202eevil\u202c \u2067\u200fx\u2069\ufeff", "cooperate, evil x"),
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u200c\u062e"),
        ("plain", "plain"),
    ],
)
def test_texts(text: str, expected: str) -> None:
    assert clean_text(text) == expected


@given(st.text())
def test_cleaning_is_done_once(text: str) -> None:
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert unicodedata.is_normalized("NFC", cleaned)
    assert all(c in "\n\t" or unicodedata.category(c) != "Cc" for c in cleaned)
    # Nothing that can be seen is lost.
    assert "".join(cleaned.split()) == "".join(
        c for c in unicodedata.normalize("NFC", "".join(_visible(text))) if not c.isspace()
    )


GONE = {"LRM", "RLM", "ALM", "LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
WIDTHLESS = {"ZERO WIDTH SPACE", "ZERO WIDTH NO-BREAK SPACE", "WORD JOINER", "SOFT HYPHEN"}


def _visible(text: str) -> list[str]:
    gone = {unicodedata.lookup(name) for name in WIDTHLESS} | {unicodedata.lookup(name) for name in GONE}
    return [c for c in text if (unicodedata.category(c) != "Cc" and c not in gone) or c in "\n\t\r\v\f\x85"]


def test_what_is_shown_tells_a_terminal_nothing() -> None:
    assert one_line("a\x1b[31m b\n\tc\x9b\u202e", 20) == "a\ufffd[31m b c\ufffd\ufffd"
    assert one_line("word " * 9, 10) == "word wo..."


def test_every_text_of_a_value_is_cleaned_and_nothing_else() -> None:
    value = {"a ": ["x ", {"b": "y\r\n"}], "n": 1, "t": True, "z": None}
    assert clean_value(value) == {"a ": ["x", {"b": "y"}], "n": 1, "t": True, "z": None}


def test_records_that_cleaning_changed_are_counted(write: Write) -> None:
    def chat(question: str, answer: str) -> dict[str, object]:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "persona": "abbey"}

    path = Path(write(chat("why?", "because"), chat("why?\r\n", "because "), chat("why?", "\x00 ")))
    read = read_records({"chats": (path,)}, clean=True, bad="skip")
    assert [r.turns for r in read.records] == [read.records[0].turns] * 2
    assert read.tally["chats"] == {"read": 3, "cleaned": 1, "skipped": 1}
    assert "content is empty" in read.reasons[0]
    assert read_records({"chats": (path,)}).records[1].question == "why?\r\n"


def test_a_value_too_deep_to_be_cleaned_is_bad_input() -> None:
    """Some versions of Python read JSON deeper than they can walk it."""
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InputError, match="here:1: nested too deeply to be cleaned"):
        clean_record({"messages": [], "x": deep}, "here:1")
