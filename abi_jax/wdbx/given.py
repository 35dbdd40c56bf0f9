"""Numbers and times as people give them: Python's or NumPy's, and nothing that only looks like one."""

from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from abi_jax.errors import InputError


def whole(value: Any) -> int | None:
    """A whole number as an int; None for anything else, and for True and False."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def as_time(value: date | str) -> datetime:
    """A time, UTC where it has no zone, of a `datetime`, a `date` or ISO 8601. Raises `ValueError` for another text."""
    made = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(made, datetime):
        made = datetime(made.year, made.month, made.day)
    return made if made.tzinfo else made.replace(tzinfo=UTC)


def check_top_k(top_k: Any) -> int:
    """`top_k` as an int. Raises `InputError` unless it is a whole number from 1."""
    made = whole(top_k)
    if made is None or made < 1:
        raise InputError(f"top_k {top_k!r}: expected a whole number from 1")
    return made


def check_recall(recall: Any) -> float:
    """`recall` as a float. Raises `InputError` unless it is a number above 0, up to 1."""
    number = isinstance(recall, int | float | np.integer | np.floating) and not isinstance(recall, bool)
    if not number or not 0 < recall <= 1:
        raise InputError(f"recall {recall!r}: expected a number above 0, up to 1")
    return float(recall)


def check_codes(codes: Any) -> str:
    """`codes`, what rows are searched by. Raises `InputError` unless it is "int8" or "pq"."""
    if codes not in ("int8", "pq"):
        raise InputError(f'codes {codes!r}: expected "int8" or "pq"')
    return str(codes)
