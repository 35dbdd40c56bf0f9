"""Inverted lists of a segment, stored once made: a step of its own, which the manifest names. They can be made again.

So can product codes, which are stored beside them where who wrote them was to use such codes.

What is not as it was written is left aside, with a warning: rows are found without it, by more work.
"""

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.storage.base import Storage
from abi_jax.wdbx.storage.step_files import file_hashes

if TYPE_CHECKING:
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.products import ProductIndex

FOLDER = "indexes"
PREFIX = "lists1_"  # another number wherever what search makes of lists has changed: others are not looked at
FIELDS = ("centroids", "order", "ends", "measured", "ranks")
PRODUCTS = "pq1_"  # as with lists
PRODUCT_FIELDS = ("books", "codes", "measured", "candidates")

logger = logging.getLogger("abi_jax.wdbx")


def index_name(number: int) -> str:
    """The folder of an index."""
    return f"{FOLDER}/{number:08d}"


def lists_to_store(lists: "Lists") -> dict[str, np.ndarray]:
    """The arrays of a step by name.

    measured: int64 `[m]`, for how many neighbours there are `ranks`, int64 `[m, L]`; the first is 0, with no ranks,
    since a step has no arrays that are empty.
    """
    measured = sorted(lists.ranks)
    nothing = np.zeros(len(lists.centroids), np.int64)
    made = {
        "centroids": lists.centroids,
        "order": lists.order,
        "ends": lists.ends,
        "measured": np.array([0, *measured], np.int64),
        "ranks": np.stack([nothing, *(lists.ranks[each] for each in measured)]),
    }
    return {PREFIX + name: made[name] for name in FIELDS}


def products_to_store(index: "ProductIndex") -> dict[str, np.ndarray]:
    """The arrays of lists and product codes by name. measured, candidates: as `measured` and `ranks` of lists."""
    from abi_jax.wdbx.search.products import SHARES

    codes = index.codes
    measured = sorted(codes.candidates)
    every = [codes.candidates[each] for each in measured]
    made = {
        "books": codes.books,
        "codes": codes.codes,
        "measured": np.array([0, *measured], np.int64),
        "candidates": np.stack([np.zeros(len(SHARES), np.int64), *every]),
    }
    return lists_to_store(index.lists) | {PRODUCTS + name: made[name] for name in PRODUCT_FIELDS}


class StoredLists:
    """Lists that a manifest names. They are read, and compared with what it says, when they are first asked for."""

    def __init__(self, storage: Storage, number: int, files: Mapping[str, str], metric: str, rows: int) -> None:
        """files: SHA-256 of every file of the step, by its path. rows: of the segment that they are of."""
        self._storage = storage
        self.number = number
        self._files = files
        self._metric = metric
        self._rows = rows

    @property
    def lists(self) -> "Lists | None":
        """The lists; None where they are not as they were written, or of another kind."""
        return self._read[0]

    @property
    def products(self) -> "ProductIndex | None":
        """Lists and product codes; None where there are no such codes, or as with lists."""
        return self._read[1]

    @cached_property
    def _read(self) -> "tuple[Lists | None, ProductIndex | None]":
        name = index_name(self.number)
        try:
            if file_hashes(self._storage, name) != dict(self._files):
                raise InputError("its files are not those that were written")
            arrays = self._storage.load(name, self._files)
            lists = _lists(self._metric, self._rows, arrays)
            return lists, None if lists is None else _products(lists, arrays)
        except (InputError, OSError, ValueError, KeyError) as error:
            logger.warning("%s/%s is left aside, and rows are found without it: %s", self._storage, name, error)
            return None, None


def _lists(metric: str, rows: int, arrays: Mapping[str, np.ndarray]) -> "Lists | None":
    if PREFIX + FIELDS[0] not in arrays:
        return None
    from abi_jax.wdbx.search.ivf import Lists

    centroids, order, ends, measured, ranks = (arrays[PREFIX + name] for name in FIELDS)
    if len(order) != rows:
        raise InputError(f"it has lists of {len(order)} rows; expected {rows}")
    whole = len(ends) == len(centroids) + 1 and ends[0] == 0 and ends[-1] == rows and (np.diff(ends) >= 0).all()
    if not whole or (rows and not (order.min() >= 0 and order.max() < rows)):
        raise InputError(f"its lists are not parts of {rows} rows")
    by_count = dict(zip(measured.tolist()[1:], np.asarray(ranks)[1:], strict=True))
    return Lists(metric, np.asarray(centroids), np.asarray(order), np.asarray(ends), by_count)


def _products(lists: "Lists", arrays: Mapping[str, np.ndarray]) -> "ProductIndex | None":
    if PRODUCTS + PRODUCT_FIELDS[0] not in arrays:
        return None
    from abi_jax.wdbx.search.kernels.shuffle import BLOCK, TOGETHER
    from abi_jax.wdbx.search.products import CENTROIDS, DIMS, SHARES, ProductCodes, ProductIndex

    books, codes, measured, candidates = (np.asarray(arrays[PRODUCTS + name]) for name in PRODUCT_FIELDS)
    if len(codes) != -(-len(lists.order) // BLOCK):
        raise InputError(
            f"it has {len(codes)} blocks of product codes; expected {BLOCK} of {len(lists.order)} rows each"
        )
    spaces = -(-lists.centroids.shape[1] // (DIMS * TOGETHER)) * TOGETHER
    expected = {"books": (spaces, CENTROIDS, DIMS), "codes": (len(codes), spaces, BLOCK // 2)}
    shapes = {"books": books.shape, "codes": codes.shape}
    if shapes != expected or candidates.shape != (len(measured), len(SHARES)) or codes.dtype != np.uint8:
        raise InputError(f"its product codes have shapes {shapes}; expected {expected}")
    by_count = dict(zip(measured.tolist()[1:], candidates[1:], strict=True))
    return ProductIndex(lists, ProductCodes(lists.metric, books, codes, lists.order, by_count))
