"""What a word is.

A text is brought into Unicode normal form NFKC and into lower case. A word is then the longest run of letters, marks
and digits (Unicode categories L, M, N); an ideograph, and a hiragana or katakana character, is a word of its own. There
is no list of words that are left out, and no stemming: what is searched for is found as it is written.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

BETWEEN = r"[^\pL\pM\pN]+"
ALONE = r"([\p{Han}\p{Hiragana}\p{Katakana}])"


def split(texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The words of all texts one after the other, and of each the number of its text, int64. A null has no words."""
    low = pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))
    if not pc.all(pc.string_is_ascii(low), min_count=0).as_py():
        low = pc.replace_substring_regex(low, ALONE, r" \1 ")
    parts = pc.split_pattern_regex(low, BETWEEN)
    words, of = pc.list_flatten(parts), np.asarray(pc.list_parent_indices(parts))
    there = np.asarray(pc.not_equal(pc.binary_length(words), 0)).astype(bool)  # a text that begins with a space
    return words.filter(pa.array(there)), of[there]


def words_of(text: str) -> list[str]:
    """The words of one text, in their order."""
    words: list[str] = split(pa.array([text], pa.string()))[0].to_pylist()
    return words
