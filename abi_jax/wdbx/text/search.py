"""Search by words, and by words and vectors, in a collection as it was at one version."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.search.flat import Found
from abi_jax.wdbx.spec import DOCUMENT, CollectionSpec
from abi_jax.wdbx.text.bm25 import Bm25, Piece, add_scores
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
    words, alive = words_of(text), view.alive()
    totals = [np.zeros(len(each)) for each in alive]
    for field in text_fields(view.spec, fields):
        totals[-1] = _add(view, field, words, settings, alive, totals)
    allowed = alive if where is None else view.allowed(where)
    rows = [np.flatnonzero(each) for each in totals]
    rows = [each[passed[each]] for each, passed in zip(rows, allowed, strict=True)]
    parts = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    scored = np.concatenate([each[some] for each, some in zip(totals, rows, strict=True)])
    return view.hits(_best(parts, np.concatenate(rows), scored, top_k), top_k, "ip")


def _add(
    view: "View",
    field: str,
    words: Sequence[str],
    settings: Bm25,
    alive: Sequence[np.ndarray],
    totals: Sequence[np.ndarray],
) -> np.ndarray:
    """Adds what rows score in a field to `totals`; returns the total of the tail, whose pieces may go beyond it."""
    pieces = [
        Piece(segment.postings(field), each, total)
        for segment, each, total in zip(view.segments, alive, totals, strict=False)
    ]
    grown = view.tail.postings(field, view.count)
    beyond = max([0, *(start + len(postings.lengths) - view.count for start, postings in grown)])
    there, total = np.pad(alive[-1], (0, beyond)), np.pad(totals[-1], (0, beyond))
    for start, postings in grown:
        part = slice(start, start + len(postings.lengths))
        pieces.append(Piece(postings, there[part], total[part]))
    add_scores(pieces, words, settings)
    return total[: view.count]


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
