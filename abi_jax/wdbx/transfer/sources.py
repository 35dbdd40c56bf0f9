"""What rows can be imported from, each as a stream of pieces: arrays, Arrow, Parquet, JSON lines."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from abi_jax.errors import InputError
from abi_jax.wdbx.row_sizes import row_bytes, runs
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.transfer.jsonl import json_pieces
from abi_jax.wdbx.transfer.mappings import mapping_pieces
from abi_jax.wdbx.transfer.numpy_files import open_npy, open_npz
from abi_jax.wdbx.transfer.piece import Columns, Found, Piece, piece_rows

PARQUET_BUFFER = 1 << 20
BATCH_BYTES = 64 << 20  # of Arrow's columns that are taken together
METADATA = "metadata"  # of a .npz file: columns that NumPy has no types for, as an Arrow stream


@dataclass(frozen=True)
class Source:
    """A stream of pieces. rows: how many there are in all; None where that is known at the end only."""

    pieces: Iterator[Piece]
    rows: int | None = None


def open_source(source: Any, spec: CollectionSpec, columns: Columns) -> Source:
    """What `source` holds. Raises `InputError` where it is nothing that can be read."""
    if isinstance(source, str | Path):
        return _open_file(Path(source), spec, columns)
    if isinstance(source, np.ndarray):
        return Source(_array_pieces("the array", {"vector": source}, spec, columns), len(source))
    if isinstance(source, pa.Table):
        return Source(_batches("the table", source.schema.names, source.to_batches, spec, columns), len(source))
    if isinstance(source, pa.RecordBatch):
        return Source(_batches("the batch", source.schema.names, lambda: [source], spec, columns), len(source))
    if isinstance(source, pa.RecordBatchReader):
        return Source(_batches("the stream", source.schema.names, lambda: source, spec, columns))
    if isinstance(source, Mapping):
        sizes = {name: len(each) for name, each in source.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"columns differ in length: {', '.join(f'{n} has {size}' for n, size in sizes.items())}")
        return Source(_array_pieces("the arrays", source, spec, columns), next(iter(sizes.values()), 0))
    if isinstance(source, list | tuple) and source and all(isinstance(each, str | Path) for each in source):
        opened = [open_source(each, spec, columns) for each in source]
        counts = [each.rows for each in opened if each.rows is not None]
        whole = sum(counts) if len(counts) == len(opened) else None
        return Source((piece for each in opened for piece in each.pieces), whole)
    if isinstance(source, Iterable):
        return Source(mapping_pieces("the rows", source, spec, columns))
    raise InputError(
        f"cannot import from {type(source).__name__}; expected a file (.npy, .npz, .parquet, .arrow, "
        ".jsonl, .jsonl.gz), NumPy arrays, an Arrow table or stream, or mappings"
    )


def _open_file(path: Path, spec: CollectionSpec, columns: Columns) -> Source:
    name = path.name.lower()
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file() and not each.name.startswith((".", "_")))
        if not files:
            raise InputError(f"{path} has no files in it; expected files to import")
        return open_source(files, spec, columns)
    if not path.is_file():
        raise InputError(f"{path} is not there; expected a file to import")
    try:
        if name.endswith(".parquet"):
            return _parquet(path, spec, columns)
        if name.endswith((".arrow", ".ipc", ".feather")):
            return _ipc(path, spec, columns)
        if name.endswith(".npy"):
            vectors = open_npy(path)
            return Source(_array_pieces(str(path), {"vector": vectors}, spec, columns), len(vectors))
        if name.endswith(".npz"):
            arrays = open_npz(path)
            about = {key: each for key, each in arrays.items() if key != METADATA}
            sizes = {key: len(each) for key, each in about.items()}
            if len(set(sizes.values())) > 1:
                raise InputError(f"{path}: arrays differ in length: {sizes}")
            more = arrays[METADATA].whole() if METADATA in arrays else None
            rows = next(iter(sizes.values()), 0)
            return Source(_array_pieces(str(path), about, spec, columns, more), rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read: {error}") from None
    if name.endswith((".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")):
        return Source(json_pieces(path, spec, columns))
    raise InputError(f"{path}: expected .npy, .npz, .parquet, .arrow, .ipc, .feather, .jsonl or .jsonl.gz")


def _parquet(path: Path, spec: CollectionSpec, columns: Columns) -> Source:
    file = pq.ParquetFile(path, buffer_size=PARQUET_BUFFER, pre_buffer=False)
    found = columns.wanted(file.schema_arrow.names, spec, str(path))

    def batches() -> Iterator[pa.RecordBatch]:
        yield from file.iter_batches(piece_rows(spec), columns=found.names)

    return Source(_batches(str(path), found.names, batches, spec, columns), file.metadata.num_rows)


def _ipc(path: Path, spec: CollectionSpec, columns: Columns) -> Source:
    mapped = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        stream = pa.ipc.open_stream(mapped)
        return Source(_batches(str(path), stream.schema.names, lambda: stream, spec, columns))

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(file.num_record_batches):
            yield file.get_batch(number)

    return Source(_batches(str(path), file.schema.names, batches, spec, columns))


def _batches(
    name: str,
    names: list[str],
    batches: Callable[[], Iterable[pa.RecordBatch]],
    spec: CollectionSpec,
    columns: Columns,
) -> Iterator[Piece]:
    found = columns.wanted(names, spec, name)
    first, size = 0, piece_rows(spec)
    try:
        for batch in batches():
            small = batch.nbytes <= BATCH_BYTES
            sizes = np.zeros(len(batch), np.int64) if small else row_bytes(batch)
            for start, stop in runs(sizes, size, BATCH_BYTES):
                part = batch.slice(start, stop - start)
                yield arrow_piece(name, first, part, found)
                first += len(part)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name} cannot be read behind row {first}: {error}") from None


def arrow_piece(name: str, first: int, batch: pa.RecordBatch, found: Found) -> Piece:
    """Rows of a record batch."""
    fields = {field: batch.column(column) for field, column in found.fields.items()}
    return Piece(name, first, batch.column(found.id) if found.id else None, batch.column(found.vector), fields)


def _array_pieces(
    name: str, arrays: Mapping[str, Any], spec: CollectionSpec, columns: Columns, more: np.ndarray | None = None
) -> Iterator[Piece]:
    """Rows of arrays, which are read a part at a time. more: further columns, as an Arrow stream."""
    about = pa.table({}) if more is None else pa.ipc.open_stream(pa.py_buffer(more)).read_all()
    found = columns.wanted([*arrays, *about.schema.names], spec, name)
    size = piece_rows(spec)
    for first in range(0, len(arrays[found.vector]), size):
        part = slice(first, first + size)
        fields = {
            field: arrays[column][part] if column in arrays else about[column].slice(first, size)
            for field, column in found.fields.items()
        }
        yield Piece(name, first, arrays[found.id][part] if found.id else None, arrays[found.vector][part], fields)
