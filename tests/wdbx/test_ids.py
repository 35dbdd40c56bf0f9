"""Looking texts up by eight bytes of each: what a dictionary finds, whatever ids share."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abi_jax.wdbx.ids import TextIds, text_arrays

TEXTS = st.text("ab\0é\U0001f600", min_size=1, max_size=20)


def column(ids: list[str]) -> TextIds:
    return TextIds(*text_arrays(sorted(ids, key=str.encode)))


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["", "a", "document ", "a prefix that is longer than a word "]), *[st.lists(TEXTS)] * 2)
@example("", ["a"], ["a", "a\0"])
@example("", ["a\0", "a\0\0"], ["a", "a\0", "a\0\0"])
@example("12345678", ["\0", "\0\0"], ["\0", "a"])
def test_the_last_row_of_each_id(prefix: str, some: list[str], others: list[str]) -> None:
    there = sorted([prefix + each for each in some], key=str.encode)
    rows = {each: row for row, each in enumerate(there)}
    asked = [prefix + each for each in others] + [*there, *others, *([prefix] if prefix else [])]
    assert column(there).find(asked).tolist() == [rows.get(each, -1) for each in asked]


@pytest.mark.parametrize("ids", [[], ["a"]])
def test_no_ids(ids: list[str]) -> None:
    assert column(ids).find([]).tolist() == []
    assert column([]).find(ids).tolist() == [-1] * len(ids)


def test_one_of_many() -> None:
    ids = [f"document {i}" for i in range(20_000)]
    found = column(ids)
    order = np.argsort(ids)
    assert found.find(np.array(ids)[order].tolist()).tolist() == list(range(20_000))
    assert found.find([f"document {i}" for i in range(20_000, 40_000)]).max() == -1
