"""Texts to vectors for the store, by a sentence encoder from a directory."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from abi_jax.errors import InputError

if TYPE_CHECKING:
    from abi_jax.serve.embedder import SentenceEncoder
    from abi_jax.wdbx import Collection, Database


def open_encoder(folder: Path) -> "SentenceEncoder":
    """The encoder of a directory."""
    from abi_jax.serve.embedder import SentenceEncoder  # imported where it is asked for, since it takes a while

    return SentenceEncoder(folder)


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
    return db.collection(collection.name, encoder=open_encoder(folder))
