"""What kernels are given and give."""

from typing import NamedTuple

import numpy as np

TILE = 128  # rows whose error is bounded together
AT_ONCE = 4 * TILE  # rows that are multiplied before they are looked at
GROUP = 4  # queries that are multiplied together
OVERFLOW = -1
ROOM = 512  # rows that are kept for a query to begin with, and four times `top_k`
METRIC_NUMBERS = {"ip": 0, "cosine": 1, "l2": 2}
ROUNDING = 2.0**-20  # of what float32 makes of a score, relative to lengths


class CodeArrays(NamedTuple):
    """Rows as codes: int8 `[n, D]`, float32 `[n]` scale and offset (or empty), and the largest error of each tile.

    names: int32 `[n]`, the rows that codes are of; empty where codes stand in the order of rows.
    """

    codes: np.ndarray
    scale: np.ndarray
    offset: np.ndarray
    error: np.ndarray
    names: np.ndarray


class QueryArrays(NamedTuple):
    """Queries as codes, int16 `[B, D]`, whose unit is `steps`, float32 `[B]`.

    lengths: float32 `[B]`, what the error of a row counts with: the length of the query, or a share of it. left:
    float64 `[B]`, the length of what codes leave of it. squares: float64 `[B]`, of its length.
    """

    codes: np.ndarray
    steps: np.ndarray
    lengths: np.ndarray
    left: np.ndarray
    squares: np.ndarray


class ListArrays(NamedTuple):
    """Centroids as codes, int8 `[L, D]`, float32 `[L]` scale, and what is taken off products; int64 `[L + 1]` ends."""

    codes: np.ndarray
    scale: np.ndarray
    penalty: np.ndarray
    ends: np.ndarray


class Kept(NamedTuple):
    """What is kept of each query: a heap of lower bounds, float32 `[B, k]`, and its size, int64 `[B]`; rows that may be
    among the best, int64 `[B, room]`, their upper bounds, float32, and how many, int64 `[B]`.
    """

    heaps: np.ndarray
    sizes: np.ndarray
    found: np.ndarray
    upper: np.ndarray
    numbers: np.ndarray
