"""Text: tokenizers, chat templates, the role of every token, and streams of whole characters."""

from abi_jax.text.bpe import train_tokenizer
from abi_jax.text.chat import Rendered, render, split_turns
from abi_jax.text.roles import NUM_ROLES, READABLE, Role
from abi_jax.text.stream import TextStream
from abi_jax.text.tokenizer import Tokenizer

__all__ = [
    "NUM_ROLES",
    "READABLE",
    "Rendered",
    "Role",
    "TextStream",
    "Tokenizer",
    "render",
    "split_turns",
    "train_tokenizer",
]
