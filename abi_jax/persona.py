"""Personas: who may speak, in what voice, reading what.

A persona here is what people edit (`configs/persona/*.yaml`); its parameters live in the model. The
order of a list of personas is the order of the persona axis `[P]` everywhere: adding one appends.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from abi_jax.config import dump_yaml, find_config, load
from abi_jax.config_build import nearest
from abi_jax.errors import InputError
from abi_jax.text.roles import NUM_ROLES, READABLE, Role

BASE = "base"
SIMPLEX_TOLERANCE = 1e-6
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Sampling:
    """How a persona's words are drawn unless a request says otherwise.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 are off. max_tokens: the longest answer,
    None for all that the context has left.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 100.0)
        _within("top_p", self.top_p, 0.0, 1.0, above=True)
        _within("top_k", self.top_k, 0, 2**31 - 1)
        _within("min_p", self.min_p, 0.0, 1.0, below=True)
        _within("repetition_penalty", self.repetition_penalty, 0.0, 100.0, above=True)
        if self.max_tokens is not None:
            _within("max_tokens", self.max_tokens, 1, 2**31 - 1)

    def limit(self, left: int) -> int:
        """How many tokens an answer may have where the context has `left`; it may not have that many."""
        return left if self.max_tokens is None else self.max_tokens


@dataclass(frozen=True)
class Persona:
    """One voice.

    voice: the instruction that a model without trained personas is given as its policy.
    reads: the roles its answer may attend to. strict_reading: the rule binds the prompt's own
    positions too, which costs the prompt cache it would otherwise share with other personas.
    loss_weights: aspect -> weight of training examples of that aspect; aspects not named weigh 1.
    """

    name: str
    title: str = ""
    voice: str = ""
    description: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    reads: tuple[str, ...] = READABLE
    strict_reading: bool = False
    loss_weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == BASE:
            raise InputError(
                f"name = {self.name!r}; expected lower-case letters, digits, '-' and '_', and not {BASE!r}"
            )
        for role in self.reads:
            if role not in READABLE:
                raise InputError(f"reads names {role!r}{_hint(role, READABLE)}; expected some of {', '.join(READABLE)}")
        if "response" not in self.reads:
            raise InputError(f"reads = {list(self.reads)}; expected 'response' among them, or the answer sees nothing")
        for aspect, weight in self.loss_weights.items():
            _within(f"loss_weights.{aspect}", weight, 0.0, 1e6)


@dataclass(frozen=True)
class PersonaSet:
    """Personas in the order of the persona axis, as a checkpoint keeps them."""

    personas: tuple[Persona, ...]

    def __post_init__(self) -> None:
        _check_names([p.name for p in self.personas])


def load_personas(names: Sequence[str]) -> tuple[Persona, ...]:
    """Reads personas by name from `configs/persona`, or from the paths of YAML files, in the given order.

    Raises `InputError` for a name that is not found or given twice, and for what does not fit in a file.
    """
    personas = tuple(load(Persona, find_config(name, "persona"), env={}) for name in names)
    _check_names([p.name for p in personas])
    return personas


def dump_personas(personas: Sequence[Persona]) -> str:
    """Returns personas, in order, as the YAML that `read_personas` reads."""
    return dump_yaml(PersonaSet(tuple(personas)))


def read_personas(path: Path) -> tuple[Persona, ...]:
    """Reads a file of what `dump_personas` returns."""
    return load(PersonaSet, path, env={}).personas


def parse_mixture(text: str | None, names: Sequence[str]) -> dict[str, float]:
    """Reads `abbey=0.6,aviva=0.4`, or one name for all of it; empty, None or `base` is the base model: {}.

    Raises `InputError` for an unknown persona (naming the nearest), a weight that is not a number
    or is negative, a name given twice, and weights that do not sum to 1.
    """
    text = (text or "").strip()
    if text in ("", BASE):
        return {}
    mixture: dict[str, float] = {}
    for part in text.split(","):
        name, equals, weight = (s.strip() for s in part.partition("="))
        if name in mixture:
            raise InputError(f"mixture {text!r} names {name!r} twice; expected each persona once")
        try:
            mixture[name] = float(weight) if equals else 1.0
        except ValueError:
            raise InputError(f"mixture {text!r}: weight of {name!r} is {weight!r}; expected a number") from None
    return check_mixture(mixture, names)


def check_mixture(mixture: Mapping[str, float], names: Sequence[str] | None) -> dict[str, float]:
    """Returns `mixture` if it is on the simplex over `names` (any names when None); {} is the base model."""
    for name, weight in mixture.items():
        if names is not None and name not in names:
            raise InputError(f"unknown persona {name!r}{_hint(name, names)}; known: {', '.join(names) or 'none'}")
        if not math.isfinite(weight) or weight < 0:
            raise InputError(f"weight of persona {name!r} is {weight}; expected a number from 0 to 1")
    total = math.fsum(mixture.values())
    if mixture and abs(total - 1.0) > SIMPLEX_TOLERANCE:
        shown = ",".join(f"{n}={w:g}" for n, w in mixture.items())
        raise InputError(f"weights of mixture {shown!r} sum to {total:g}; expected 1")
    return dict(mixture)


def mixture_name(mixture: Mapping[str, float]) -> str:
    """Writes what `parse_mixture` reads."""
    if not mixture:
        return BASE
    whole = [name for name, weight in mixture.items() if weight == 1.0]
    return whole[0] if whole else ",".join(f"{name}={weight:g}" for name, weight in mixture.items())


def mixture_vector(mixture: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
    """Returns the mixture as `[P]` float32 in the order of `names`; zeros for the base model."""
    checked = check_mixture(mixture, names)
    return np.array([checked.get(name, 0.0) for name in names], np.float32)


def reading_table(personas: Sequence[Persona]) -> np.ndarray:
    """Returns `[P, R]` bool: may persona p read tokens of role r.

    A mixture may read what every persona in it may read. Padding, which nothing sees anyway, is allowed: rules
    that forbid no other role are then all true, and cost nothing.
    """
    table = np.zeros((len(personas), NUM_ROLES), bool)
    table[:, Role.PADDING] = True
    for at, persona in enumerate(personas):
        for role in persona.reads:
            table[at, Role[role.upper()]] = True
    return table


def strict_table(personas: Sequence[Persona]) -> np.ndarray:
    """Returns `[P]` bool: does the reading rule bind the prompt's own positions too."""
    return np.array([p.strict_reading for p in personas], bool)


def loss_weight(personas: Sequence[Persona], mixture: Mapping[str, float], aspect: str | None) -> float:
    """Returns the training weight of an example: its personas' weights for the aspect, in their proportions."""
    if aspect is None or not mixture:
        return 1.0
    by_name = {p.name: p for p in personas}
    return math.fsum(w * by_name[n].loss_weights.get(aspect, 1.0) for n, w in mixture.items() if n in by_name)


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise InputError(f"personas {', '.join(names)}: {', '.join(twice)} given twice; expected each once")


def _hint(name: str, known: Sequence[str]) -> str:
    near = nearest(name, known)
    return f" (nearest: {near!r})" if near else ""


def _within(name: str, value: float, low: float, high: float, above: bool = False, below: bool = False) -> None:
    if not low <= value <= high or (above and value == low) or (below and value == high):
        start, end = "above" if above else "from", "to below" if below else "up to"
        raise InputError(f"{name} = {value}; expected a number {start} {low:g} {end} {high:g}")
