"""What is asked: prompts of a fixed length, or real ones from a file."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from abi_jax.errors import InputError

Endpoint = Literal["completions", "chat"]
PATHS: dict[str, str] = {"completions": "/v1/completions", "chat": "/v1/chat/completions"}
# common, and one token each in most vocabularies
_COMMON = (
    "time people way water day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work government number night point home room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service "
    "friend father power hour game line end member law car city community name"
)
WORDS = _COMMON.split()


@dataclass(frozen=True)
class Ask:
    """One request: a text, token ids or messages, and how many tokens are wanted."""

    prompt: str | list[int] | list[dict[str, Any]]
    max_tokens: int


@dataclass(frozen=True)
class FixedLengths:
    """Random prompts. Lengths are words, or token ids where `vocab` says below what they are.

    prefix: how much of each prompt all share; it is the same at every point of a sweep.
    """

    input_len: int
    output_len: int
    prefix: int = 0
    vocab: int | None = None

    def __post_init__(self) -> None:
        if self.input_len < 1 or self.output_len < 1:
            raise InputError(f"lengths {self.input_len} and {self.output_len}; expected at least 1")
        if not 0 <= self.prefix <= self.input_len:
            raise InputError(f"prefix = {self.prefix}; expected 0 to the prompt's length, {self.input_len}")
        if self.vocab is not None and self.vocab < 1:
            raise InputError(f"vocabulary of {self.vocab}; expected at least 1")

    def draw(self, count: int, seed: int, point: int) -> list[Ask]:
        """The prompts of one point of a sweep; no two points have any in common but for the prefix."""
        shared, own = np.random.default_rng(seed), np.random.default_rng([seed, point])
        prefix = self._some(shared, self.prefix)
        asks = []
        for _ in range(count):
            drawn = [*prefix, *self._some(own, self.input_len - self.prefix)]
            asks.append(Ask(drawn if self.vocab else " ".join(WORDS[i] for i in drawn), self.output_len))
        return asks

    def _some(self, rng: np.random.Generator, count: int) -> list[int]:
        drawn: list[int] = rng.integers(0, self.vocab or len(WORDS), count).tolist()
        return drawn


@dataclass(frozen=True)
class RealPrompts:
    """Those of a file, in its order, from the beginning again when it ends. Every point of a sweep asks the same."""

    asks: tuple[Ask, ...]

    @classmethod
    def open(cls, path: Path, output_len: int) -> "RealPrompts":
        """Reads JSON lines: `prompt` (text or token ids) or `messages`, and `max_tokens` where it is not `output_len`.

        Raises `InputError` that names the line.
        """
        asks = []
        with path.open(encoding="utf-8") as file:
            try:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        asks.append(_ask(line, output_len, f"{path}:{number}"))
            except UnicodeDecodeError as error:
                raise InputError(f"{path} is not UTF-8 text: byte {error.start}: {error.reason}") from None
        if not asks:
            raise InputError(f"{path} has no prompt; expected JSON lines with `prompt` or `messages`")
        return cls(tuple(asks))

    def draw(self, count: int, seed: int, point: int) -> list[Ask]:
        """The first `count`."""
        del seed, point
        return list(islice(cycle(self.asks), count))


Prompts = FixedLengths | RealPrompts


def _ask(line: str, output_len: int, where: str) -> Ask:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    prompt = (row.get("messages") or row.get("prompt")) if isinstance(row, dict) else None
    texts = isinstance(prompt, str)
    listed = isinstance(prompt, list) and (
        all(type(item) is int for item in prompt) or all(isinstance(item, dict) for item in prompt)
    )
    if not prompt or not (texts or listed):
        expected = "expected an object with `prompt`, a text or token ids, or `messages`"
        raise InputError(f"{where}: {line.strip()[:80]}; {expected}")
    wanted = row.get("max_tokens", output_len)
    if type(wanted) is not int or wanted < 1:
        raise InputError(f"{where}: max_tokens = {wanted!r}; expected a number, at least 1")
    return Ask(prompt, wanted)


@dataclass(frozen=True)
class Style:
    """How a request is put: the endpoint, the models, in turn, and what else its body says.

    optional: fields that not every server knows, and that it may do without.
    """

    endpoint: Endpoint
    models: tuple[str, ...]
    extra: dict[str, Any]
    optional: dict[str, Any]

    def bodies(self, asks: list[Ask]) -> Iterator[bytes]:
        """The requests' bodies. Raises `InputError` for a prompt that the endpoint does not take."""
        for model, ask in zip(cycle(self.models), asks, strict=False):
            fields = {"model": model, "max_tokens": ask.max_tokens, "temperature": 0.0, "stream": True}
            yield json.dumps({**fields, **self._asked(ask), **self.optional, **self.extra}).encode()

    def _asked(self, ask: Ask) -> dict[str, Any]:
        prompt = ask.prompt
        messages = isinstance(prompt, list) and isinstance(prompt[0], dict)
        if self.endpoint == "completions":
            if messages:
                raise InputError("messages are for the endpoint chat; expected texts or token ids")
            return {"prompt": prompt}
        if isinstance(prompt, str):
            return {"messages": [{"role": "user", "content": prompt}]}
        if not messages:
            raise InputError("token ids are for the endpoint completions; expected texts or messages")
        return {"messages": prompt}
