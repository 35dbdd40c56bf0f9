"""A question as it is asked: a vector, a text, or both; by nearness, by words, or by both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.encoder import Encoder, encode
from abi_jax.wdbx.given import check_top_k
from abi_jax.wdbx.hits import Hit
from abi_jax.wdbx.text.bm25 import Bm25
from abi_jax.wdbx.text.fusion import Fusion
from abi_jax.wdbx.text.search import fused_hits, text_fields
from abi_jax.wdbx.view import View

QUERY_MODES = ("vector", "keyword", "hybrid")


@dataclass(frozen=True)
class Words:
    """How words are looked for. fields: of type str, `document` where none is named."""

    fields: Sequence[str] | None = None
    bm25: Bm25 = Bm25()
    fusion: Fusion = Fusion()


PLAIN = Words()


def ask(
    view: View,
    encoder: Encoder | None,
    asked: Any,
    text: str | Sequence[str] | None,
    top_k: int,
    where: Mapping[str, Any] | None,
    mode: str,
    words: Words,
) -> list[Hit] | list[list[Hit]]:
    """Answers one question, or a list of them with a list of answers.

    asked: a vector `[dim]`, several `[B, dim]`, a text or a list of texts. text: words beside vectors; in their place,
    what an encoder makes vectors of.
    """
    top_k = check_top_k(top_k)
    if mode not in QUERY_MODES:
        raise InputError(f"mode {mode!r}: expected one of {', '.join(QUERY_MODES)}")
    if _is_text(asked):
        if text is not None:
            raise InputError(f"query {asked!r:.60} and text {text!r:.60} are both texts; expected one of them")
        asked, text = None, asked
    if asked is None and text is None:
        raise InputError("nothing is asked for; expected a vector or a text")
    texts = [text] if isinstance(text, str) else None if text is None else list(text)
    vectors = None if asked is None else np.asarray(asked)
    one = isinstance(text, str) if vectors is None else vectors.ndim == 1
    if vectors is not None and vectors.ndim == 1:
        vectors = vectors[None]
    if texts is not None and vectors is not None and len(texts) != len(vectors):
        raise InputError(f"{len(vectors)} vectors and {len(texts)} texts; expected as many of one as of the other")
    answers = _answers(view, encoder, vectors, texts, top_k, where, mode, words)
    return answers[0] if one else answers


def _is_text(asked: Any) -> bool:
    return isinstance(asked, str) or (isinstance(asked, list | tuple) and bool(asked) and isinstance(asked[0], str))


def _answers(
    view: View,
    encoder: Encoder | None,
    vectors: np.ndarray | None,
    texts: list[str] | None,
    top_k: int,
    where: Mapping[str, Any] | None,
    mode: str,
    words: Words,
) -> list[list[Hit]]:
    if mode != "vector":
        if texts is None:
            raise InputError(f"mode {mode!r} looks for words; expected text=...")
        text_fields(view.spec, words.fields)
    if mode == "keyword":
        return [view.keyword(each, top_k, where, words.fields, words.bm25) for each in texts or ()]
    if vectors is None:
        vectors = encode(encoder, view.spec, texts or (), query=True)
    if mode == "vector":
        return view.search(vectors, top_k, where)
    depth = max(top_k, words.fusion.depth)
    near = view.search(vectors, depth, where)
    worded = [view.keyword(each, depth, where, words.fields, words.bm25) for each in texts or ()]
    return [fused_hits(a, b, top_k, words.fusion) for a, b in zip(near, worded, strict=True)]
