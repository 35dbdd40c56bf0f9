"""Exact search: codes on the device say which blocks of rows are worth a look, exact scores decide.

Rows without codes (few, or just written) are looked at one and all. The answer is that of `flat.search` over all rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from abi_jax.wdbx.search import flat
from abi_jax.wdbx.search.codes import BLOCK, LANES, Chunk, Codes, QueryCodes, block_maxima, encode_queries
from abi_jax.wdbx.search.flat import Found, Part

MOST_BLOCKS = 0.25  # of all blocks: where more are worth a look, a scan of all rows is quicker


@dataclass(frozen=True)
class CodedPart:
    """A part and its codes; None where it has none."""

    part: Part
    codes: Codes | None


def search(parts: Sequence[CodedPart], metric: str, queries: np.ndarray, top_k: int) -> list[Found]:
    """The best rows of each query `[B, D]`, float32; rows that tie with the last one are all there."""
    coded = [each for each in parts if each.codes is not None and each.part.allowed.any()]
    if not coded:
        return flat.search([each.part for each in parts], metric, queries, top_k)
    encoded = encode_queries(metric, queries)
    maxima = [_maxima(each, encoded)[: len(queries)] for each in coded]
    margins = [each.codes.margin(encoded) for each in coded if each.codes is not None]
    found = []
    for q, query in enumerate(queries):
        near = _near([each[q] for each in maxima], [each[q] for each in margins], top_k)
        found.append(_look(parts, coded, near, metric, query, top_k))
    return found


def _maxima(coded: CodedPart, queries: QueryCodes) -> np.ndarray:
    """The largest score in every block, float32 `[B or more, blocks]`."""
    assert coded.codes is not None
    rows = []
    for parts, scales in zip(queries.parts, queries.scales, strict=True):
        made = [
            block_maxima(chunk.codes, chunk.scale, _offset(chunk, coded.part), parts, scales, queries.per_query)
            for chunk in coded.codes.chunks
        ]
        rows.append(np.concatenate([np.asarray(each) for each in made], axis=1))
    assert rows[0].shape[0] == LANES // queries.per_query
    return np.concatenate(rows)


def _offset(chunk: Chunk, part: Part) -> np.ndarray:
    allowed = part.allowed[chunk.start : chunk.start + chunk.rows]
    if allowed.all():
        return chunk.offset
    made = chunk.offset.copy()
    made[: chunk.rows][~allowed] = -np.inf
    return made


def _near(maxima: list[np.ndarray], margins: list[float], top_k: int) -> list[np.ndarray]:
    """Of every coded part the blocks that may hold one of the best `top_k` rows.

    Every block has a row that scores at least its maximum less the margin: the `top_k` best of these are a bound from
    below, and a block is left out only if all it may score is less.
    """
    low = np.concatenate([each - margin for each, margin in zip(maxima, margins, strict=True)])
    floor = np.partition(low, len(low) - top_k)[len(low) - top_k] if len(low) > top_k else -np.inf
    return [
        np.flatnonzero((each > -np.inf) & (each + margin >= floor))
        for each, margin in zip(maxima, margins, strict=True)
    ]


def _look(
    parts: Sequence[CodedPart],
    coded: Sequence[CodedPart],
    near: Sequence[np.ndarray],
    metric: str,
    query: np.ndarray,
    top_k: int,
) -> Found:
    """Exact search over the rows of blocks, and over parts without codes."""
    blocks = dict(zip(map(id, coded), near, strict=True))
    looked = []
    for each in parts:
        allowed = each.part.allowed
        rows = np.flatnonzero(allowed) if each.codes is None else _rows(blocks.get(id(each)), allowed)
        looked.append(rows)
    return flat.search_rows([each.part for each in parts], looked, metric, query, top_k)


def _rows(blocks: np.ndarray | None, allowed: np.ndarray) -> np.ndarray:
    if blocks is None or not len(blocks):
        return np.zeros(0, np.int64)
    rows = (blocks[:, None] * BLOCK + np.arange(BLOCK)).reshape(-1)
    rows = rows[rows < len(allowed)]
    return rows[allowed[rows]]
