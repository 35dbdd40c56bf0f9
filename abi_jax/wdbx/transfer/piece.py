"""Pieces of a source, as they come: of the collection's types, or refused with the number of the row."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from abi_jax.errors import InputError
from abi_jax.wdbx.ids import text_column
from abi_jax.wdbx.rows import make_ids, make_metadata, make_vectors
from abi_jax.wdbx.spec import CollectionSpec

PIECE_BYTES = 4 << 20  # of vectors that are read and checked together


@dataclass(frozen=True)
class Columns:
    """Where a source has what. fields: of metadata, and the columns they are in; None: all other columns.

    id: where None, rows without a column `id` are known by their number.
    """

    id: str | None = None
    vector: str | None = None
    fields: Mapping[str, str] | None = None

    def wanted(self, there: Iterable[str], spec: CollectionSpec, source: str) -> "Found":
        """The columns of a source that has `there`. Raises `InputError` where one is missing or not known."""
        names = list(there)
        vector = self.vector or "vector"
        id_ = self.id or ("id" if "id" in names else None)
        fields = self.fields
        if fields is None:
            fields = {name: name for name in names if name not in (id_, vector)}
        for name in (vector, *([id_] if id_ else []), *fields.values()):
            if name not in names:
                raise InputError(f"{source} has no column {name!r}; its columns: {', '.join(names)}")
        for name in fields:
            if name not in dict(spec.schema):
                has = ", ".join(name for name, _ in spec.schema) or "none"
                raise InputError(
                    f"{source} has a column {name!r}, which is no field of collection {spec.name} (its fields: {has}); "
                    "name those to take with fields=[...]"
                )
        return Found(id_, vector, fields)


@dataclass(frozen=True)
class Found:
    """The columns that are read. id: None where rows are known by their number."""

    id: str | None
    vector: str
    fields: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        """All of them, each once."""
        return list(dict.fromkeys([*([self.id] if self.id else []), self.vector, *self.fields.values()]))


@dataclass(frozen=True)
class Piece:
    """Rows as a source has them, from row `first` of it on. ids: None for their numbers."""

    source: str
    first: int
    ids: Any
    vectors: Any
    metadata: Any


@dataclass(frozen=True)
class Checked:
    """Rows of the collection's types. ids: large strings or int64 `[n]`; vectors `[n, dim]`."""

    ids: pa.Array | np.ndarray
    vectors: np.ndarray
    metadata: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.ids)


def piece_rows(spec: CollectionSpec) -> int:
    """Rows that are read together."""
    return max(1, min(1 << 16, PIECE_BYTES // (spec.dim * spec.numpy_dtype.itemsize)))


def check(spec: CollectionSpec, piece: Piece) -> Checked:
    """The rows of a piece. Raises `InputError` with the source and the number of the first row that does not fit."""
    try:
        vectors = make_vectors(spec, _vectors(spec, piece), first=piece.first)
        ids = _ids(spec, piece, len(vectors))
        if len(ids) != len(vectors):
            raise InputError(f"{len(ids)} ids and {len(vectors)} vectors; expected as many of one as of the other")
        return Checked(ids, vectors, make_metadata(spec, piece.metadata, len(vectors), piece.first))
    except InputError as error:
        raise InputError(f"{piece.source}: {error}") from None


def _ids(spec: CollectionSpec, piece: Piece, count: int) -> pa.Array | np.ndarray:
    given = piece.ids
    if given is None:
        numbers = np.arange(piece.first, piece.first + count)
        return numbers if spec.ids == "int" else text_column(numbers.astype(str).tolist())
    if isinstance(given, pa.ChunkedArray):
        given = given.combine_chunks()
    if isinstance(given, pa.DictionaryArray):
        given = given.dictionary_decode()
    if isinstance(given, pa.Array) and not given.null_count:
        if spec.ids == "str" and (pa.types.is_string(given.type) or pa.types.is_large_string(given.type)):
            texts = text_column(given)
            if not len(texts) or pc.min(pc.binary_length(texts)).as_py() > 0:
                return texts
        if spec.ids == "int" and pa.types.is_integer(given.type) and given.type != pa.uint64():
            return np.asarray(given).astype(np.int64)
    if isinstance(given, np.ndarray) and spec.ids == "int" and given.dtype.kind in "iu" and given.dtype != np.uint64:
        return given.astype(np.int64)
    if spec.ids == "str" and isinstance(given, list):
        with contextlib.suppress(pa.ArrowException, ValueError):
            texts = pa.array(given, pa.large_string())
            if not texts.null_count and len(texts) and pc.min(pc.binary_length(texts)).as_py() > 0:
                return texts
    made = make_ids(spec, given, unique=False, first=piece.first)
    return made if isinstance(made, np.ndarray) else text_column(made)


def _vectors(spec: CollectionSpec, piece: Piece) -> Any:
    """Vectors as an array, where they are a column of lists."""
    column = piece.vectors
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if not isinstance(column, pa.Array):
        return column
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(kind(column.type) for kind in lists):
        raise InputError(f"vectors are of type {column.type}; expected lists of numbers")
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), -1)).astype(np.int64)
    wrong = np.flatnonzero(lengths != spec.dim)
    if len(wrong):
        row = int(wrong[0])
        said = "missing" if lengths[row] < 0 else f"of dimension {lengths[row]}"
        raise InputError(f"vector {row + piece.first} is {said}, collection {spec.name} has dimension {spec.dim}")
    values = column.flatten()
    if values.null_count:
        row = int(np.argmin(np.asarray(values.is_valid()))) // spec.dim
        raise InputError(f"vector {row + piece.first} has a null in it; expected {spec.dim} numbers")
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        raise InputError(f"vectors are lists of {values.type}; expected numbers")
    return np.asarray(values).reshape(len(column), spec.dim)
