"""Text in: what makes vectors of texts. It is handed in from outside; this package knows no model.

An encoder is any function from texts to vectors. Where it has an attribute `queries`, that function is used for what is
searched for (encoders such as E5 tell the two apart).
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.spec import CollectionSpec

Encoder = Callable[[list[str]], Any]  # texts -> float32 [n, dim]


def encode(encoder: Encoder | None, spec: CollectionSpec, texts: Sequence[Any], query: bool = False) -> np.ndarray:
    """Vectors of texts, float32 `[n, dim]`. Raises `InputError` without an encoder, or where it makes other vectors."""
    listed = list(texts)
    if encoder is None:
        where = f" (it was made with {spec.encoder})" if spec.encoder else ""
        raise InputError(
            f"{'query' if query else 'document'} {_short(listed)} is a text, and collection {spec.name} has no encoder "
            f"at hand to make a vector of it{where}; expected a vector of {spec.dim} numbers, or encoder=..."
        )
    for at, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputError(f"text {at} is {text!r:.60}; expected a string")
    if not listed:
        return np.zeros((0, spec.dim), np.float32)
    made = np.asarray((getattr(encoder, "queries", encoder) if query else encoder)(listed))
    if made.shape != (len(listed), spec.dim):
        raise InputError(
            f"the encoder made vectors of shape {made.shape} of {len(listed)} texts; collection {spec.name} has "
            f"dimension {spec.dim}: expected {(len(listed), spec.dim)}"
        )
    return made


def dimension(encoder: Encoder | None) -> int | None:
    """Numbers in a vector: what the encoder's `dimension` says, or what it makes."""
    if encoder is None:
        return None
    said = getattr(encoder, "dimension", None)
    return int(np.asarray(encoder(["dimension"])).shape[-1]) if said is None else int(said)


def _short(texts: Sequence[Any]) -> str:
    return f"{texts[0]!r:.60}" if texts else "''"
