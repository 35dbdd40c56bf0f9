"""A tokenizer and personas for the data tests, and a writer of data files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from abi_jax.data import demo_files, read_records, texts
from abi_jax.persona import Persona, load_personas
from abi_jax.text import Tokenizer, train_tokenizer

Write = Callable[..., str]


@pytest.fixture(scope="session")
def personas() -> tuple[Persona, ...]:
    return load_personas(["abbey", "aviva", "abi"])


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(texts(read_records(demo_files()).records), 600)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Returns a function that writes lines (objects, or text as it is) to a JSONL file and returns its path."""

    def write_lines(*lines: Any, name: str = "chats.jsonl") -> str:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (tmp_path / name).write_text(text + "\n", encoding="utf-8")
        return str(tmp_path / name)

    return write_lines
