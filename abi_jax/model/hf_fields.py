"""Typed reading of a `config.json`: what is missing or ill-typed is named, with its value."""

from collections.abc import Mapping
from typing import Any

from abi_jax.errors import InputError


class Fields:
    """The keys of one JSON object. A null counts as absent, and an absent key without a default is an error."""

    def __init__(self, raw: Mapping[str, Any], where: str = "") -> None:
        self.raw, self.where = raw, where

    def __contains__(self, key: str) -> bool:
        return key in self.raw

    def whole(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """Returns a whole number; one that is given, not the default, must be at least `minimum`."""
        value = self._value(key, default)
        if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, float) and value.is_integer())):
            raise self._wrong(key, value, "a whole number")
        if value < minimum and value != default:
            raise self._wrong(key, value, f"at least {minimum}")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a positive number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self._wrong(key, value, "a positive number")
        return float(value)

    def maybe_number(self, key: str, default: float | None) -> float | None:
        """Returns a positive number; null means that there is none, absence the default."""
        if key not in self.raw:
            return default
        return None if self.raw[key] is None else self.number(key)

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Returns true or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Returns a string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise InputError(f"{self.where}{key} is missing")
        return value

    def _wrong(self, key: str, value: Any, expected: str) -> InputError:
        return InputError(f"{self.where}{key} is {value!r}; expected {expected}")
