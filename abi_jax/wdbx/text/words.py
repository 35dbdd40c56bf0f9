"""What a word is.

A text is brought into Unicode normal form NFKC and into lower case. A word is then the longest run of letters, marks
and digits (Unicode categories L, M, N); an ideograph, and a hiragana or katakana character, is a word of its own. There
is no list of words that are left out, and no stemming: what is searched for is found as it is written.
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from abi_jax.errors import InputError

BETWEEN = r"[^\pL\pM\pN]+"
ALONE = r"([\p{Han}\p{Hiragana}\p{Katakana}])"
ASCII_BETWEEN = "[^a-z0-9]+"  # the same, where nothing else is there, and quick to compile
ASCII_WORD = re.compile("[a-z0-9]+")

_kinds: dict[str, str] = {}  # of characters met in questions: "-" between words, "w" in one, "1" one of its own


def split(texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The words of all texts one after the other, and of each the number of its text, int64. A null has no words."""
    if pc.all(pc.string_is_ascii(texts), min_count=0).as_py():
        low, between = pc.ascii_lower(texts), ASCII_BETWEEN
    else:
        low, between = pc.replace_substring_regex(_normal(texts), ALONE, r" \1 "), BETWEEN
    parts = pc.split_pattern_regex(low, between)
    words, of = pc.list_flatten(parts), np.asarray(pc.list_parent_indices(parts))
    there = np.asarray(pc.not_equal(pc.binary_length(words), 0)).astype(bool)  # a text that begins with a space
    return words.filter(pa.array(there)), of[there]


def _normal(texts: pa.Array) -> pa.Array:
    return pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))


def words_of(text: str) -> list[str]:
    """The words of one text, in their order: those of `split`, without compiling an expression over all of Unicode."""
    if text.isascii():
        return ASCII_WORD.findall(text.lower())
    try:
        low: str = _normal(pa.array([text], pa.string()))[0].as_py()
    except UnicodeEncodeError:
        raise InputError(f"text {text!r:.60} is not valid Unicode") from None
    _learn(sorted(set(low) - _kinds.keys()))
    made = "".join(f" {c} " if _kinds[c] == "1" else c if _kinds[c] == "w" else " " for c in low)
    return [word for word in made.split(" ") if word]


def _learn(characters: list[str]) -> None:
    if characters:
        column = pa.array(characters, pa.string())
        inside = pc.match_substring_regex(column, r"[\pL\pM\pN]").to_pylist()
        alone = pc.match_substring_regex(column, ALONE).to_pylist()
        for c, word, one in zip(characters, inside, alone, strict=True):
            _kinds[c] = "1" if one else "w" if word else "-"
