"""Cleaning: what people cannot see goes, what they can see stays."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi_jax.data import read_records
from abi_jax.data.clean import clean_record, clean_text, clean_value
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


def _visible(text: str) -> list[str]:
    return [c for c in text if (unicodedata.category(c) != "Cc" and c != "\ufeff") or c in "\n\t\r\v\f\x85"]


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
