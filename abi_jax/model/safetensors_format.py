"""The safetensors file format: an 8-byte little-endian header length, a JSON header, the tensors' bytes.

Source: the format section of the README of huggingface/safetensors. Tensors are row-major and follow each other
without gaps; the header's offsets count from the end of the header.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from abi_jax.errors import InputError

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}

_MAX_HEADER = 100_000_000  # the limit of the reference implementation


@dataclass(frozen=True)
class Entry:
    """One tensor of one file; `offset` is the position of its first byte in the file."""

    file: Path
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


def read_header(file: str | Path) -> dict[str, Entry]:
    """Returns the tensors of one safetensors file after checking header and size against each other.

    Raises `InputError` naming the file, and the tensor where one is at fault.
    """
    path = Path(file)
    with path.open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        prefix = f.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > _MAX_HEADER or 8 + length > size:
            raise InputError(
                f"{path}: corrupt or truncated safetensors: {size} bytes cannot hold its header"
                + (f" of {length} bytes" if len(prefix) == 8 else ", which starts with 8 bytes of length")
            )
        header = parse_json(path, f.read(length))
    if not isinstance(header, dict):
        raise InputError(f"{path}: corrupt safetensors header: expected an object, got {type(header).__name__}")
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, Entry] = {}
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        dtype, shape, begin, end = _fields(path, name, fields)
        if begin > end or end - begin != prod(shape) * dtype.itemsize:
            raise InputError(
                f"{path}: corrupt safetensors header: {name!r} holds bytes {begin} to {end}, "
                f"but {dtype} of shape {shape} takes {prod(shape) * dtype.itemsize}"
            )
        spans.append((begin, end, name))
        entries[name] = Entry(path, dtype, shape, 8 + length + begin)
    at = 0
    for begin, end, name in sorted(spans):
        if 8 + length + end > size:
            raise InputError(
                f"{path}: truncated safetensors: {name!r} ends at byte {8 + length + end}, the file at {size}"
            )
        if begin != at:
            raise InputError(f"{path}: corrupt safetensors header: {name!r} starts at {begin}, expected {at}")
        at = end
    if 8 + length + at != size:
        raise InputError(f"{path}: corrupt safetensors: {size} bytes, but its header accounts for {8 + length + at}")
    return entries


def _fields(path: Path, name: str, fields: Any) -> tuple[np.dtype[Any], tuple[int, ...], int, int]:
    def whole(values: Any) -> bool:
        return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)

    if not isinstance(fields, dict) or not whole(fields.get("shape")) or not whole(fields.get("data_offsets")):
        raise InputError(f"{path}: corrupt safetensors header: {name!r} has no whole 'shape' and 'data_offsets'")
    if len(fields["data_offsets"]) != 2:
        raise InputError(f"{path}: corrupt safetensors header: {name!r} needs 2 data_offsets")
    code = fields.get("dtype")
    if not isinstance(code, str) or code not in DTYPES:
        raise InputError(f"{path}: {name!r} has dtype {code!r}; known: {', '.join(DTYPES)}")
    begin, end = fields["data_offsets"]
    return DTYPES[code], tuple(fields["shape"]), begin, end


def parse_json(path: Path, raw: bytes) -> Any:
    """Returns the value of a JSON file's bytes; `InputError` names the file if it is not JSON or repeats a key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    try:
        return json.loads(raw.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: corrupt JSON: {error}") from None
