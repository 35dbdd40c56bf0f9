"""Search by words: how a text becomes words, which rows have a word, what a row scores, and fusion with vectors."""

from abi_jax.wdbx.text.bm25 import Bm25
from abi_jax.wdbx.text.fusion import Fusion
from abi_jax.wdbx.text.words import words_of

__all__ = ["Bm25", "Fusion", "words_of"]
