"""Text to token ids and back, over the tokenizer files of a Hugging Face folder.

The files are read once, kept as they are, and written back byte for byte. `tokenizer.json` is
read by the `tokenizers` library directly; transformers, slow to import, is only asked to make
one from older vocabulary files.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from abi_jax.errors import InputError
from abi_jax.text.byte_level import Spoken, is_byte_level
from abi_jax.text.template import PLAIN_TEMPLATE, ChatTemplate, TemplateRefusal

# Everything a Hugging Face folder may hold that bears on its tokenizer.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class Tokenizer:
    """A tokenizer, its special tokens and its chat template. Immutable and safe to share between threads."""

    def __init__(self, files: Mapping[str, bytes], where: str = "tokenizer") -> None:
        """Takes the contents of `FILES` by name; `where` names them in errors.

        Raises `InputError` when `tokenizer.json` is missing or a file does not parse.
        """
        self._files = dict(files)
        self._where = where
        if "tokenizer.json" not in files:
            raise InputError(f"{where}: no tokenizer.json among {', '.join(sorted(files)) or 'no files'}")
        try:
            self.backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
        except Exception as error:  # the library raises bare Exception
            raise InputError(f"{where}/tokenizer.json cannot be read: {error}") from error
        # Sentence encoders ship with both; lengths are our business here.
        self.backend.no_truncation()
        self.backend.no_padding()
        self.config = self._json("tokenizer_config.json")
        self.generation = self._json("generation_config.json")
        self.special_tokens = self._special_tokens()

    @classmethod
    def load(cls, folder: Path | str) -> "Tokenizer":
        """Reads the tokenizer of a Hugging Face folder. Raises `InputError` naming the folder if it has none."""
        folder = Path(folder)
        if not folder.is_dir():
            raise InputError(f"tokenizer folder {str(folder)!r} does not exist; expected a folder with tokenizer.json")
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        if "tokenizer.json" not in files:
            files["tokenizer.json"] = _convert(folder)
        return cls(files, str(folder))

    def save(self, folder: Path | str) -> None:
        """Writes the files into `folder`, unchanged."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self._files.items():
            (folder / name).write_bytes(data)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Returns the ids of `text`; `special` adds what the tokenizer puts around a text ([CLS], <s>)."""
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    def encode_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns ids and the character span of each; nothing is added around the text."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Returns the text of `ids`. Bytes that are not UTF-8 read as U+FFFD."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id. A model's embedding may be larger, never smaller."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the tokenizer's files, hexadecimal: equal digests encode and render alike."""
        digest = hashlib.sha256()
        for name, data in sorted(self._files.items()):
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
        return digest.hexdigest()

    @cached_property
    def bos_id(self) -> int | None:
        """Id of the token that opens a text, if there is one."""
        return self._id("bos_token")

    @cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the tokenizer's own, then those of generation_config.json."""
        own = self._id("eos_token")
        extra = self.generation.get("eos_token_id")
        more = extra if isinstance(extra, list) else [] if extra is None else [extra]
        return tuple(dict.fromkeys(i for i in [own, *more] if i is not None))

    @cached_property
    def pad_id(self) -> int:
        """Id that fills unused positions: the pad token, or else an end token, or else 0."""
        pad = self._id("pad_token")
        return pad if pad is not None else self.eos_ids[0] if self.eos_ids else 0

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of control tokens, which `decode` skips."""
        return frozenset(i for i, t in self.backend.get_added_tokens_decoder().items() if t.special)

    @cached_property
    def spoken(self) -> Spoken | None:
        """The bytes that each id adds to a decoded text; None where that depends on the ids beside it."""
        return Spoken(self.backend, self.special_ids) if is_byte_level(self.backend) else None

    @cached_property
    def control(self) -> re.Pattern[str]:
        """Matches the text of any control token; nothing when there are none."""
        added = self.backend.get_added_tokens_decoder().values()
        texts = sorted((t.content for t in added if t.special), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts)) or "(?!)")

    @cached_property
    def chat_template(self) -> ChatTemplate:
        """The folder's chat template, or a plain one. Raises `InputError` if it does not parse."""
        source = self._template_source()
        try:
            return ChatTemplate(PLAIN_TEMPLATE if source is None else source, self.special_tokens)
        except TemplateRefusal as error:
            raise InputError(f"{self._where}: the chat template does not parse: {error}") from error

    def _template_source(self) -> str | None:
        if "chat_template.jinja" in self._files:
            return self._files["chat_template.jinja"].decode()
        found = self.config.get("chat_template") or self._json("chat_template.json").get("chat_template")
        if isinstance(found, list):
            by_name = {t["name"]: t["template"] for t in found}
            found = by_name.get("default") or next(iter(by_name.values()), None)
        return found if isinstance(found, str) else None

    def _special_tokens(self) -> dict[str, str]:
        listed = self._json("special_tokens_map.json") | {k: v for k, v in self.config.items() if v is not None}
        tokens = {}
        for name in _SPECIAL:
            value = listed.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            tokens[name] = text if isinstance(text, str) else ""
        return tokens

    def _id(self, name: str) -> int | None:
        text = self.special_tokens[name]
        return self.backend.token_to_id(text) if text else None

    def _json(self, name: str) -> dict[str, Any]:
        if name not in self._files:
            return {}
        try:
            value = json.loads(self._files[name])
        except ValueError as error:
            raise InputError(f"{self._where}/{name} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InputError(f"{self._where}/{name} holds a {type(value).__name__}; expected an object")
        return value


def _convert(folder: Path) -> bytes:
    """Returns a tokenizer.json made from a folder's older vocabulary files."""
    older = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
    if not any((folder / name).is_file() for name in older):  # transformers would make an empty one up
        raise InputError(f"{str(folder)!r} has no tokenizer.json and none of {', '.join(older)}")
    try:
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as scratch:
            AutoTokenizer.from_pretrained(str(folder), local_files_only=True).save_pretrained(scratch)
            return (Path(scratch) / "tokenizer.json").read_bytes()
    except (ImportError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(folder)!r} has no tokenizer.json, and none could be made from what it has: {error}"
        ) from error
