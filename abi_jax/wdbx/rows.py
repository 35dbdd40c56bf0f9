"""Rows on their way in: checked, of the collection's types, and as the payload of a record."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa

from abi_jax.errors import InputError
from abi_jax.wdbx.given import as_time, whole
from abi_jax.wdbx.spec import DOCUMENT, CollectionSpec, check_text

LARGEST = 1e15  # of a vector's numbers: their squares are added in float32
MISFITS = (ValueError, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)
Ids = np.ndarray | list[str]  # int64 [n], or texts


@dataclass(frozen=True)
class Rows:
    """Rows of one collection.

    ids: int64 `[n]` or a list of texts, no two alike. vectors: `[n, dim]` of the collection's dtype. metadata: a record
    batch of its schema, `n` rows.
    """

    ids: Ids
    vectors: np.ndarray
    metadata: pa.RecordBatch

    def __len__(self) -> int:
        return len(self.ids)


def make_rows(
    spec: CollectionSpec,
    ids: Iterable[Any],
    vectors: Any,
    metadata: Sequence[Mapping[str, Any]] | Mapping[str, Any] | pa.RecordBatch | pa.Table | None = None,
) -> Rows:
    """Checks rows and gives them the collection's types. Raises `InputError` with the first value that does not fit.

    metadata: a mapping for each row, or columns by name, or Arrow; what is missing is null.
    """
    checked = make_ids(spec, ids)
    array = make_vectors(spec, vectors)
    if len(array) != len(checked):
        raise InputError(f"{len(checked)} ids and {len(array)} vectors; expected as many of one as of the other")
    return Rows(checked, array, make_metadata(spec, metadata, len(checked)))


def make_ids(spec: CollectionSpec, ids: Iterable[Any], unique: bool = True, first: int = 0) -> Ids:
    """Ids of the collection's type; `unique`: refuses the same twice. first: the number of the first, for errors."""
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise InputError(f"ids {ids!r}: expected a list of them")
    given = ids.tolist() if isinstance(ids, np.ndarray | pa.Array | pa.ChunkedArray) else list(ids)
    told, given = given, given if spec.ids == "str" else [whole(each) for each in given]
    for at, each in enumerate(given):
        if each is None or (spec.ids == "str" and not isinstance(each, str)):
            raise InputError(
                f"id {told[at]!r} (number {at + first}): collection {spec.name} has ids of type {spec.ids}"
            )
        if each == "":
            raise InputError(f"id number {at + first} is empty; expected a text of at least one character")
    if unique and len(set(given)) != len(given):
        seen: set[Any] = set()
        again = next(each for each in given if each in seen or seen.add(each))  # type: ignore[func-returns-value]
        raise InputError(f"id {again!r} comes twice in one batch; expected each id once")
    if spec.ids == "str":
        for each in given:
            check_text(each, f"id {each!r}")
        return given
    try:
        return np.array(given, np.int64)
    except OverflowError:
        far = next(each for each in given if not -(2**63) <= each < 2**63)
        raise InputError(f"id {far}: expected a whole number of 64 bits") from None


def unique_ids(ids: Ids) -> Ids:
    """Each id once, where it comes first."""
    return list(dict.fromkeys(ids)) if isinstance(ids, list) else np.array(list(dict.fromkeys(ids.tolist())), np.int64)


def make_vectors(spec: CollectionSpec, vectors: Any, what: str = "vector", first: int = 0) -> np.ndarray:
    """Vectors `[n, dim]` of the collection's dtype, row-major. Raises `InputError` where they do not fit.

    first: the number of the first of them, for errors.
    """
    many = "queries" if what == "query" else f"{what}s"
    try:
        given = np.asarray(vectors)
    except ValueError:
        raise InputError(f"{many} differ in length; expected each of dimension {spec.dim}") from None
    if given.ndim == 1 and given.size == 0:
        given = given.reshape(0, spec.dim)
    if given.ndim != 2 or given.shape[1] != spec.dim:
        raise InputError(
            f"{many} have shape {given.shape}, collection {spec.name} dimension {spec.dim}; expected (n, {spec.dim})"
        )
    if given.dtype.kind not in "fiuV" or (given.dtype.kind == "V" and given.dtype.name != "bfloat16"):
        raise InputError(f"{many} have dtype {given.dtype}; expected numbers")
    if given.dtype == np.float32 == spec.numpy_dtype:
        if len(given) == 1:  # a query: what takes an array no time takes a number less
            fits = 0 < given[0].dot(given[0]) <= LARGEST**2
        else:
            energy = np.einsum("nd,nd->n", given, given)
            fits = bool(((energy > 0) & (energy <= LARGEST**2)).all())
        if fits:
            return np.ascontiguousarray(given)
    with np.errstate(over="ignore"):
        wide = given.astype(np.float32, copy=False)
    if spec.dtype == "int8" and given.dtype != np.int8:
        wrong = (given != np.rint(wide)) | (wide < -128) | (wide > 127)
        _refuse(
            wrong, given, f"{what} %d has %s at %d; collection {spec.name} holds whole numbers from -128 to 127", first
        )
    else:
        _refuse(
            ~(np.abs(wide) <= LARGEST),
            given,
            f"{what} %d has %s at %d; expected finite numbers up to {LARGEST:g}",
            first,
        )
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(given.astype(spec.numpy_dtype, copy=False))
    if spec.dtype != "int8":
        _refuse(~np.isfinite(stored), given, f"{what} %d has %s at %d, which {spec.dtype} cannot hold", first)
    if spec.metric == "cosine":
        zero = ~stored.any(axis=1)
        if zero.any():
            raise InputError(
                f"{what} {int(np.argmax(zero)) + first} is zero, which has no direction; metric cosine needs one"
            )
    return stored


