"""From rows that a search found to what is told of them: ids in order, metadata, texts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from abi_jax.wdbx.search.found import Found
from abi_jax.wdbx.spec import DOCUMENT


class Hit(NamedTuple):
    """What a query found.

    score: cosine or inner product, best when high, or squared distance, best when low; by words BM25, by both the sum
    of reciprocal ranks, best when high. document: the row's text, where the collection has texts.
    """

    id: str | int
    score: float
    metadata: dict[str, Any]
    document: str | None = None


class Named(NamedTuple):
    """The best rows of each query with their ids, `[B, W]`, int64 or text; of equal scores, the lower id first."""

    ids: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    counts: np.ndarray


OfRows = Callable[[int, np.ndarray], Any]  # of a part and of rows in it, one thing each


def named(found: Found, ids: OfRows, text: bool, top_k: int) -> Named:
    """The `top_k` best of each query, with their ids."""
    names = found.ids
    if names is None:
        names = np.zeros(found.rows.shape, object if text else np.int64)
        _fill(names, found, ids)
    if True in found.tied.tolist():
        _order_ties(found, names)
    if names.shape[1] <= top_k:
        return Named(names, found.rows, found.scores, found.counts)
    counts = np.minimum(found.counts, top_k)
    return Named(names[:, :top_k], found.rows[:, :top_k], found.scores[:, :top_k], counts)


def _order_ties(found: Found, names: np.ndarray) -> None:
    """Puts rows of one query that score the same in the order of their ids."""
    queries = np.flatnonzero(found.tied)
    mine, scores, rows = names[queries], found.scores[queries], found.rows[queries]
    level = np.zeros(mine.shape, np.int64)
    np.cumsum(scores[:, 1:] != scores[:, :-1], axis=1, out=level[:, 1:])
    level[~found.there[queries]] = mine.shape[1]
    if mine.dtype == np.int64:
        order = np.lexsort((mine, level), axis=1)
    else:
        order = np.tile(np.arange(mine.shape[1]), (len(queries), 1))
        for i, count in enumerate(found.counts[queries].tolist()):
            keys = list(zip(level[i, :count].tolist(), mine[i, :count].tolist(), strict=True))
            order[i, :count] = sorted(range(count), key=keys.__getitem__)
    names[queries], found.rows[queries] = (np.take_along_axis(each, order, axis=1) for each in (mine, rows))


def hits(found: Found, ids: OfRows, text: bool, metadata: OfRows | None, top_k: int) -> list[list[Hit]]:
    """The `top_k` best of each query, as they are told. metadata: dictionaries, if rows have any."""
    best = named(found, ids, text, top_k)
    every = zip(best.ids.tolist(), best.scores.tolist(), best.counts.tolist(), strict=True)
    if metadata is None:
        return [[Hit(id_, score, {}) for id_, score in zip(a[:n], b[:n], strict=True)] for a, b, n in every]
    about = np.empty(best.rows.shape, object)
    _fill(about, replace(found, rows=best.rows, counts=best.counts), metadata)
    return [
        [Hit(id_, score, each, each.pop(DOCUMENT, None)) for id_, score, each in zip(a[:n], b[:n], c[:n], strict=True)]
        for (a, b, n), c in zip(every, about.tolist(), strict=True)
    ]


def _fill(made: np.ndarray, found: Found, of_rows: OfRows) -> None:
    """Puts what there is of every row that was found in its place."""
    all_there = len(found.counts) and found.counts.min() == found.rows.shape[1]
    there = ... if all_there else found.there
    rows, part = found.rows[there].reshape(-1), found.only
    if part is not None:
        flat = _column(of_rows(part, rows), made.dtype)
    else:
        flat = np.empty(len(rows), made.dtype)
        parts = np.searchsorted(found.bases, rows, "right") - 1
        for part in set(parts.tolist()):
            at = parts == part
            flat[at] = _column(of_rows(part, rows[at] - found.bases[part]), made.dtype)
    made[there] = flat.reshape(found.rows.shape) if all_there else flat


def _column(values: Any, dtype: np.dtype) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    made = np.empty(len(values), dtype)
    made[:] = values
    return made
