"""A version of a collection as files that others can read, and `import_` reads as the same rows."""

import base64
import gzip
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from abi_jax.errors import InputError
from abi_jax.files import sync_folder
from abi_jax.lineage_digest import canonical
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.transfer.piece import piece_rows

if TYPE_CHECKING:
    from abi_jax.wdbx.view import View

GROUP_BYTES = 32 << 20  # of vectors in a row group
FORMATS = (".parquet", ".arrow", ".ipc", ".feather", ".jsonl", ".jsonl.gz", ".npz")
Write = Callable[[IO[bytes], "View", "tqdm[Any]"], None]


def export(view: "View", path: Path, progress: bool) -> int:
    """Writes the rows of a view to a file, in no order that means anything; returns how many.

    The file is whole or not there, also after a power cut. Raises `InputError` where its name says no format, or it
    cannot be written.
    """
    name = path.name.lower()
    writers: dict[str, Write] = {
        ".parquet": _parquet,
        ".jsonl": _json_lines,
        ".jsonl.gz": _zipped_json_lines,
        ".npz": _npz,
    } | dict.fromkeys((".arrow", ".ipc", ".feather"), _ipc)
    write = next((write for end, write in writers.items() if name.endswith(end)), None)
    if write is None:
        raise InputError(f"{path}: cannot tell the format; expected a name that ends in {', '.join(FORMATS)}")
    partial = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    rows = len(view)
    try:
        with (
            partial.open("xb") as file,
            tqdm(total=rows, unit=" rows", unit_scale=True, disable=not progress, desc="export") as bar,
        ):
            write(file, view, bar)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return rows


def batches(view: "View", rows: int) -> Iterator[pa.RecordBatch]:
    """The live rows of a view, at most `rows` together: `id`, `vector`, then the fields of the schema."""
    schema = export_schema(view.spec, view.version)
    for part, alive in enumerate(view.alive()):
        for start in range(0, len(alive), rows):
            chosen = np.flatnonzero(alive[start : start + rows]) + start
            if len(chosen):
                ids, vectors, metadata = view.rows_of(part, chosen)
                yield _batch(schema, view.spec, ids, vectors, metadata)


def export_schema(spec: CollectionSpec, version: int) -> pa.Schema:
    """What a file of the collection's rows has; its metadata tells the collection and the version."""
    kinds = {"float16": pa.float16(), "int8": pa.int8()}
    fields = [
        pa.field("id", pa.string() if spec.ids == "str" else pa.int64(), nullable=False),
        pa.field("vector", pa.list_(kinds.get(spec.dtype, pa.float32()), spec.dim), nullable=False),
        *spec.arrow_schema,
    ]
    return pa.schema(fields, {"wdbx": canonical({"collection": spec.to_json(), "version": version}).decode()})


def _batch(
    schema: pa.Schema, spec: CollectionSpec, ids: Any, vectors: np.ndarray, metadata: pa.Table
) -> pa.RecordBatch:
    numbers = vectors.astype(np.float32) if spec.dtype == "bfloat16" else vectors
    flat = pa.array(np.ascontiguousarray(numbers).reshape(-1), schema.field("vector").type.value_type)
    listed = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("vector").type)
    columns = [_one(metadata[name]) for name, _ in spec.schema]
    return pa.RecordBatch.from_arrays([pa.array(ids, schema.field("id").type), listed, *columns], schema=schema)


