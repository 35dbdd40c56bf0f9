"""Answers of a form: JSON of a schema, a regular expression, a grammar. llguidance says what may come next."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from abi_jax.errors import InputError
from abi_jax.serve.tools import MARKS
from abi_jax.serve.written import written
from abi_jax.text import Tokenizer
from abi_jax.text.layout import BREAK

_KEPT = 128  # compiled grammars


class Matched:
    """See `engine.seam.Grammar`. What the grammar cannot follow ends the answer; `failed` says so, nothing here raises.

    There are bounds on how large a state of a grammar may become, since one that is small may have enormous ones.
    """

    def __init__(self, source: str, matcher: LLMatcher, width: int, ends: np.ndarray) -> None:
        self.source = source
        self._matcher, self._width, self._ends = matcher, width, ends

    def mask(self) -> np.ndarray:
        """Bits of the tokens that may come next, int32 `[ceil(V / 32)]`: end tokens alone where nothing else may."""
        if self._matcher.is_error():
            return self._ends
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.int32)
        made = np.zeros(self._width, np.int32)
        count = min(len(bits), self._width)
        made[:count] = bits[:count]
        return made if made.any() else self._ends

    def accept(self, token: int) -> None:
        """Goes on by one token."""
        self._matcher.consume_token(token)

    def copy(self) -> "Matched":
        """Another one at the same place."""
        return Matched(self.source, self._matcher.deep_copy(), self._width, self._ends)

    @property
    def failed(self) -> str | None:
        """See `engine.seam.Grammar`."""
        return self._matcher.get_error().splitlines()[0] if self._matcher.is_error() else None

    @property
    def complete(self) -> bool:
        """True where the answer may end here."""
        return self._matcher.is_accepting()


class Grammars:
    """Compiles grammars for one tokenizer; safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: the model's, which may be larger than the tokenizer's."""
        if not tokenizer.eos_ids:
            raise InputError("the tokenizer has no end token, and an answer of a form needs one to end")
        self._tokenizer = LLTokenizer(_spelled(tokenizer), n_vocab=vocab_size, eos_token=list(tokenizer.eos_ids))
        self._width = -(-vocab_size // 32)
        self._ends = np.zeros(self._width, np.int32)
        for token in tokenizer.eos_ids:
            self._ends.view(np.uint32)[token // 32] |= np.uint32(1 << (token % 32))
        self._compiled = lru_cache(_KEPT)(self._compile)

    def make(self, grammar: str) -> Matched:
        """A grammar at its beginning, of what the functions below return. Raises `InputError` for one that is none."""
        return Matched(grammar, self._compiled(grammar).deep_copy(), self._width, self._ends)

    def _compile(self, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"it cannot be followed: {matcher.get_error().splitlines()[0]}")
        return matcher


def _spelled(tokenizer: Tokenizer) -> str:
    """A tokenizer, as JSON, whose tokens for the marks of a call have other names.

    Where a grammar leaves no choice about a text, llguidance cuts the text as the tokenizer would, and then finds that
    what it takes for control tokens is none of the text. A grammar has a place for them by their numbers.
    """
    found = json.loads(tokenizer.backend.to_str())
    vocabulary = tokenizer.backend.get_vocab(with_added_tokens=False)
    for each in found["added_tokens"]:
        if each["content"] in MARKS and each["content"] not in vocabulary:
            each["content"] = f"<{BREAK}{each['id']}>"
    return json.dumps(found)


def of_schema(schema: Mapping[str, Any], lenient: bool = False) -> str:
    """The grammar of JSON that a schema describes. lenient: keywords that are not known are passed over."""
    options: Any = written(lenient)
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options)
    except ValueError as error:
        raise InputError(f"it cannot be followed: {error}") from None


def of_regex(pattern: str) -> str:
    """The grammar of a regular expression."""
    return LLMatcher.grammar_from_regex(pattern)


def of_lark(grammar: str) -> str:
    """A grammar in Lark's notation, as llguidance reads it."""
    return LLMatcher.grammar_from_lark(grammar)
