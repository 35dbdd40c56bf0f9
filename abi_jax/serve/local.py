"""An engine in this process: a model directory that answers conversations, text in, text out."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from abi_jax.config import list_configs
from abi_jax.model.config import ModelConfig
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.generate import Generator, Prompt
from abi_jax.model.sampling import SamplingConfig
from abi_jax.persona import Persona, check_mixture, load_personas, reading_table
from abi_jax.persona import Sampling as PersonaSampling
from abi_jax.sharding.context import use
from abi_jax.sharding.rules import AxisRules
from abi_jax.text import TextStream, Tokenizer, render

Message = Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """One question.

    mixture: persona -> weight on the simplex, empty for the base model. Settings left as None are the
    leading persona's own.
    """

    messages: Sequence[Message]
    mixture: Mapping[str, float] = field(default_factory=dict)
    memory: Sequence[str] = ()
    policy: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """The text of an answer, why it ended ("stop" or "length") and how many tokens went in and out."""

    text: str
    finish: str
    prompt_tokens: int
    tokens: int


class LocalEngine:
    """Answers requests, several at a time, each with its own personas and settings.

    A model without a persona bank is given a persona's `voice` as its policy: an instruction, as any other
    runtime would, and what a trained bank is to be compared with.
    """

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
        self._mesh = mesh
        self._generator = Generator(config, params, dtype=dtype, stop_ids=tokenizer.eos_ids)

    @classmethod
    def open(cls, path: Path | str, *, mesh: Mesh | None = None, dtype: DTypeLike = jnp.float32) -> "LocalEngine":
        """Loads the newest checkpoint of a model directory; one that lists no personas is given all of `configs`."""
        directory = ModelDirectory.open(path)
        personas = directory.personas or load_personas(list(list_configs("persona")))
        params = directory.load_params(dtype=dtype, mesh=mesh)
        return cls(directory.config, params, directory.tokenizer, personas, mesh=mesh, dtype=dtype)

    @property
    def names(self) -> tuple[str, ...]:
        """The personas that can be asked for."""
        return tuple(p.name for p in self.personas)

    def prompt(self, request: Request) -> Prompt:
        """Renders a request to tokens. Raises `InputError` for an unknown persona or a mixture off the simplex."""
        mixture = {n: w for n, w in check_mixture(request.mixture, self.names).items() if w > 0}
        heard = [p for p in self.personas if p.name in mixture]
        instructions = [p.voice for p in heard if p.voice] if self.config.persona is None else []
        policy = "\n\n".join([*instructions, *filter(None, [request.policy])]) or None
        rendered = render(self.tokenizer, request.messages, request.memory, policy)
        settings = self.settings(request)
        sampling = SamplingConfig(
            settings.temperature,
            settings.top_k,
            settings.top_p,
            settings.min_p,
            settings.repetition_penalty,
            request.seed,
        )
        prompt = Prompt(rendered.tokens, rendered.roles, sampling=sampling)
        if not mixture:
            return prompt
        strict = [p for p in heard if p.strict_reading]
        reads, prompt_reads = (np.logical_and.reduce(reading_table(some), axis=0) for some in (heard, strict))
        prompt = replace(prompt, reads=reads, prompt_reads=prompt_reads)
        if self.config.persona is None:
            return prompt
        w = np.zeros(self.config.persona.capacity, np.float32)
        for name, weight in mixture.items():
            w[self.names.index(name)] = weight
        return replace(prompt, mixture=w, response_only=self.config.persona.response_only)

    def settings(self, request: Request) -> PersonaSampling:
        """The sampling settings of a request: its own, else its leading persona's."""
        base = PersonaSampling()
        if request.mixture:
            leading = max(request.mixture, key=lambda name: request.mixture[name])
            base = next((p.sampling for p in self.personas if p.name == leading), base)
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens")
        given = {name: getattr(request, name) for name in names if getattr(request, name) is not None}
        return replace(base, **given)

    def stream(self, request: Request) -> Iterator[str]:
        """Yields an answer's text in pieces of whole characters."""
        text = TextStream(self.tokenizer, request.stop)
        for row in self._tokens([self.prompt(request)], self.settings(request).max_tokens):
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
        limits = [self.settings(r).max_tokens for r in requests]
        texts, counts = [""] * len(requests), [0] * len(requests)
        ended = [False] * len(requests)
        prompts = [self.prompt(r) for r in requests]
        rooms = [self.config.max_length - len(p.tokens) for p in prompts]
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
