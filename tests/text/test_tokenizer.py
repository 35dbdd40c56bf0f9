"""Tokenizers: trained, loaded, saved unchanged, refused with a reason."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.errors import InputError
from abi_jax.text import NUM_ROLES, Role, Tokenizer, train_tokenizer
from abi_jax.text.bpe import SMALLEST, SPECIAL


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_every_text_round_trips(own: Tokenizer, text: str) -> None:
    if not any(s in text for s in SPECIAL):
        assert own.decode(own.encode(text)) == text


def test_training_is_deterministic_and_within_its_size() -> None:
    texts = [f"the {w} fox {n}" for n, w in enumerate(["quick", "lazy", "brown"] * 9)]
    one, two = train_tokenizer(texts, 300), train_tokenizer(texts, 300)
    assert one.digest == two.digest
    assert SMALLEST <= one.vocab_size <= 300
    assert train_tokenizer([], SMALLEST).vocab_size == SMALLEST


def test_a_vocabulary_too_small_is_refused() -> None:
    with pytest.raises(InputError, match=f"vocab_size = 100: expected at least {SMALLEST}"):
        train_tokenizer(["x"], 100)


def test_special_ids(own: Tokenizer) -> None:
    assert own.pad_id == 0 and own.bos_id == 1 and own.eos_ids == (2,)
    assert own.special_ids == frozenset(range(len(SPECIAL)))
    assert own.encode("1234") and len(own.encode("1234")) == 4  # digits stand alone


def test_end_tokens_come_from_both_files(styled: Callable[[str], Tokenizer]) -> None:
    tokenizer = styled("qwen")
    assert [tokenizer.decode([i], skip_special=False) for i in tokenizer.eos_ids] == ["<|im_end|>", "<|endoftext|>"]


def test_files_are_kept_byte_for_byte(styled: Callable[[str], Tokenizer], tmp_path: Path) -> None:
    styled("llama3").save(tmp_path / "a")
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_transformers_reads_what_we_save(own: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    own.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "She said: h\u00e9llo <|end|> 1234"
    assert theirs.encode(text) == own.encode(text, special=True)
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.bos_token_id) == (*own.eos_ids, own.pad_id, own.bos_id)


def test_older_vocabulary_files_are_converted(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    model = json.loads(train_tokenizer(["the quick fox"] * 3, 300).backend.to_str())["model"]
    vocab = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(m) for m in model["merges"])]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"})
    )
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.decode(tokenizer.encode("the quick fox")) == "the quick fox"
    assert tokenizer.eos_ids == (vocab["<|endoftext|>"],) and tokenizer.pad_id == tokenizer.eos_ids[0]


def test_truncation_and_padding_of_the_file_are_off(own: Tokenizer) -> None:
    backend = Tokenizer(own._files).backend
    backend.enable_truncation(3)
    backend.enable_padding(length=8)
    tokenizer = Tokenizer(own._files | {"tokenizer.json": backend.to_str().encode()})
    assert tokenizer.encode("the quick brown fox jumps") == own.encode("the quick brown fox jumps")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("tokenizer.json", b"{", "tokenizer.json cannot be read"),
        ("tokenizer_config.json", b"[]", "tokenizer_config.json holds a list; expected an object"),
        ("generation_config.json", b"{]", "generation_config.json is not JSON"),
        ("chat_template.jinja", b"{% if %}", "the chat template does not parse"),
    ],
)
def test_damaged_files_are_named(own: Tokenizer, name: str, data: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        _ = Tokenizer(own._files | {name: data}, "folder").chat_template


def test_missing_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_named_templates_in_the_configuration(own: Tokenizer) -> None:
    listed = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    files = {k: v for k, v in own._files.items() if k != "chat_template.jinja"}
    config = own.config | {"chat_template": listed}
    tokenizer = Tokenizer(files | {"tokenizer_config.json": json.dumps(config).encode()})
    assert tokenizer.chat_template.source == "yes"


def test_text_needs_neither_jax_nor_transformers() -> None:
    code = (
        "import sys, abi_jax.text, abi_jax.persona; sys.exit(bool({'jax', 'transformers', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_roles_are_what_checkpoints_store() -> None:
    assert [(r.name, int(r)) for r in Role] == [
        ("PADDING", 0),
        ("POLICY", 1),
        ("MEMORY", 2),
        ("HISTORY", 3),
        ("INPUT", 4),
        ("RESPONSE", 5),
    ]
    assert NUM_ROLES == 6
