"""Rows that are mappings, as pieces."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from abi_jax.errors import InputError
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.transfer.piece import Columns, Piece, piece_rows


def mapping_pieces(name: str, rows: Iterable[Any], spec: CollectionSpec, columns: Columns) -> Iterator[Piece]:
    """Rows that are mappings, as many together as are read at once."""
    size, first = piece_rows(spec), 0
    held: list[Mapping[str, Any]] = []
    for row in rows:
        if not isinstance(row, Mapping):
            raise InputError(f"{name}: row {first + len(held)} is {type(row).__name__}; expected a mapping")
        held.append(row)
        if len(held) == size:
            yield mapping_piece(name, first, held, spec, columns)
            first, held = first + size, []
    if held:
        yield mapping_piece(name, first, held, spec, columns)


def mapping_piece(
    name: str, first: int, rows: list[Mapping[str, Any]], spec: CollectionSpec, columns: Columns
) -> Piece:
    """Rows that are mappings; a field that a row lacks is null."""
    vector, id_ = columns.vector or "vector", columns.id or "id"
    for at, row in enumerate(rows):
        found = columns.wanted(row, spec, f"{name}: row {first + at}") if columns.fields is None else None
        if vector not in row or (id_ not in row and (columns.id or found is None or id_ in rows[0])):
            raise InputError(f"{name}: row {first + at} has no {vector if vector not in row else id_!r}")
        length = len(row[vector]) if isinstance(row[vector], list | tuple | np.ndarray) else -1
        if length != spec.dim:
            raise InputError(f"{name}: vector {first + at} is of dimension {length}; expected {spec.dim}")
    taken = columns.fields or {field: field for field, _ in spec.schema}
    fields = {field: [row.get(column) for row in rows] for field, column in taken.items()}
    ids = [row[id_] for row in rows] if id_ in rows[0] else None
    return Piece(name, first, ids, [row[vector] for row in rows], fields)
