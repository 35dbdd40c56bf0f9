"""Search by words, and by words and vectors, in a collection as it was at one version."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.search.flat import Found
from abi_jax.wdbx.spec import DOCUMENT, CollectionSpec
from abi_jax.wdbx.text.bm25 import Bm25, Piece, scores
from abi_jax.wdbx.text.fusion import Fusion, fuse
from abi_jax.wdbx.text.words import words_of

if TYPE_CHECKING:
    from abi_jax.wdbx.view import Hit, View


def keyword_search(
    view: "View",
    text: str,
    top_k: int,
    where: Mapping[str, Any] | None,
    fields: Sequence[str] | None,
    settings: Bm25,
) -> list["Hit"]:
    """The `top_k` rows that score best for the words of a text; rows with none of them are not found."""
    if not isinstance(text, str):
        raise InputError(f"text {text!r:.60}: expected a string")
    words = words_of(text)
    alive, allowed = view.alive(), view.allowed(where)
    totals = [np.zeros(len(each)) for each in alive]
    for field in text_fields(view.spec, fields):
        pieces = list(_pieces(view, field, alive))
        found = scores([piece for _, _, piece in pieces], words, settings)
        for (part, start, _), (having, values) in zip(pieces, found, strict=True):
            totals[part][having + start] += values
    rows = [np.flatnonzero((each > 0) & passed) for each, passed in zip(totals, allowed, strict=True)]
    parts = np.concatenate([np.full(len(each), part) for part, each in enumerate(rows)])
    scored = np.concatenate([each[some] for each, some in zip(totals, rows, strict=True)])
    return view.hits(_best(parts, np.concatenate(rows), scored, top_k), top_k, "ip")


def _pieces(view: "View", field: str, alive: list[np.ndarray]) -> Iterator[tuple[int, int, Piece]]:
    """Postings of all rows of a view: part, first row in it, and the piece."""
    for part, segment in enumerate(view.segments):
        yield part, 0, Piece(segment.postings(field), alive[part])
    last = len(view.segments)
    for start, postings in view.tail.postings(field, view.count):
        there = alive[last][start : start + len(postings.lengths)]
        yield last, start, Piece(postings, np.pad(there, (0, len(postings.lengths) - len(there))))


def _best(parts: np.ndarray, rows: np.ndarray, values: np.ndarray, top_k: int) -> Found:
    """The best, and those that tie with the last of them."""
    if len(values) > top_k:
        kept = values >= np.partition(values, len(values) - top_k)[len(values) - top_k]
        parts, rows, values = parts[kept], rows[kept], values[kept]
    return Found(parts, rows, values)


def text_fields(spec: CollectionSpec, fields: Sequence[str] | None) -> list[str]:
    """Fields that words are looked for in: those named, or `document`, or the only text there is."""
    known = [name for name, kind in spec.schema if kind == "str"]
    if fields is None:
        if DOCUMENT in known:
            return [DOCUMENT]
        if len(known) == 1:
            return known
        has = ", ".join(known) or "none"
        raise InputError(f"collection {spec.name} has no documents; expected fields=[...] of its texts: {has}")
    listed = [fields] if isinstance(fields, str) else list(fields)
    for field in listed:
        if field not in known:
            raise InputError(f"field {field!r}: collection {spec.name} has the texts {', '.join(known) or 'none'}")
    if not listed:
        raise InputError("fields is empty; expected at least one field of type str")
    return list(dict.fromkeys(listed))


def fused_hits(near: Sequence["Hit"], worded: Sequence["Hit"], top_k: int, fusion: Fusion) -> list["Hit"]:
    """The `top_k` best of two lists of hits by reciprocal ranks; of equal scores, the lower id first."""
    from abi_jax.wdbx.view import Hit, id_key

    known = {hit.id: hit for hit in (*near, *worded)}
    fused = fuse([[hit.id for hit in near], [hit.id for hit in worded]], fusion.k)
    order = sorted(fused, key=lambda id_: (-fused[id_], id_key(id_)))[:top_k]
    return [Hit(id_, fused[id_], known[id_].metadata, known[id_].document) for id_ in order]