def _one(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    made = column.combine_chunks()
    return made.chunk(0) if isinstance(made, pa.ChunkedArray) else made


def _group(view: "View") -> int:
    return max(1, GROUP_BYTES // (view.spec.dim * view.spec.numpy_dtype.itemsize))


def _parquet(file: IO[bytes], view: "View", bar: "tqdm[Any]") -> None:
    plain = ["id", *(name for name, _ in view.spec.schema)]
    with pq.ParquetWriter(file, export_schema(view.spec, view.version), use_dictionary=plain) as writer:
        for batch in batches(view, _group(view)):
            writer.write_batch(batch, row_group_size=len(batch))
            bar.update(len(batch))


def _ipc(file: IO[bytes], view: "View", bar: "tqdm[Any]") -> None:
    with pa.ipc.new_file(file, export_schema(view.spec, view.version)) as writer:
        for batch in batches(view, piece_rows(view.spec)):
            writer.write_batch(batch)
            bar.update(len(batch))


def _json_lines(file: IO[bytes], view: "View", bar: "tqdm[Any]") -> None:
    for batch in batches(view, piece_rows(view.spec)):
        file.write("".join(_lines(view.spec, batch)).encode())
        bar.update(len(batch))


def _zipped_json_lines(file: IO[bytes], view: "View", bar: "tqdm[Any]") -> None:
    with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=3, mtime=0) as zipped:
        _json_lines(zipped, view, bar)  # type: ignore[arg-type]


def _lines(spec: CollectionSpec, batch: pa.RecordBatch) -> Iterator[str]:
    """Numbers of vectors are the shortest texts that are read as the same."""
    values = batch.column("vector").flatten()
    texts = (values.cast(pa.float32()) if spec.dtype == "float16" else values).cast(pa.string())
    offsets = pa.array(np.arange(0, len(texts) + 1, spec.dim, dtype=np.int32))
    vectors = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ",").to_pylist()
    binary = [name for name, kind in spec.schema if kind == "bytes"]
    times = [name for name, kind in spec.schema if kind == "time"]
    about = batch.select([name for name, _ in spec.schema]).to_pylist() if spec.schema else [{}] * len(batch)
    for id_, vector, fields in zip(batch.column("id").to_pylist(), vectors, about, strict=True):
        said = {name: value for name, value in fields.items() if value is not None}
        for name in binary:
            if name in said:
                said[name] = base64.b64encode(said[name]).decode()
        for name in times:
            if name in said:
                said[name] = said[name].isoformat()
        rest = json.dumps(said, ensure_ascii=False)
        more = f", {rest[1:-1]}" if said else ""
        yield f'{{"id": {json.dumps(id_, ensure_ascii=False)}, "vector": [{vector}]{more}}}\n'


def _npz(file: IO[bytes], view: "View", bar: "tqdm[Any]") -> None:
    """`id`, `vector`, and, where there is any, `metadata`: an Arrow stream, as bytes."""
    rows, size = len(view), piece_rows(view.spec)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        if view.spec.ids == "str":
            longest = max([1, *(pc.max(pc.utf8_length(batch.column("id"))).as_py() for batch in batches(view, size))])
            kind = np.dtype(f"<U{longest}")
        else:
            kind = np.dtype(np.int64)
        with _member(archive, "id", kind, (rows,)) as member:
            for batch in batches(view, size):
                ids = np.array(batch.column("id").to_pylist(), kind)
                if view.spec.ids == "str" and ids.tolist() != batch.column("id").to_pylist():
                    raise InputError("an id ends in a zero, which NumPy cannot hold; expected another format")
                member.write(ids.tobytes())
        stored = np.dtype(np.float32) if view.spec.dtype == "bfloat16" else view.spec.numpy_dtype
        with _member(archive, "vector", stored, (rows, view.spec.dim)) as member:
            for batch in batches(view, size):
                member.write(np.asarray(batch.column("vector").flatten()).tobytes())
                bar.update(len(batch))
        if view.spec.schema:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, view.spec.arrow_schema) as writer:
                for batch in batches(view, size):
                    writer.write_batch(batch.select(view.spec.arrow_schema.names).cast(view.spec.arrow_schema))
            data = sink.getvalue()
            with _member(archive, "metadata", np.dtype(np.uint8), (len(data),)) as member:
                member.write(data)


def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> IO[bytes]:
    member = archive.open(f"{name}.npy", "w", force_zip64=True)
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(member, about)
    return member
