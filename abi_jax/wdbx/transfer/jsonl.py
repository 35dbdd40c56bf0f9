"""JSON lines, a block of them at a time, compressed or not."""

import base64
import gzip
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.json as pj

from abi_jax.errors import InputError
from abi_jax.wdbx.given import as_time
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.transfer.mappings import mapping_piece
from abi_jax.wdbx.transfer.piece import Columns, Piece

BLOCK_BYTES = 8 << 20
TOLD: Mapping[str, Callable[[str], Any]] = {  # what JSON has no type for
    "bytes": lambda text: base64.b64decode(text, validate=True),
    "time": as_time,
}
HINTS = {"bytes": "base64", "time": "a time in ISO 8601"}


def json_pieces(path: Path, spec: CollectionSpec, columns: Columns) -> Iterator[Piece]:
    """The rows of a file of JSON lines; empty lines are passed over."""
    with gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb") as file:
        row, line = 0, 1
        for block in _blocks(path, file):  # type: ignore[arg-type]
            piece = _quick(str(path), row, block, spec, columns) or _slow(path, row, line, block, spec, columns)
            if piece is not None:
                yield piece
                row += len(piece.vectors)
            line += block.count(b"\n")


def _blocks(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """Whole lines, many at a time."""
    rest = b""
    try:
        while block := file.read(BLOCK_BYTES):
            head, end, tail = block.rpartition(b"\n")
            if end:
                yield rest + head + end
                rest = tail
            else:
                rest += block
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if rest.strip():
        yield rest + b"\n"


def _quick(name: str, row: int, block: bytes, spec: CollectionSpec, columns: Columns) -> Piece | None:
    """The rows of a block where they are as they should be; None where each has to be looked at."""
    fields = columns.fields if columns.fields is not None else {field: field for field, _ in spec.schema}
    if any(kind == "bytes" for _, kind in spec.schema) or not block.strip():
        return None
    id_, vector = columns.id or "id", columns.vector or "vector"
    numbers = pa.int64() if spec.dtype == "int8" else pa.float32()
    kinds = spec.arrow_schema
    schema = pa.schema(
        [
            pa.field(id_, pa.string() if spec.ids == "str" else pa.int64()),
            pa.field(vector, pa.list_(numbers)),
            *(pa.field(column, kinds.field(field).type) for field, column in fields.items() if field in kinds.names),
        ]
    )
    others = "error" if columns.fields is None else "ignore"
    try:
        table = pj.read_json(
            pa.BufferReader(block),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior=others),
        )
    except (pa.ArrowException, OverflowError):
        return None
    ids = table[id_].combine_chunks()
    if ids.null_count:
        return None
    return Piece(name, row, ids, table[vector], {field: table[column] for field, column in fields.items()})


def _slow(path: Path, row: int, line: int, block: bytes, spec: CollectionSpec, columns: Columns) -> Piece | None:
    rows: list[Mapping[str, Any]] = []
    told = {(columns.fields or {}).get(name, name): kind for name, kind in spec.schema if kind in TOLD}
    for number, text in enumerate(block.splitlines(), line):
        if not text.strip():
            continue
        try:
            said = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: not JSON: {error}") from None
        if not isinstance(said, dict):
            raise InputError(f"{path}, line {number}: {type(said).__name__}; expected an object, a row each line")
        for name, kind in told.items():
            if said.get(name) is not None:
                try:
                    said[name] = TOLD[kind](said[name])
                except (ValueError, TypeError, AttributeError):
                    raise InputError(
                        f"{path}, line {number}: field {name!r} is {said[name]!r}; expected {HINTS[kind]}"
                    ) from None
        rows.append(said)
    return mapping_piece(str(path), row, rows, spec, columns) if rows else None
