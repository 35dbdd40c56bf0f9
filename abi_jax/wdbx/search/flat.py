"""Exact search over all rows: a matrix product finds candidates, exact scores decide.

A product in float32 is off by at most `D 2^-24 |q| |x|` (Higham, Accuracy and Stability of Numerical Algorithms, 3.1);
every row that could be among the best by that much is a candidate, so that the answer does not depend on how a product
is summed. That holds as long as float32 holds the products: where rows or queries are very short, they are float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from abi_jax.wdbx.search.exact import best_first, exact_scores
from abi_jax.wdbx.search.found import Best, Found, found_of

ROWS_AT_ONCE = 1 << 15
TINY = 2.0**-24
SMALL = 1e-12  # lengths whose products float32 may not hold


@dataclass(frozen=True)
class Part:
    """Rows that are searched together: vectors `[n, D]`, and which of them may be found, bool `[n]`."""

    vectors: np.ndarray
    norms: np.ndarray
    allowed: np.ndarray

    @cached_property
    def longest(self) -> float:
        """The largest norm, 0 where there are no rows."""
        return float(self.norms.max(initial=0))

    def product_dtype(self, metric: str, lengths: np.ndarray) -> type[np.floating]:
        """In what the rows are multiplied with queries of such lengths, float64 `[B]`."""
        some = self.norms if metric == "cosine" else np.append(lengths, self.longest)
        return np.float64 if ((some > 0) & (some < SMALL)).any() else np.float32


def row_norms(vectors: np.ndarray) -> np.ndarray:
    """Norms of rows, float32 `[n]`."""
    made = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        block = vectors[start : start + ROWS_AT_ONCE].astype(np.float64)  # squares of what is tiny are not 0 there
        made[start : start + ROWS_AT_ONCE] = np.sqrt(np.einsum("nd,nd->n", block, block))
    return made


@dataclass(frozen=True)
class _Near:
    """Rows of a part, what they score about, and by how much that may be off."""

    part: int
    rows: np.ndarray
    scores: np.ndarray
    margin: float


def search(parts: Sequence[Part], metric: str, queries: np.ndarray, top_k: int) -> Found:
    """The best rows of each query `[B, D]`, float32; those that tie with the last one are all there."""
    kept: list[list[_Near]] = [[] for _ in queries]
    lengths = np.sqrt(np.square(queries, dtype=np.float64).sum(axis=1))
    for number, part in enumerate(parts):
        margin = 2 * (queries.shape[1] + 3) * TINY * _scale(metric, lengths, part.longest)
        dtype = part.product_dtype(metric, lengths)
        for start in range(0, len(part.vectors), ROWS_AT_ONCE):
            rows = np.flatnonzero(part.allowed[start : start + ROWS_AT_ONCE]) + start
            if not len(rows):
                continue
            coarse = _coarse(metric, queries, part, rows, dtype)
            for q, scores in enumerate(coarse):
                near = np.arange(len(rows))
                if len(rows) > top_k:
                    floor = np.partition(scores, len(rows) - top_k)[len(rows) - top_k] - 2 * margin[q]
                    near = np.flatnonzero(scores >= floor)
                kept[q].append(_Near(number, rows[near], scores[near], margin[q]))
    best = [_decide(parts, metric, query, each, top_k) for query, each in zip(queries, kept, strict=True)]
    return found_of(best, [len(each.vectors) for each in parts])


def search_rows(parts: Sequence[Part], rows: Sequence[np.ndarray], metric: str, query: np.ndarray, top_k: int) -> Best:
    """The best of some rows of every part, for one query `[D]`."""
    length = np.sqrt(np.square(query, dtype=np.float64).sum(keepdims=True))
    kept = []
    for number, (part, some) in enumerate(zip(parts, rows, strict=True)):
        for start in range(0, len(some), ROWS_AT_ONCE):
            chosen = some[start : start + ROWS_AT_ONCE]
            margin = 2 * (len(query) + 3) * TINY * _scale(metric, length, part.longest)
            near = _coarse(metric, query[None], part, chosen, part.product_dtype(metric, length))[0]
            kept.append(_Near(number, chosen, near, float(margin[0])))
    return _decide(parts, metric, query, kept, top_k)


def _scale(metric: str, lengths: np.ndarray, longest: float) -> np.ndarray:
    """What errors are relative to."""
    if metric == "cosine":
        return np.full(len(lengths), 2.0)
    return np.square(lengths + longest) if metric == "l2" else lengths * longest


def _coarse(metric: str, queries: np.ndarray, part: Part, rows: np.ndarray, dtype: type[np.floating]) -> np.ndarray:
    """About what rows score, best when high, `[B, n]`. rows: ascending."""
    first, last = int(rows[0]), int(rows[-1]) + 1
    block = part.vectors[first:last] if last - first == len(rows) else part.vectors[rows]
    block, queries = np.asarray(block).astype(dtype, copy=False), queries.astype(dtype, copy=False)
    norms = part.norms[rows] if dtype is np.float32 else np.sqrt(np.einsum("nd,nd->n", block, block))
    if metric == "cosine":
        unit = queries / np.sqrt(np.square(queries, dtype=np.float64).sum(axis=1, keepdims=True))
        return np.asarray((unit.astype(dtype) @ block.T) / norms)
    products = queries @ block.T
    return np.asarray(products if metric == "ip" else 2 * products - np.square(norms))


def _decide(parts: Sequence[Part], metric: str, query: np.ndarray, kept: list[_Near], top_k: int) -> Best:
    if not kept:
        return Best(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    low = np.concatenate([each.scores - each.margin for each in kept])
    floor = np.partition(low, len(low) - top_k)[len(low) - top_k] if len(low) > top_k else -np.inf
    chosen = [(each.part, each.rows[each.scores + each.margin >= floor]) for each in kept]
    where = np.concatenate([np.full(len(rows), number) for number, rows in chosen])
    rows = np.concatenate([each for _, each in chosen])
    scores = np.concatenate([exact_scores(metric, query, parts[number].vectors[each]) for number, each in chosen])
    keys = best_first(metric, scores)
    order = np.argsort(keys, kind="stable")
    if len(order) > top_k:
        order = order[keys[order] <= keys[order[top_k - 1]]]
    return Best(where[order], rows[order], scores[order])
