r"""Texts as they should have been written: the same characters for the same letters, and none that are invisible.

Line ends become \n; control characters but \n and \t are left out, the byte-order mark too; letters are
composed (Unicode NFC); white space at the end of a line, and all at the end of a text, goes.
"""

import re
import unicodedata
from typing import Any

from abi_jax.errors import InputError

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")


def clean_text(text: str) -> str:
    """Returns the text, cleaned. Cleaning it again changes nothing."""
    text = _CONTROL.sub("", _LINE_ENDS.sub("\n", text))
    text = unicodedata.normalize("NFC", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()


def clean_value(value: Any) -> Any:
    """Returns a record's value with every text in it cleaned; keys are left alone."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, dict):
        return {key: clean_value(v) for key, v in value.items()}
    return [clean_value(v) for v in value] if isinstance(value, list) else value


def clean_record(value: dict[str, Any], where: str) -> dict[str, Any]:
    """Cleans the value of one record. Raises `InputError` beginning with `where` if it is nested too deeply."""
    try:
        return {key: clean_value(v) for key, v in value.items()}
    except RecursionError:
        raise InputError(f"{where}: nested too deeply to be cleaned") from None
