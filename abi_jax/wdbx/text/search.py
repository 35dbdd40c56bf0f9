"""Search by words, and by words and vectors, in a collection as it was at one version."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.search.plan import Plan
from abi_jax.wdbx.spec import DOCUMENT, CollectionSpec
from abi_jax.wdbx.text.bm25 import Bm25
from abi_jax.wdbx.text.fusion import Fusion, fuse
from abi_jax.wdbx.text.rank import PartWords, rank
from abi_jax.wdbx.text.words import words_of

if TYPE_CHECKING:
    from abi_jax.wdbx.hits import Hit
    from abi_jax.wdbx.view import View


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
    alive = view.alive()
    allowed = alive if where is None else view.allowed(where)
    named, words = text_fields(view.spec, fields), words_of(text)
    parts = [_parts(view, field, alive) for field in named]
    if view.told is not None:
        view.told.add(_plans(named, parts, words), 1)
    return view.hits(rank(parts, words, settings, allowed, top_k), top_k)[0]


def _plans(fields: Sequence[str], parts: Sequence[Sequence[PartWords]], words: Sequence[str]) -> list[tuple[int, Plan]]:
    """How each part is searched: rows are those that have any of the words."""
    why = f"{', '.join(dict.fromkeys(words)) or 'no word'} in {', '.join(fields)}"
    made = []
    for number, of_fields in enumerate(zip(*parts, strict=True)):
        having = [each.of(word)[0] for each in of_fields for word in words]
        rows = len(np.unique(np.concatenate([np.zeros(0, np.int32), *having])))
        made.append((number, Plan("keyword", rows, len(of_fields[0].alive), 0, why)))
    return made


def _parts(view: "View", field: str, alive: Sequence[np.ndarray]) -> list[PartWords]:
    """The words of a field in every segment, and in the tail."""
    pieces = [[(0, segment.postings(field))] for segment in view.segments]
    made = [PartWords(each, there) for each, there in zip(pieces, alive, strict=False)]
    return [*made, PartWords(view.tail.postings(field, view.count), alive[-1])]


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
    from abi_jax.wdbx.hits import Hit
    from abi_jax.wdbx.view import id_key

    known = {hit.id: hit for hit in (*near, *worded)}
    fused = fuse([[hit.id for hit in near], [hit.id for hit in worded]], fusion.k)
    order = sorted(fused, key=lambda id_: (-fused[id_], id_key(id_)))[:top_k]
    return [Hit(id_, fused[id_], known[id_].metadata, known[id_].document) for id_ in order]
