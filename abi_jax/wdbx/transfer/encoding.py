"""Rows that have texts and no vectors, with vectors that an encoder makes on the way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from abi_jax.errors import InputError
from abi_jax.wdbx.encoder import Encoder, encode
from abi_jax.wdbx.spec import DOCUMENT, CollectionSpec
from abi_jax.wdbx.transfer.tables import ROWS_AT_ONCE, is_table, read_table

VECTOR = "vector"


def texts_of(source: Any, spec: CollectionSpec, column: str | None) -> pa.RecordBatchReader | None:
    """The rows of a source whose texts are in `column`; None where none was named and it can be taken as it is.

    That is so unless it is a file of rows without vectors, for a collection with documents.
    """
    if isinstance(source, pa.Table):
        return None if column is None else source.to_reader()
    path = Path(source) if isinstance(source, str | Path) else None
    if path is None or (column is None and (not path.is_file() or not is_table(path))):
        if column is None:
            return None
        raise InputError(f"document={column!r}: expected a file of rows or an Arrow table, to take its texts from")
    if column is None and DOCUMENT not in dict(spec.schema):
        return None
    rows = read_table(path)
    return rows if column is not None or VECTOR not in rows.schema.names else None


def with_vectors(
    rows: pa.RecordBatchReader,
    spec: CollectionSpec,
    encoder: Encoder | None,
    column: str,
    vector: str | None,
    source: str,
) -> pa.RecordBatchReader:
    """The same rows, their texts in a column `document`, and vectors of these in one, where they have none.

    column: where the texts are. vector: where the vectors are, `vector` where it is None. Raises `InputError` where
    there is no such column; and, as rows are read, with the number of the first row that has no text.
    """
    there = rows.schema.names
    for name in (column, *([vector] if vector else [])):
        if name not in there:
            raise InputError(f"{source} has no column {name!r}; its columns: {', '.join(there)}")
    if DOCUMENT in there and column != DOCUMENT:
        raise InputError(f"{source} has a column {DOCUMENT!r} beside the texts in {column!r}; expected one of them")
    schema = pa.schema([field.with_name(DOCUMENT) if field.name == column else field for field in rows.schema])
    if (vector or VECTOR) in there:
        renamed = (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in rows)
        return pa.RecordBatchReader.from_batches(schema, renamed)
    schema = schema.append(pa.field(VECTOR, pa.list_(pa.float32(), spec.dim)))

    def batches() -> Iterator[pa.RecordBatch]:
        first = 0
        for batch in rows:
            for start in range(0, len(batch), ROWS_AT_ONCE):
                part = batch.slice(start, ROWS_AT_ONCE)
                vectors = encode(encoder, spec, _texts(part.column(column), first, column, source))
                flat = pa.array(np.asarray(vectors, np.float32).reshape(-1))
                made = pa.FixedSizeListArray.from_arrays(flat, spec.dim)
                yield pa.RecordBatch.from_arrays([*part.columns, made], schema=schema)
                first += len(part)

    return pa.RecordBatchReader.from_batches(schema, batches())


def _texts(column: pa.Array, first: int, name: str, source: str) -> list[str]:
    listed: list[str] = column.to_pylist()
    for at, text in enumerate(listed, first):
        if not isinstance(text, str):
            raise InputError(f"{source}: {name!r} of row {at} is {text!r:.60}; expected a text to make a vector of")
    return listed
