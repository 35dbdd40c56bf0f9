"""Small tokenizers in the styles of well-known models."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from abi_jax.text import Tokenizer, train_tokenizer

TEMPLATES = Path(__file__).parent / "templates"
# style -> begin token, end token, further control tokens, further end tokens of generation_config.json
STYLES: dict[str, tuple[str | None, str, list[str], list[str]]] = {
    "qwen": (None, "<|im_end|>", ["<|endoftext|>", "<|im_start|>"], ["<|endoftext|>"]),
    "qwen_thinking": (None, "<|im_end|>", ["<|endoftext|>", "<|im_start|>"], ["<|endoftext|>"]),
    "llama3": ("<|begin_of_text|>", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>"], []),
    "gemma": ("<bos>", "<eos>", ["<start_of_turn>", "<end_of_turn>"], ["<end_of_turn>"]),
    "llama2": ("<s>", "</s>", [], []),
    "mistral": ("<s>", "</s>", ["[INST]", "[/INST]"], []),
    "no_system": (None, "<|im_end|>", ["<|im_start|>"], []),
    "plain": (None, "<|endoftext|>", [], []),
}
TEXT = "the quick brown fox jumps over the lazy dog; She said: hello, world! 1234 user assistant system model"


@pytest.fixture(scope="session")
def own() -> Tokenizer:
    """A tokenizer as we train it ourselves."""
    return train_tokenizer([TEXT] * 4, 400)


@pytest.fixture(scope="session")
def styled() -> Callable[[str], Tokenizer]:
    """Returns a maker of byte-level tokenizers with the chat template of a style."""
    return _styled


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """A tokenizer in Llama 2's manner: words begin with a low line, unknown characters fall back to bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for token in [f"<0x{i:02X}>" for i in range(256)] + [
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz.,!",
        "th",
        "the",
        "\u2581the",
    ]:
        vocab[token] = len(vocab)
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": (TEMPLATES / "llama2.jinja").read_text()}
    return Tokenizer(
        {"tokenizer.json": backend.to_str().encode(), "tokenizer_config.json": json.dumps(config).encode()}
    )


def _styled(style: str) -> Tokenizer:
    begin, end, control, ends = STYLES[style]
    base = train_tokenizer([TEXT] * 4, 400)
    vocab = json.loads(base.backend.to_str())
    vocab["added_tokens"] = []
    backend = tokenizers.Tokenizer.from_str(json.dumps(vocab))
    backend.add_special_tokens([AddedToken(t, special=True) for t in [*([begin] if begin else []), end, *control]])
    ending = {"__type": "AddedToken", "content": end, "special": True}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": ending}
    files = {
        "tokenizer.json": backend.to_str().encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps(
            {"eos_token_id": [backend.token_to_id(end), *(backend.token_to_id(t) for t in ends)]}
        ).encode(),
    }
    if style != "plain":
        files["chat_template.jinja"] = (TEMPLATES / f"{style}.jinja").read_bytes()
    return Tokenizer(files, style)
