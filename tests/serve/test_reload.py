"""Who speaks with another step: the directory's personas as they are by then, with what was changed meanwhile."""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from abi_jax.errors import InputError
from abi_jax.model.directory import ModelDirectory
from abi_jax.persona import Persona
from abi_jax.serve import roster
from abi_jax.serve.reload import DirectoryReloader
from abi_jax.serve.voices import Voices
from tests.serve.process import write_tiny

THIRD = Persona("third", voice="Trained later.")


class Directory:
    """A model directory whose personas may be others by now."""

    def __init__(self, path: Path) -> None:
        self._made = ModelDirectory.open(path)
        self.config, self.tokenizer, self.personas = self._made.config, self._made.tokenizer, self._made.personas


def test_who_speaks_after_a_reload(tmp_path: Path) -> None:
    directory: Any = Directory(write_tiny(tmp_path / "model"))
    reloader = DirectoryReloader(directory, cast(Any, None), "float32")
    served = Voices.of(directory)
    assert reloader._voices(served) == served
    served = roster.put(roster.drop(served, "aviva"), Persona("abbey", voice="Changed."))
    served = roster.put(served, Persona("nova"), {"abbey": 0.5, "aviva": 0.5})
    assert reloader._voices(served) == served
    directory.personas = (*directory.personas, THIRD)
    fresh = reloader._voices(served)
    assert fresh.names == ("abbey", "third", "nova") and fresh.rows == ("abbey", "aviva", "third")
    assert fresh.personas[0].voice == "Changed." and fresh.personas[1] == THIRD
    assert fresh.blends == {"nova": {"abbey": 0.5, "aviva": 0.5}}
    assert fresh.tokenizer is served.tokenizer  # what was made of it is good still
    directory.personas = directory.personas[::-1]
    with pytest.raises(InputError, match="its personas are third, aviva, abbey; expected abbey, aviva, and new ones"):
        reloader._voices(served)


def test_instructions_are_the_directorys_too(tmp_path: Path) -> None:
    directory: Any = Directory(write_tiny(tmp_path / "model"))
    directory.config = replace(directory.config, persona=None)
    served = roster.put(Voices.of(directory), Persona("nova", voice="Speak as nova."))
    directory.personas = (THIRD,)
    assert DirectoryReloader(directory, cast(Any, None), "float32")._voices(served).names == ("third", "nova")