def _refuse(wrong: np.ndarray, given: np.ndarray, message: str, first: int) -> None:
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(message % (row + first, given[row, column], column))


def make_metadata(spec: CollectionSpec, metadata: Any, count: int, first: int = 0) -> pa.RecordBatch:
    """Metadata as a record batch of the collection's schema. first: the number of the first row, for errors."""
    columns: Mapping[str, Any]
    if metadata is None:
        columns = {}
    elif isinstance(metadata, pa.Table | pa.RecordBatch):
        columns = {name: metadata.column(name) for name in metadata.schema.names}
    elif isinstance(metadata, Mapping):
        columns = metadata
    else:
        listed = [each or {} for each in metadata]
        if len(listed) != count:
            raise InputError(f"{len(listed)} entries of metadata for {count} rows; expected one each")
        names = dict.fromkeys(name for each in listed for name in each)
        columns = {name: [each.get(name) for each in listed] for name in names}
    known = dict(spec.schema)
    for name in columns:
        if name not in known:
            has = ", ".join(known) or "none"
            raise InputError(f"field {name!r} is not in collection {spec.name}; its fields: {has}")
    schema = spec.arrow_schema
    arrays = [_column(field, columns.get(field.name), count, first) for field in schema]
    if not arrays:  # a record batch without columns has no rows either
        return pa.RecordBatch.from_arrays([], schema=schema)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def with_documents(spec: CollectionSpec, documents: Sequence[str | None], metadata: Any, count: int) -> pa.Table:
    """Metadata, as `make_metadata` takes it, with the texts of rows."""
    if DOCUMENT not in dict(spec.schema):
        raise InputError(f"collection {spec.name} has no texts; expected one that was made with a field {DOCUMENT!r}")
    if isinstance(documents, str):
        raise InputError(f"documents {documents!r:.60}: expected a list of texts")
    made = make_metadata(spec, metadata, count)
    if made.column(DOCUMENT).null_count != len(made):
        raise InputError(f"metadata has a field {DOCUMENT!r}, and documents are given, too; expected one of them")
    texts = _column(made.schema.field(DOCUMENT), list(documents), count, 0)
    return made.set_column(made.schema.get_field_index(DOCUMENT), DOCUMENT, texts)


def _column(field: pa.Field, values: Any, count: int, first: int) -> pa.Array:
    if values is None:
        return pa.nulls(count, field.type)
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if isinstance(values, np.ndarray) and values.dtype.kind != "M":  # of times, each may be a number
        values = values if _as_stored(values, field.type) else values.tolist()
    try:
        made = _typed(values, field.type)
    except MISFITS as error:
        at, value = _misfit(values, field.type)
        raise InputError(
            f"field {field.name!r} of row {at + first} is {value!r}; expected {field.type}: {error}"
        ) from None
    if isinstance(made, pa.ChunkedArray):  # as Arrow gives back what is too long for one
        raise InputError(f"field {field.name!r} has more than 2 GiB in one write; expected it in parts, or import")
    if len(made) != count:
        raise InputError(f"field {field.name!r} has {len(made)} values for {count} rows; expected one each")
    return made


def _typed(values: Any, kind: pa.DataType) -> pa.Array:
    """Values as a column of a type, which Arrow alone would make of numbers where it is a time."""
    if isinstance(values, np.ndarray):
        if values.dtype.kind == "M" and np.datetime_data(values.dtype)[0] not in ("D", "s", "ms", "us", "ns"):
            values = values.astype("M8[s]")  # Arrow knows no others
        values = pa.array(values)
    elif not isinstance(values, pa.Array | list | tuple):  # such as pandas has, with values that are none
        values = pa.array(values, from_pandas=True)
    if isinstance(values, pa.Array | pa.ChunkedArray):
        if values.type == kind:
            return values
        if not _of_kind(values.type, kind):
            raise pa.ArrowTypeError(f"they are of type {values.type}")
        return values.cast(kind)
    there = set(map(type, values))  # of some that differ, Arrow takes these for a type that all can be made
    wrong: list[type] = []
    if pa.types.is_timestamp(kind):
        wrong = [each for each in there if issubclass(each, int | float | np.number)]
        values = [as_time(each) if isinstance(each, str) or type(each) is date else each for each in values]
    elif not pa.types.is_boolean(kind):
        wrong = [each for each in there if issubclass(each, bool | np.bool_)]
    given = wrong[0].__name__ if wrong else pa.infer_type(values)
    if wrong or not _of_kind(given, kind):
        raise pa.ArrowTypeError(f"it is of type {given}")
    return pa.array(values, kind, from_pandas=pa.types.is_timestamp(kind))  # whose NaT is among times


