"""Rows as the devices of a mesh hold them: pages of one shape, in the type of the products, with a known error.

A row x is `scale' c + r` with c what is stored; a query is `q = s1 p1 + s2 p2 + e`. Then

    |q.x - (s1 p1 + s2 p2).(scale' c)| <= |e| |x| + |q - e| |r|

and the products themselves are off by at most `n 2^-24` of what they are of (Higham, Accuracy and Stability of
Numerical Algorithms, 3.1). What a device finds are candidates by that margin; exact scores decide.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from abi_jax.errors import InputError

COMPUTE = ("float32", "bfloat16", "int8")
PAGE_BYTES = 1 << 20
SMALLEST_PAGE, LARGEST_PAGE = 128, 4096  # rows
CODED = 16  # dimensions of which codes take two bytes
IN_TWO = 16  # queries: up to so many a product of two parts of each costs little more than one of one
LARGEST_CODE = 127.0
SMALLEST_TOP = 1e-30  # a row of smaller numbers has codes of zero: its scale would not be a normal number
TINY = 2.0**-24
FLUSHED = 2.0**-126  # what a device may take for zero
NUMPY = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16), "int8": np.dtype(np.int8)}


@dataclass(frozen=True)
class PageShape:
    """Of what every page of a collection is made: `rows` rows of dimension `dim` as numbers of type `compute`.

    "pq": as product codes, which `mesh_products` makes.
    """

    metric: str
    dim: int
    compute: str
    rows: int

    @property
    def nbytes(self) -> int:
        """Bytes of a page on a device, with scales, offsets and the mask of its rows."""
        if self.compute == "pq":
            return self.rows * (self.code_bytes + 1)
        return self.rows * (self.dim * NUMPY[self.compute].itemsize + 9)

    @property
    def code_bytes(self) -> int:
        """Bytes of a row as product codes: whole numbers of sub-spaces that a host looks up together."""
        return -(-self.dim // CODED) * 2


def page_shape(metric: str, dim: int, compute: str, rows: int | None = None) -> PageShape:
    """The shape of a collection's pages. rows: about a megabyte, as many as a power of two says.

    Raises `InputError` where `compute` is none of `COMPUTE`, or `rows` no power of two from 32.
    """
    if compute not in COMPUTE:
        raise InputError(f"compute {compute!r}: expected one of {', '.join(COMPUTE)}")
    if rows is None:
        fit = max(1, PAGE_BYTES // (dim * NUMPY[compute].itemsize))
        rows = min(LARGEST_PAGE, max(SMALLEST_PAGE, 1 << (fit.bit_length() - 1)))
    if rows < 32 or rows & (rows - 1):
        raise InputError(f"rows_per_page {rows}: expected a power of two from 32")
    return PageShape(metric, dim, compute, rows)


@dataclass(frozen=True)
class Pages:
    """Pages on the host. rows `[n, R, D]`; scale, offset float32 `[n, R]`: a score is `scale (q.row) + offset`.

    reach: float32 `[n, 2]`, the largest `|x|` and `|r|` in each page, over `|x|` under cosine.
    """

    rows: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    reach: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All of them, in this order."""
        return self.rows, self.scale, self.offset, self.reach


def empty_pages(shape: PageShape, count: int) -> Pages:
    """Pages without rows."""
    return Pages(
        np.zeros((count, shape.rows, shape.dim), NUMPY[shape.compute]),
        np.zeros((count, shape.rows), np.float32),
        np.zeros((count, shape.rows), np.float32),
        np.zeros((count, 2), np.float32),
    )


def fill(shape: PageShape, pages: Pages, at: int, vectors: np.ndarray) -> None:
    """Makes page `at` of `vectors` `[n, D]`, `n` at most the rows of a page."""
    count = len(vectors)
    native = vectors.dtype == np.int8
    block = np.asarray(vectors).astype(np.float32)
    if shape.metric == "cosine" and not native:  # only direction counts: no square of a number is then too small
        block = np.ldexp(block, -np.frexp(np.abs(block).max(axis=1))[1][:, None])
    norm = np.sqrt(np.einsum("nd,nd->n", block, block, dtype=np.float64))
    factor = np.ones(count)
    codes = block
    if shape.compute == "int8":
        top = np.abs(block).max(axis=1)
        codes = np.asarray(vectors)
        if not native:
            factor = np.where(top > SMALLEST_TOP, top / LARGEST_CODE, 1).astype(np.float32).astype(np.float64)
            codes = np.rint(np.where(top[:, None] > SMALLEST_TOP, block / factor[:, None], 0)).astype(np.int8)
    elif shape.compute == "bfloat16":
        codes = block.astype(ml_dtypes.bfloat16)
    residual = np.zeros(count)
    if codes is not block:
        left = block - codes.astype(np.float64) * factor[:, None]
        residual = np.sqrt(np.einsum("nd,nd->n", left, left))
    unit = norm if shape.metric == "cosine" else np.ones(count)
    pages.rows[at, :count] = codes
    pages.scale[at, :count] = factor / unit * (2 if shape.metric == "l2" else 1)
    pages.offset[at, :count] = -np.square(norm) if shape.metric == "l2" else 0
    upwards = 1 + 1e-6  # these are rounded to float32
    pages.reach[at] = (norm / unit).max(initial=0) * upwards, (residual / unit).max(initial=0) * upwards


@dataclass(frozen=True)
class Queries:
    """Queries on the host: `parts` `[p, B, D]`, their `scales` float32 `[p, B]`; of each length and error, float64."""

    parts: np.ndarray
    scales: np.ndarray
    lengths: np.ndarray
    residuals: np.ndarray


def parts_of(compute: str, batch: int) -> int:
    """In how many parts a query of a batch is multiplied."""
    return 2 if compute != "float32" and batch <= IN_TWO else 1


def encode_queries(shape: PageShape, queries: np.ndarray, batch: int) -> Queries:
    """Queries float32 `[B, D]`, padded to `batch`; of length 1 under cosine."""
    count = parts_of(shape.compute, batch)
    wide = queries.astype(np.float64)
    if shape.metric == "cosine":
        wide /= np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    parts = np.zeros((count, batch, shape.dim), NUMPY[shape.compute])
    scales = np.ones((count, batch), np.float32)
    left = wide
    for part in range(count):
        if shape.compute == "int8":
            top = np.abs(left).max(axis=1)
            scale = np.where(top > SMALLEST_TOP, top / LARGEST_CODE, 1).astype(np.float32)
            code = np.rint(np.where(top[:, None] > SMALLEST_TOP, left / scale[:, None], 0))
            scales[part, : len(wide)] = scale
        else:
            code = left.astype(parts.dtype)
        parts[part, : len(wide)] = code
        left = left - code.astype(np.float64) * scales[part, : len(wide), None].astype(np.float64)
    residuals = np.sqrt(np.square(left).sum(axis=1))
    return Queries(parts, scales, np.sqrt(np.square(wide).sum(axis=1)) + residuals, residuals)


def margin(shape: PageShape, queries: Queries, longest: float, residual: float, share: float = 1.0) -> np.ndarray:
    """By how much a device's score may be off, and the rounding of exact scores to float32 with it; float64 `[B]`.

    share: of the largest error of what rows and queries are held as, what counts.
    """
    lengths, errors = queries.lengths, queries.residuals
    reach = longest + residual
    rounding = TINY * (2 * shape.dim + 32) * lengths * reach + FLUSHED * shape.dim * (1 + lengths + reach)
    made = share * (errors * longest + lengths * residual) + rounding
    return 2 * made + 8 * TINY * np.square(lengths + longest) if shape.metric == "l2" else made
