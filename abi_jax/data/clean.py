r"""Texts as they should have been written: the same characters for the same letters, and next to none invisible.

Line ends become \n; control characters but \n and \t are left out, and so are zero-width spaces, word joiners,
byte-order marks, soft hyphens and the controls of writing direction. The two joiners U+200C and U+200D stay: scripts
and emoji need them. Letters are composed (Unicode NFC); white space at the end of a line, and all at the end of a
text, goes.
"""

import re
import unicodedata
from typing import Any

from abi_jax.errors import InputError

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_INVISIBLE = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


def clean_text(text: str) -> str:
    """Returns the text, cleaned. Cleaning it again changes nothing."""
    text = _INVISIBLE.sub("", _CONTROL.sub("", _LINE_ENDS.sub("\n", text)))
    text = unicodedata.normalize("NFC", text)
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()


def one_line(text: str, width: int) -> str:
    """Returns the text on one line of at most `width` characters, to be shown: a terminal obeys nothing in it."""
    line = "".join(c if c.isprintable() or c in "\u200c\u200d" else "\ufffd" for c in " ".join(text.split()))
    return line if len(line) <= width else line[: width - 3] + "..."


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
