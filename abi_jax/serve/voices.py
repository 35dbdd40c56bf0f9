"""Who can speak, and a question as the tokens that a model is asked with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from abi_jax.config import list_configs
from abi_jax.errors import InputError
from abi_jax.model.config import ModelConfig
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.generate import Prompt
from abi_jax.model.sampling import SamplingConfig
from abi_jax.persona import BASE, Persona, check_mixture, load_personas, reading_table
from abi_jax.persona import Sampling as PersonaSampling
from abi_jax.text import Tokenizer, render
from abi_jax.text.roles import Role

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
class Voices:
    """The personas of a model.

    given: those of its directory, by row of its persona axis where it has one; None: `personas` are. blends: personas
    that have no row of their own, each a mixture of those that have. A model without a persona bank is given a
    persona's `voice` as its policy: an instruction, as any other runtime would, and what a trained bank is to be
    compared with.
    """

    config: ModelConfig
    tokenizer: Tokenizer
    personas: tuple[Persona, ...] = ()
    given: tuple[Persona, ...] | None = None
    blends: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: ModelDirectory) -> "Voices":
        """Those of a model directory; one that lists no personas is given all of `configs`."""
        personas = directory.personas or load_personas(list(list_configs("persona")))
        return cls(directory.config, directory.tokenizer, tuple(personas))

    @property
    def names(self) -> tuple[str, ...]:
        """The personas that can be asked for."""
        return tuple(p.name for p in self.personas)

    @property
    def first(self) -> tuple[Persona, ...]:
        """The personas as the directory has them, whatever came since."""
        return self.personas if self.given is None else self.given

    @property
    def rows(self) -> tuple[str, ...]:
        """The personas of the persona axis, in its order; those that are gone keep their place."""
        return tuple(p.name for p in self.first)

    def prompt(self, request: Request) -> Prompt:
        """Renders a request to tokens. Raises `InputError` for an unknown persona or a mixture off the simplex."""
        heard = self._heard(request.mixture)
        instructions = [p.voice for p in heard if p.voice] if self.config.persona is None else []
        policy = "\n\n".join([*instructions, *filter(None, [request.policy])]) or None
        rendered = render(self.tokenizer, request.messages, request.memory, policy)
        return self._spoken(rendered.tokens, rendered.roles, request, heard)

    def continuation(self, tokens: np.ndarray, request: Request) -> Prompt:
        """A bare text, as int32 `[n]`, to be gone on with; the request's messages, memory and policy are left out.

        Raises `InputError` as `prompt` does, and for a persona that is nothing but an instruction, since there is no
        place for one.
        """
        heard = self._heard(request.mixture)
        if heard and self.config.persona is None:
            raise InputError(
                f"persona {heard[0].name!r} of this model is an instruction, which a bare text has no place for; "
                f"expected {BASE!r}, or a conversation"
            )
        return self._spoken(tokens, np.full(len(tokens), Role.INPUT, np.int32), request, heard)

    def _heard(self, mixture: Mapping[str, float]) -> list[Persona]:
        wanted = {n for n, w in check_mixture(mixture, self.names).items() if w > 0}
        return [p for p in self.personas if p.name in wanted]

    def _spoken(self, tokens: np.ndarray, roles: np.ndarray, request: Request, heard: Sequence[Persona]) -> Prompt:
        settings = self.settings(request)
        sampling = SamplingConfig(
            settings.temperature,
            settings.top_k,
            settings.top_p,
            settings.min_p,
            settings.repetition_penalty,
            request.seed,
        )
        prompt = Prompt(tokens, roles, sampling=sampling)
        if not heard:
            return prompt
        strict = [p for p in heard if p.strict_reading]
        reads, prompt_reads = (np.logical_and.reduce(reading_table(some), axis=0) for some in (heard, strict))
        prompt = replace(prompt, reads=reads, prompt_reads=prompt_reads)
        if self.config.persona is None:
            return prompt
        w = np.zeros(self.config.persona.capacity, np.float32)
        for persona in heard:
            weight = request.mixture[persona.name]
            for name, part in self.blends.get(persona.name, {persona.name: 1.0}).items():
                w[self.rows.index(name)] += weight * part
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
