"""Personas that come, change and go while a model is served. Weights stay as they are, so nothing is compiled anew.

Of a model with a persona bank a new persona is a blend of trained ones, with its own voice, settings and reading rules;
of any other model it is an instruction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from abi_jax.config import dump_yaml, load
from abi_jax.errors import InputError
from abi_jax.files import write_atomically
from abi_jax.persona import Persona, check_mixture
from abi_jax.serve.voices import Voices


@dataclass(frozen=True)
class Roster:
    """How who speaks differs from a model directory, as a file keeps it.

    personas: that came or changed. dropped: names of those that are gone; None in a file of an earlier build, whose
    `personas` are all that there were.
    """

    personas: tuple[Persona, ...] = ()
    blends: dict[str, dict[str, float]] = field(default_factory=dict)
    dropped: tuple[str, ...] | None = None


def put(voices: Voices, persona: Persona, like: Mapping[str, float] | None = None) -> Voices:
    """The voices with a persona, in the place of the one of its name if there is one.

    like: the trained personas that it is a blend of. Raises `InputError` where it cannot speak.
    """
    banked, rows = voices.config.persona is not None, voices.rows
    if not banked and like is not None:
        raise InputError("like: this model has no trained personas to blend; expected a voice alone")
    if not banked and not persona.voice.strip():
        raise InputError(f"voice of persona {persona.name!r} is empty, and this model's personas are nothing else")
    if banked and persona.name in rows and like is not None:
        raise InputError(f"persona {persona.name!r} is trained: expected no `like`")
    if banked and persona.name not in rows and not like:
        raise InputError(f"persona {persona.name!r} is not trained: expected `like`, weights of {', '.join(rows)}")
    blends = {name: mixture for name, mixture in voices.blends.items() if name != persona.name}
    if like:
        blends[persona.name] = check_mixture(like, rows)
    others = [p for p in voices.personas if p.name != persona.name]
    at = next((i for i, p in enumerate(voices.personas) if p.name == persona.name), len(others))
    return replace(voices, personas=(*others[:at], persona, *others[at:]), given=voices.first, blends=blends)


def drop(voices: Voices, name: str) -> Voices:
    """The voices without a persona."""
    personas = tuple(p for p in voices.personas if p.name != name)
    blends = {key: mixture for key, mixture in voices.blends.items() if key != name}
    return replace(voices, personas=personas, given=voices.first, blends=blends)


def changes(voices: Voices) -> Roster:
    """How the voices differ from those of their directory."""
    first = {persona.name: persona for persona in voices.first}
    changed = tuple(persona for persona in voices.personas if first.get(persona.name) != persona)
    blends = {name: dict(mixture) for name, mixture in voices.blends.items()}
    return Roster(changed, blends, tuple(name for name in first if name not in voices.names))


def apply(kept: Roster, voices: Voices) -> Voices:
    """The voices of a directory, which may have others by now, with what was changed since.

    Raises `InputError` for personas that this model has not.
    """
    for name in _dropped(kept, voices):
        voices = drop(voices, name)
    for persona in kept.personas:
        voices = put(voices, persona, kept.blends.get(persona.name))
    return voices


def save(voices: Voices, path: Path) -> None:
    """Writes what was changed into a file."""
    write_atomically(path, dump_yaml(changes(voices)))


def restore(voices: Voices, path: Path) -> Voices:
    """The voices of a directory with what `save` wrote, as they are where there is no such file.

    Raises `InputError` for personas that this model has not.
    """
    return apply(load(Roster, path, env={}), voices) if path.exists() else voices


def _dropped(kept: Roster, voices: Voices) -> tuple[str, ...]:
    if kept.dropped is not None:
        return kept.dropped
    there = [persona.name for persona in kept.personas]
    known = max((at for at, name in enumerate(voices.rows) if name in there), default=len(voices.rows))
    return tuple(name for name in voices.rows[:known] if name not in there)  # those after may be new
