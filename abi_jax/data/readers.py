"""Files to records, as they lie: one reader for every format, none of which knows what a record must hold.

A reader yields `(where, value)`: `where` names file and line, row or record, counted from 1; `value` is the
record's JSON as bytes, or the record itself. What cannot be read at all is an `InputError` naming the file.
"""

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from abi_jax.errors import InputError

Value = bytes | dict[str, Any]
Located = tuple[str, Value]

SUFFIXES = (".jsonl.gz", ".jsonl", ".ndjson", ".parquet", ".array_record", ".arrayrecord")
BATCH = 1024
# The columns of a table that a record can use; others are not read from disk.
COLUMNS = (
    *("messages", "prompt", "chosen", "rejected", "persona", "mixture"),
    *("aspect", "labels", "attributes", "memory", "policy"),
)
# What ends every Arrow stream that was closed; without it, one cut between two batches would read as whole.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_values(path: Path) -> Iterator[Located]:
    """Yields the records of a file, or of a directory that `datasets` saved, in order.

    The suffix says what it is: `.parquet`, `.array_record`, and JSON lines for all others, compressed if `.gz`.
    """
    if path.is_dir():
        return _read_saved(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    if path.suffix in (".array_record", ".arrayrecord"):
        return _read_array_record(path)
    return _read_lines(path)


def is_saved_dataset(path: Path) -> bool:
    """True for a directory that `datasets` wrote with `save_to_disk`."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _read_lines(path: Path) -> Iterator[Located]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if line.strip():
                    yield f"{path}:{number}", line
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or error) from None


def _read_parquet(path: Path) -> Iterator[Located]:
    pyarrow = _arrow(path)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            columns = _columns(path, file.schema_arrow.names)
            yield from _rows(path, file.iter_batches(BATCH, columns=columns))
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def _read_saved(path: Path) -> Iterator[Located]:
    """A data set of `datasets`, or the split `train` of several; its files are Arrow streams."""
    if (path / "dataset_dict.json").is_file():
        splits = _json(path / "dataset_dict.json", "splits")
        if "train" not in splits:
            raise InputError(f"{path}: no split 'train' among {', '.join(map(str, splits))}; name one as {path}/SPLIT")
        path = path / "train"
    for entry in _json(path / "state.json", "_data_files"):
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or Path(name).name != name:
            raise InputError(f"{path / 'state.json'}: data file {name!r}; expected a name of a file beside it")
        yield from _read_stream(path / name)


def _read_stream(path: Path) -> Iterator[Located]:
    pyarrow = _arrow(path)
    try:
        with path.open("rb") as file:
            file.seek(-min(len(_END_OF_STREAM), path.stat().st_size), 2)
            if file.read() != _END_OF_STREAM:
                raise _unreadable(path, "it does not end as an Arrow stream does; is it truncated?")
        with pyarrow.memory_map(str(path)) as source, pyarrow.ipc.open_stream(source) as stream:
            columns = _columns(path, stream.schema.names)
            yield from _rows(path, (batch.select(columns) for batch in stream))
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from None


def _rows(path: Path, batches: Iterator[Any]) -> Iterator[Located]:
    number = 0
    for batch in batches:
        batch.validate(full=True)  # a damaged offset would end the interpreter
        for start in range(0, batch.num_rows, BATCH):
            try:
                rows = batch.slice(start, BATCH).to_pylist(maps_as_pydicts="strict")
            except (ValueError, OverflowError, KeyError) as error:
                first = number + 1
                raise _unreadable(path, f"rows {first} to {first + BATCH}: {error}") from None
            for row in rows:
                number += 1
                yield f"{path}:row {number}", _present(row)


def _present(value: Any) -> Any:
    """Leaves out what is null: a column must be there for every row, a key need not. Keys of maps become text."""
    if isinstance(value, dict):
        return {_key(name): _present(v) for name, v in value.items() if v is not None}
    return [_present(v) for v in value] if isinstance(value, list) else value


def _key(name: Any) -> str:
    return name.decode(errors="backslashreplace") if isinstance(name, bytes) else str(name)


def _columns(path: Path, names: Sequence[str]) -> list[str]:
    if "messages" not in names and "prompt" not in names:
        raise InputError(f"{path}: no column 'messages' or 'prompt' among {', '.join(names) or '(none)'}")
    return [name for name in names if name in COLUMNS]


def _read_array_record(path: Path) -> Iterator[Located]:
    from array_record.python.array_record_module import ArrayRecordReader  # comes with grain

    try:
        with path.open("rb"):  # the reader does not say why it cannot open a file
            reader = ArrayRecordReader(str(path))
        if not reader.ok():
            raise _unreadable(path, "it is no ArrayRecord file, or truncated")
        try:
            total = reader.num_records()
            for start in range(0, total, BATCH):
                for number, line in enumerate(reader.read(start, min(start + BATCH, total)), start + 1):
                    yield f"{path}:record {number}", line
        finally:
            reader.close()
    except (OSError, RuntimeError, IndexError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or error) from None


def _json(path: Path, key: Literal["splits", "_data_files"]) -> list[Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from None
    except ValueError as error:
        raise _unreadable(path, f"not JSON: {error}") from None
    listed = value.get(key) if isinstance(value, dict) else None
    if not isinstance(listed, list):
        raise InputError(f"{path}: {key} is {listed!r}; expected a list")
    return listed


def _arrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise InputError(
            f"reading {str(path)!r} needs pyarrow, which is not installed: pip install 'abi-jax[data]'"
        ) from None
    return pyarrow


def _unreadable(path: Path, why: object) -> InputError:
    return InputError(f"data file {str(path)!r} cannot be read: {why}")
