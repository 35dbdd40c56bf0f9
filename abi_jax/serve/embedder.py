"""Vectors of texts: for those that ask over the network, and for the vector store."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from abi_jax.model.encoder import load_encoder


class Embedder(Protocol):
    """What makes vectors of texts."""

    model: str
    dimension: int

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Vectors f32 `[len(texts), dimension]`, and how many tokens were read. Any thread may call it."""


class SentenceEncoder:
    """An encoder of a directory: an `Embedder`, and a function of texts as the store wants it (`wdbx.encoder`).

    name: the directory, which a store remembers; model: its last part, which is told to others.
    """

    def __init__(self, folder: Path | str) -> None:
        """Raises `InputError` naming what cannot be used."""
        place = Path(folder).expanduser().absolute()
        self.name, self.model = str(place), place.name
        self._encoder = load_encoder(place)
        self.dimension = self._encoder.dimension

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Vectors of texts that are stored, float32 `[n, dimension]`."""
        return self._encode(texts, "passage")

    def queries(self, texts: list[str]) -> np.ndarray:
        """Vectors of texts that are searched for, float32 `[n, dimension]`."""
        return self._encode(texts, "query")

    def embed(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """See `Embedder`. As the texts are: who wants a prefix writes it."""
        return self._encoder.encode(texts), self._encoder.count(texts)

    def _encode(self, texts: list[str], prompt: str) -> np.ndarray:
        return self._encoder.encode(texts, prompt=prompt if prompt in self._encoder.settings.prompts else None)
