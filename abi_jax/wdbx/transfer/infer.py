"""What a collection has to be, for the rows of a file to fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from abi_jax.errors import InputError
from abi_jax.wdbx.transfer.sources import METADATA
from abi_jax.wdbx.transfer.tables import is_table, read_table


@dataclass(frozen=True)
class Inferred:
    """dim: of the vectors; None where there are none. ids: "str" or "int". schema: types of the other columns."""

    dim: int | None
    ids: str
    schema: Mapping[str, str]


def infer_file(path: Path, id: str = "id", vector: str = "vector", fields: Sequence[str] | None = None) -> Inferred:
    """What a file (.npy, .npz, or a table) holds, from its types and its first rows. id, vector: their columns.

    fields: the columns of metadata; None: all others. Raises `InputError` where a column is of no type that a field
    has.
    """
    if is_table(path):
        reader = read_table(path)
        kinds = {field.name: field.type for field in reader.schema}
        first = next(iter(reader), None) if vector in kinds else None
        dim = None if first is None else _dim(first.column(vector))
    elif path.suffix.lower() in (".npy", ".npz"):
        kinds, dim = _numpy(path, vector)
    else:
        raise InputError(f"{path}: expected .npy, .npz, .parquet, .arrow, .jsonl or .jsonl.gz")
    wanted = [name for name in kinds if name not in (id, vector)] if fields is None else list(fields)
    for name in wanted:
        if name not in kinds:
            raise InputError(f"{path} has no column {name!r}; its columns: {', '.join(kinds)}")
    ids = "int" if id not in kinds or pa.types.is_integer(kinds[id]) else "str"
    return Inferred(dim, ids, {name: field_type(name, kinds[name], str(path)) for name in wanted})


def _dim(column: pa.Array) -> int | None:
    listed = column[:1].to_pylist()
    return len(listed[0]) if listed and isinstance(listed[0], list) else None


def _numpy(path: Path, vector: str) -> tuple[dict[str, pa.DataType], int | None]:
    try:
        loaded = np.load(path, mmap_mode="r") if path.suffix.lower() == ".npy" else np.load(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    arrays = {vector: loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
    dim = arrays[vector].shape[1] if vector in arrays and arrays[vector].ndim == 2 else None
    kinds = {name: pa.array(each[:1].tolist()).type for name, each in arrays.items() if name not in (vector, METADATA)}
    if METADATA in arrays:
        about = pa.ipc.open_stream(pa.py_buffer(arrays[METADATA])).schema
        kinds |= {field.name: field.type for field in about}
    return kinds, dim


def field_type(name: str, kind: pa.DataType, source: str) -> str:
    """The type of a field that holds what an Arrow column does."""
    types = pa.types
    if types.is_dictionary(kind):
        return field_type(name, kind.value_type, source)
    if types.is_list(kind) or types.is_large_list(kind):
        inner = field_type(name, kind.value_type, source)
        if inner in ("str", "int"):
            return f"list[{inner}]"
    found = {
        "str": types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind),
        "int": types.is_integer(kind),
        "float": types.is_floating(kind),
        "bool": types.is_boolean(kind),
        "time": types.is_timestamp(kind) or types.is_date(kind),
        "bytes": types.is_binary(kind) or types.is_large_binary(kind),
    }
    for made, is_it in found.items():
        if is_it:
            return made
    raise InputError(
        f"{source}: column {name!r} is of type {kind}, which no field of metadata has; name those to take with fields"
    )


def infer_value(name: str, value: Any) -> str:
    """The type of a field that holds a Python value."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, set | tuple):
        value = list(value)
    try:
        return field_type(name, pa.array([value]).type, "metadata")
    except (pa.ArrowException, TypeError):
        raise InputError(f"field {name!r} is {value!r:.60}: of no type that metadata has") from None
