"""Texts to vectors for the store, by a sentence encoder from a directory."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from abi_jax.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from abi_jax.wdbx import Collection, Database


class SentenceEncoder:
    """An encoder as the store wants it: a function of texts, with one of its own for questions."""

    def __init__(self, folder: Path) -> None:
        from abi_jax.model.encoder import load_encoder

        self.name = str(folder.expanduser().absolute())
        self._encoder = load_encoder(folder)
        self.dimension = self._encoder.dimension

    def __call__(self, texts: list[str]) -> "np.ndarray":
        """Vectors of texts that are stored, float32 `[n, dimension]`."""
        return self._encode(texts, "passage")

    def queries(self, texts: list[str]) -> "np.ndarray":
        """Vectors of texts that are searched for, float32 `[n, dimension]`."""
        return self._encode(texts, "query")

    def _encode(self, texts: list[str], prompt: str) -> "np.ndarray":
        return self._encoder.encode(texts, prompt=prompt if prompt in self._encoder.settings.prompts else None)


def add_encoder(parser: argparse.ArgumentParser) -> None:
    """`--encoder`: what makes vectors of texts."""
    parser.add_argument(
        "--encoder",
        type=Path,
        metavar="DIR",
        help="sentence-encoder directory (MiniLM, BGE, E5) that makes vectors of texts; the collection remembers it",
    )


def with_encoder(db: "Database", collection: "Collection", given: Path | None) -> "Collection":
    """The collection with the encoder that was given, or the one it remembers."""
    known = collection.spec.encoder
    folder = Path(known) if given is None and known else given
    if folder is None:
        return collection
    if not folder.expanduser().is_dir():
        hint = "" if given is not None else f"; collection {collection.name} was made with it, --encoder names another"
        raise InputError(f"encoder {str(folder)!r} is not there: expected a sentence-encoder directory{hint}")
    return db.collection(collection.name, encoder=SentenceEncoder(folder))
