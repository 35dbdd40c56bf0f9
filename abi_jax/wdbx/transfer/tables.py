"""Files of rows as streams of Arrow record batches."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from abi_jax.errors import InputError

ROWS_AT_ONCE = 1024
BLOCK_BYTES = 8 << 20  # of JSON lines; no line may be longer
TABLES = (".parquet", ".arrow", ".ipc", ".feather", ".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")


def is_table(path: Path) -> bool:
    """Whether a file's name says that it holds rows with columns."""
    return path.name.lower().endswith(TABLES)


def read_table(path: Path) -> pa.RecordBatchReader:
    """The rows of a Parquet, Arrow or JSON lines file. Raises `InputError` where it is none of these, or broken."""
    if not path.is_file():
        raise InputError(f"{path} is not there; expected a file to import")
    if not is_table(path):
        raise InputError(f"{path}: expected a file of rows, {', '.join(TABLES)}")
    name = path.name.lower()
    try:
        if name.endswith(".parquet"):
            file = pq.ParquetFile(path)
            return pa.RecordBatchReader.from_batches(file.schema_arrow, _named(path, file.iter_batches(ROWS_AT_ONCE)))
        if name.endswith((".arrow", ".ipc", ".feather")):
            return _arrow(path)
        reader = pj.open_json(pa.input_stream(str(path)), pj.ReadOptions(block_size=BLOCK_BYTES))
        return pa.RecordBatchReader.from_batches(reader.schema, _named(path, reader))
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def _arrow(path: Path) -> pa.RecordBatchReader:
    mapped = pa.memory_map(str(path))
    try:
        file = pa.ipc.open_file(mapped)
    except pa.ArrowInvalid:
        mapped.seek(0)
        stream = pa.ipc.open_stream(mapped)
        return pa.RecordBatchReader.from_batches(stream.schema, _named(path, stream))
    batches = (file.get_batch(number) for number in range(file.num_record_batches))
    return pa.RecordBatchReader.from_batches(file.schema, _named(path, batches))


def _named(path: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except (pa.ArrowException, OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
