"""Rows as int8 on the device: a scan of a quarter of the bytes, whose error is known, finds the blocks worth a look.

A row x is s c + r with c int8; a query is q = t1 h + t2 l + r', h and l int8 (l only where it is free). Then

    |q.x - (t1 h + t2 l).(s c)| <= |r'| |x| + |q - r'| |r|

so that a block of rows can be left out for certain when the largest product in it is too low by more than that. What is
found is exact; the code only says where to look.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

BLOCK = 64  # rows that are looked at together
LADDER = (1 << 18, 1 << 16, 1 << 14, 1 << 12)  # rows of a program: few shapes, all compiled once
LANES = 8  # queries of a program: what int8 products of a CPU are made for
LARGEST = 127.0
TINY = 2.0**-24


@dataclass(frozen=True)
class Chunk:
    """Codes of `rows` rows from `start` on, padded: int8 `[n, D]`, and `scale`, `offset` float32 `[n]`."""

    start: int
    rows: int
    codes: jax.Array
    scale: jax.Array
    offset: np.ndarray


@dataclass(frozen=True)
class Codes:
    """Codes of all rows of a segment. residual, longest: the largest `|r|` and `|x|`, over `|x|` under cosine."""

    metric: str
    chunks: tuple[Chunk, ...]
    residual: float
    longest: float

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(chunk.codes.nbytes + chunk.scale.nbytes for chunk in self.chunks)

    def margin(self, queries: "QueryCodes") -> np.ndarray:
        """By how much a score may be off, float64 `[B]`."""
        dim = queries.parts.shape[-1]
        found = queries.residuals * self.longest + queries.lengths * (self.residual + TINY * dim * self.longest)
        return found * 2 if self.metric == "l2" else found


def sizes(rows: int) -> list[int]:
    """Of what programs a scan of `rows` rows is made, largest first."""
    made = []
    for size in LADDER:
        count, rows = divmod(rows, size)
        made += [size] * count
    return [*made, LADDER[-1]] if rows else made


def encode(metric: str, vectors: np.ndarray, norms: np.ndarray) -> Codes:
    """Codes of `vectors` `[n, D]`, whose norms are known."""
    chunks = []
    start, residual, longest = 0, 0.0, 0.0
    for size in sizes(len(vectors)):
        block = np.asarray(vectors[start : start + size]).astype(np.float32, copy=False)
        norm = norms[start : start + size]
        top = np.abs(block).max(axis=1)
        scale = np.where(top > 0, top / LARGEST, 1).astype(np.float32)
        codes = np.zeros((size, block.shape[1]), np.int8)
        codes[: len(block)] = np.rint(block / scale[:, None])
        left = np.sqrt(np.square(block - codes[: len(block)] * scale[:, None]).sum(axis=1, dtype=np.float64))
        unit = norm if metric == "cosine" else np.ones_like(norm)
        residual = max(residual, float((left / unit).max()))
        longest = max(longest, float((norm / unit).max()))
        padded = np.zeros(size, np.float32)
        padded[: len(block)] = scale / unit * (2 if metric == "l2" else 1)
        offset = np.full(size, -np.inf, np.float32)
        offset[: len(block)] = -np.square(norm) if metric == "l2" else 0
        chunks.append(Chunk(start, len(block), jax.device_put(codes), jax.device_put(padded), offset))
        start += size
    return Codes(metric, tuple(chunks), residual, longest)


@dataclass(frozen=True)
class QueryCodes:
    """Queries as int8: `parts` `[groups, LANES, D]`, their `scales` `[groups, LANES]`; `[B]` lengths and errors.

    per_query: parts of a query, which stand `LANES / per_query` apart.
    """

    parts: np.ndarray
    scales: np.ndarray
    lengths: np.ndarray
    residuals: np.ndarray
    per_query: int


def encode_queries(metric: str, queries: np.ndarray) -> QueryCodes:
    """Codes of queries `[B, D]`; of length 1 under cosine. In two parts where few queries leave lanes empty."""
    wide = queries.astype(np.float64)
    if metric == "cosine":
        wide /= np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    per_query = 2 if len(wide) <= LANES // 2 else 1
    lanes = LANES // per_query
    groups = -(-len(wide) // lanes)
    parts = np.zeros((groups, per_query, lanes, wide.shape[1]), np.int8)
    scales = np.zeros((groups, per_query, lanes), np.float32)
    left = np.zeros((groups * lanes, wide.shape[1]))
    left[: len(wide)] = wide
    for part in range(per_query):
        top = np.abs(left).max(axis=1)
        scale = np.where(top > 0, top / LARGEST, 1).astype(np.float32)
        code = np.rint(left / scale[:, None])
        left = left - code * scale[:, None].astype(np.float64)
        parts[:, part] = code.reshape(groups, lanes, -1)
        scales[:, part] = scale.reshape(groups, lanes)
    lengths = np.sqrt(np.square(wide).sum(axis=1))
    residuals = np.sqrt(np.square(left[: len(wide)]).sum(axis=1))
    return QueryCodes(
        parts.reshape(groups, LANES, -1), scales.reshape(groups, LANES), lengths + residuals, residuals, per_query
    )


@partial(jax.jit, static_argnames="per_query")
def block_maxima(
    codes: jax.Array, scale: jax.Array, offset: jax.Array, parts: jax.Array, scales: jax.Array, per_query: int
) -> jax.Array:
    """The largest score in every block of rows, float32 `[LANES / per_query, n / BLOCK]`."""
    products = jnp.einsum("nd,bd->nb", codes, parts, preferred_element_type=jnp.int32).astype(jnp.float32) * scales
    summed = products.reshape(len(codes), per_query, -1).sum(axis=1)
    scored = summed * scale[:, None] + offset[:, None]
    return scored.reshape(len(codes) // BLOCK, BLOCK, -1).max(axis=1).T
