"""Of many cases that are alike, those that every run looks at. `make thorough` looks at all of them."""

from collections.abc import Iterable
from typing import Any

import pytest


def usual(cases: Iterable[Any], which: Iterable[Any]) -> list[Any]:
    """The cases for `parametrize`: all but `which` are left to `--thorough`."""
    chosen = list(which)
    made = []
    for case in cases:
        values = case if isinstance(case, tuple) else (case,)
        made.append(case if case in chosen else pytest.param(*values, marks=pytest.mark.thorough))
    assert sum(each in chosen for each in made if not hasattr(each, "marks")) == len(chosen), "a case that there is not"
    return made