def _of_kind(given: pa.DataType, kind: pa.DataType) -> bool:
    """Whether values of a type are of a column's kind: of another width or unit they may be, as long as they fit."""
    types = pa.types
    if types.is_null(given):
        return True
    if types.is_dictionary(given):
        return _of_kind(given.value_type, kind)
    if types.is_list(kind):
        listed = types.is_list(given) or types.is_large_list(given) or types.is_fixed_size_list(given)
        return listed and _of_kind(given.value_type, kind.value_type)
    if types.is_int64(kind) or types.is_float64(kind):
        return types.is_integer(given) or types.is_floating(given) or types.is_decimal(given)
    kinds: list[tuple[Callable[[pa.DataType], bool], ...]] = [
        (types.is_timestamp, types.is_date),
        (types.is_string, types.is_large_string, types.is_string_view),
        (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view),
        (types.is_boolean,),
    ]
    return any(each[0](kind) and any(fits(given) for fits in each) for each in kinds)


def _as_stored(values: np.ndarray, kind: pa.DataType) -> bool:
    """Whether Arrow makes of an array what it makes of its values one by one, and without looking at them so."""
    same = {pa.int64(): np.int64, pa.float64(): np.float64, pa.bool_(): np.bool_}
    return type(values) is np.ndarray and values.ndim == 1 and values.dtype == same.get(kind)


def _misfit(values: Any, kind: pa.DataType) -> tuple[int, Any]:
    given = values.to_pylist() if isinstance(values, pa.Array) else list(values)
    for at, value in enumerate(given):
        try:
            _typed([value], kind)
        except MISFITS:
            return at, value
    return 0, given[0] if given else None


def widened(metadata: pa.Table, schema: pa.Schema, count: int) -> pa.Table:
    """Metadata of `count` rows, with the columns of `schema` that they do not have: null."""
    there = metadata.schema.names
    columns = [metadata[each.name] if each.name in there else pa.nulls(count, each.type) for each in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def with_columns_of(spec: CollectionSpec, rows: Rows) -> Rows:
    """The same rows of a collection that has got columns since they were made."""
    if rows.metadata.num_columns == len(spec.schema):
        return rows
    metadata = pa.table(rows.metadata) if rows.metadata.num_columns else pa.table({})
    (batch,) = widened(metadata, spec.arrow_schema, len(rows)).to_batches()
    return replace(rows, metadata=batch)


def encode_rows(spec: CollectionSpec, rows: Rows) -> bytes:
    """The payload of an upsert: one Arrow record batch message."""
    width = spec.dim * spec.numpy_dtype.itemsize
    flat = pa.py_buffer(rows.vectors.reshape(-1).view(np.uint8))
    vectors = pa.Array.from_buffers(pa.binary(width), len(rows), [None, flat])
    arrays = [_id_array(spec, rows.ids), vectors, *rows.metadata.columns]
    return pa.RecordBatch.from_arrays(arrays, schema=_schema(spec)).serialize().to_pybytes()


def decode_rows(spec: CollectionSpec, payload: bytes) -> Rows:
    """The rows of `encode_rows`; vectors and metadata share the payload's memory."""
    batch = pa.ipc.read_record_batch(pa.py_buffer(payload), _schema(spec))
    stored = batch.column(1)
    width = spec.dim * spec.numpy_dtype.itemsize
    data = memoryview(stored.buffers()[1])[stored.offset * width : (stored.offset + len(stored)) * width]
    vectors = np.frombuffer(data, np.uint8).view(spec.numpy_dtype).reshape(len(stored), spec.dim)
    return Rows(_ids_of(spec, batch.column(0)), vectors, batch.select([name for name, _ in spec.schema]))


def encode_ids(spec: CollectionSpec, ids: Ids) -> bytes:
    """The payload of a delete."""
    schema = pa.schema([_schema(spec).field("id")])
    return pa.RecordBatch.from_arrays([_id_array(spec, ids)], schema=schema).serialize().to_pybytes()


def decode_ids(spec: CollectionSpec, payload: bytes) -> Ids:
    """The ids of `encode_ids`."""
    schema = pa.schema([_schema(spec).field("id")])
    return _ids_of(spec, pa.ipc.read_record_batch(pa.py_buffer(payload), schema).column(0))


def _schema(spec: CollectionSpec) -> pa.Schema:
    kind = pa.string() if spec.ids == "str" else pa.int64()
    vector = pa.binary(spec.dim * spec.numpy_dtype.itemsize)
    return pa.schema([pa.field("id", kind), pa.field("vector", vector), *spec.arrow_schema])


def _id_array(spec: CollectionSpec, ids: Ids) -> pa.Array:
    return pa.array(ids, pa.string() if spec.ids == "str" else pa.int64())


def _ids_of(spec: CollectionSpec, column: pa.Array) -> Ids:
    listed: list[str] = column.to_pylist() if spec.ids == "str" else []
    return listed if spec.ids == "str" else np.asarray(column.to_numpy())
