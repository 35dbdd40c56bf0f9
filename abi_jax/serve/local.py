"""An engine in this process: a model directory that answers conversations, text in, text out."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from abi_jax.model.config import ModelConfig
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.generate import Generator, Prompt
from abi_jax.persona import Persona, Sampling
from abi_jax.serve.voices import Request, Voices
from abi_jax.sharding.context import use
from abi_jax.sharding.rules import AxisRules
from abi_jax.text import TextStream, Tokenizer

__all__ = ["Answer", "LocalEngine", "Request"]


@dataclass(frozen=True)
class Answer:
    """The text of an answer, why it ended ("stop" or "length") and how many tokens went in and out."""

    text: str
    finish: str
    prompt_tokens: int
    tokens: int


class LocalEngine:
    """Answers requests, several at a time, each with its own personas and settings."""

    def __init__(
        self,
        config: ModelConfig,
        params: Any,
        tokenizer: Tokenizer,
        personas: Sequence[Persona] = (),
        *,
        mesh: Mesh | None = None,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.config, self.tokenizer, self.personas = config, tokenizer, tuple(personas)
        self.voices = Voices(config, tokenizer, self.personas)
        self._mesh = mesh
        self._generator = Generator(config, params, dtype=dtype, stop_ids=tokenizer.eos_ids)

    @classmethod
    def open(cls, path: Path | str, *, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32) -> "LocalEngine":
        """Loads the newest checkpoint of a model directory; one that lists no personas is given all of `configs`."""
        directory = ModelDirectory.open(path)
        voices = Voices.of(directory)
        params = directory.load_params(dtype=dtype, mesh=mesh)
        return cls(voices.config, params, voices.tokenizer, voices.personas, mesh=mesh, dtype=dtype)

    @property
    def names(self) -> tuple[str, ...]:
        """The personas that can be asked for."""
        return self.voices.names

    def prompt(self, request: Request) -> Prompt:
        """Renders a request to tokens. Raises `InputError` for an unknown persona or a mixture off the simplex."""
        return self.voices.prompt(request)

    def settings(self, request: Request) -> Sampling:
        """The sampling settings of a request: its own, else its leading persona's."""
        return self.voices.settings(request)

    def stream(self, request: Request) -> Iterator[str]:
        """Yields an answer's text in pieces of whole characters."""
        text = TextStream(self.tokenizer, request.stop)
        prompt = self.prompt(request)
        limit = self.settings(request).limit(self.config.max_length - len(prompt.tokens))
        for row in self._tokens([prompt], limit):
            if row[0] < 0:
                break
            yield from filter(None, [text.push(int(row[0]))])
            if text.stopped:
                return
        yield from filter(None, [text.flush()])

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers several requests in one batch."""
        if not requests:
            return []
        streams = [TextStream(self.tokenizer, r.stop) for r in requests]
        texts, counts = [""] * len(requests), [0] * len(requests)
        ended = [False] * len(requests)
        prompts = [self.prompt(r) for r in requests]
        rooms = [self.config.max_length - len(p.tokens) for p in prompts]
        limits = [self.settings(r).limit(room) for r, room in zip(requests, rooms, strict=True)]
        for row in self._tokens(prompts, max(limits)):
            for i, token in enumerate(row.tolist()):
                if ended[i]:
                    continue
                if token < 0:
                    ended[i] = True
                    continue
                texts[i] += streams[i].push(token)
                counts[i] += 1
                ended[i] = streams[i].stopped or counts[i] >= limits[i]
            if all(ended):
                break
        return [
            Answer(
                texts[i] if streams[i].stopped else texts[i] + streams[i].flush(),
                "length" if counts[i] >= min(limits[i], rooms[i]) and not streams[i].stopped else "stop",
                len(prompts[i].tokens),
                counts[i],
            )
            for i in range(len(requests))
        ]

    def _tokens(self, prompts: Sequence[Prompt], limit: int) -> Iterator[np.ndarray]:
        rows = self._generator.stream(prompts, limit)
        while True:
            # The mesh is current while a step runs, never while the caller holds what it gave.
            with nullcontext() if self._mesh is None else use(self._mesh, AxisRules()):
                row = next(rows, None)
            if row is None:
                return
            yield row
