"""A tokenizer of our own, for models trained from nothing."""

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from abi_jax.errors import InputError
from abi_jax.text.template import OWN_TEMPLATE
from abi_jax.text.tokenizer import Tokenizer

PAD, BEGIN, END = "<|pad|>", "<|begin|>", "<|end|>"
SPECIAL = (PAD, BEGIN, END, "<|policy|>", "<|memory|>", "<|user|>", "<|assistant|>")

# Words with their leading space, single digits (so that arithmetic lines up), punctuation, white space.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMALLEST = 256 + len(SPECIAL)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE tokenizer with our special tokens and chat template.

    Returns a tokenizer of at most `vocab_size` ids (fewer when `texts` hold fewer repeated
    pairs). Every text round-trips, whatever its bytes. Raises `InputError` for a vocabulary
    too small to hold the bytes and the special tokens.
    """
    if vocab_size < SMALLEST:
        raise InputError(f"vocab_size = {vocab_size}: expected at least {SMALLEST} (256 bytes and the special tokens)")
    backend = Backend(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": list(SPECIAL[3:]),
        "clean_up_tokenization_spaces": False,
    }
    return Tokenizer(
        {
            "tokenizer.json": backend.to_str(pretty=False).encode(),
            "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
            "chat_template.jinja": OWN_TEMPLATE.encode(),
        },
        "trained tokenizer",
    )
