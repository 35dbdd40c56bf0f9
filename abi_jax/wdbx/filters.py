"""Filters on metadata, as Chroma and Pinecone have them: `{"lang": "en", "year": {"$gte": 2020}, "$or": [...]}`.

| operator | rows that pass |
|---|---|
| `$eq`, or the value alone; `$ne` | the value is that; it is not. `None` for no value |
| `$gt`, `$gte`, `$lt`, `$lte` | numbers, times, texts (by code point), bytes |
| `$in`, `$nin` | the value is one of a list; it is none of them |
| `$contains`, `$not_contains` | a text has that text in it, a list that element; not so |
| `$regex`, `$not_regex` | a text has a match in it (RE2); not so |
| `$exists` | `True`: there is a value; `False`: there is none |
| `$and`, `$or`, `$not` | of filters |

Of a list `$eq`, `$ne`, `$in` and `$nin` ask for its elements: `{"tags": "new"}` is `{"tags": {"$contains": "new"}}`. A
row without a value passes no comparison but those that say "not". A time is a `datetime` (UTC where it has no zone), a
`date`, or either as ISO 8601.
"""

from collections.abc import Callable, Mapping
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from abi_jax.errors import InputError
from abi_jax.wdbx.given import as_time
from abi_jax.wdbx.spec import CollectionSpec

COMPARE: Mapping[str, Callable[..., Any]] = {
    "$eq": pc.equal,
    "$gt": pc.greater,
    "$gte": pc.greater_equal,
    "$lt": pc.less,
    "$lte": pc.less_equal,
}
DENIED: Mapping[str, str] = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains", "$not_regex": "$regex"}
ORDERED = ("$gt", "$gte", "$lt", "$lte")
OPERATORS = ("$eq", "$ne", *ORDERED, "$in", "$nin", "$contains", "$not_contains", "$regex", "$not_regex", "$exists")
JOINED = ("$and", "$or", "$not")
ONE_ROW = pa.table({"": pa.nulls(1)}).select([])  # of a collection without fields
Filter = Callable[[pa.Table], np.ndarray]


def make_filter(spec: CollectionSpec, where: Mapping[str, Any]) -> Filter:
    """A function from metadata to the rows that pass, bool `[n]`. Raises `InputError` where it does not fit `spec`."""
    if not isinstance(where, Mapping):
        raise InputError(f'filter {where!r}: expected a mapping, such as {{"year": {{"$gte": 2020}}}}')
    return _all([_clause(spec, key, value) for key, value in where.items()])


def key_of(where: Any) -> str:
    """Says what a filter is: of two that let other rows pass, never the same."""
    if isinstance(where, Mapping):
        return "{" + ", ".join(f"{key!r}: {key_of(value)}" for key, value in where.items()) + "}"
    if isinstance(where, list | tuple | set | frozenset):
        return "[" + ", ".join(map(key_of, where)) + "]"
    return repr(where)


def _clause(spec: CollectionSpec, key: Any, value: Any) -> Filter:
    if key in ("$and", "$or"):
        if not isinstance(value, list | tuple) or not value:
            raise InputError(f"filter {key}: {value!r}; expected a list of filters")
        inner = [make_filter(spec, each) for each in value]
        return _all(inner) if key == "$and" else _any(inner)
    if key == "$not":
        denied = make_filter(spec, value)
        return lambda table: ~denied(table)
    fields = dict(spec.schema)
    if key not in fields:
        has = ", ".join(fields) or "none"
        raise InputError(f"filter on {key!r}: collection {spec.name} has the fields {has}; or {', '.join(JOINED)}")
    kind = spec.arrow_schema.field(key).type
    wanted = value if isinstance(value, Mapping) else {"$eq": value}
    if not wanted:
        raise InputError(f"filter on {key!r} is empty; expected one of {', '.join(OPERATORS)}")
    return _all([_operator(key, kind, name, operand) for name, operand in wanted.items()])


def _operator(field: str, kind: pa.DataType, name: Any, operand: Any) -> Filter:
    if name not in OPERATORS:
        raise InputError(f"filter on {field!r} has {name!r}; expected one of {', '.join(OPERATORS)}")
    if name == "$exists":
        if not isinstance(operand, bool):
            raise InputError(f"filter on {field!r}: $exists {operand!r}; expected true or false")
        return lambda table: _mask(table, pc.is_valid(table[field]) if operand else pc.is_null(table[field]))
    if operand is None and name in ("$eq", "$ne"):
        return _operator(field, kind, "$exists", name == "$ne")
    if name in DENIED:
        granted = _operator(field, kind, DENIED[name], operand)
        return lambda table: ~granted(table)
    if pa.types.is_list(kind):
        return _of_list(field, kind.value_type, name, operand)
    if name in ("$contains", "$regex"):
        return _of_text(field, kind, name, operand)
    if name == "$in":
        values = _values(field, kind, operand)
        if pa.types.is_float64(kind):  # Arrow tells -0.0 from 0.0
            return lambda table: np.isin(table[field].to_numpy(), values.to_numpy(zero_copy_only=False))
        return lambda table: _mask(table, pc.and_(pc.is_in(table[field], values), pc.is_valid(table[field])))
    if name in ORDERED and pa.types.is_boolean(kind):
        raise InputError(f"filter on {field!r}, {kind}: {name}; expected $eq, $ne, $in or $nin")
    value = _scalar(field, kind, operand)
    compare = COMPARE[name]
    return lambda table: _mask(table, compare(table[field], value))


def _of_text(field: str, kind: pa.DataType, name: str, operand: Any) -> Filter:
    if not pa.types.is_string(kind):
        raise InputError(f"filter on {field!r}, {kind}: {name}; expected a text{' or a list' * (name == '$contains')}")
    text = _value(field, kind, operand)
    if name == "$contains":
        return lambda table: _mask(table, pc.match_substring(table[field], text))
    try:
        pc.match_substring_regex(pa.array([""]), text)
    except pa.ArrowInvalid as error:
        raise InputError(f"filter on {field!r}: $regex {text!r} is no regular expression: {error}") from None
    return lambda table: _mask(table, pc.match_substring_regex(table[field], text))


def _of_list(field: str, kind: pa.DataType, name: str, operand: Any) -> Filter:
    """Whether any element is one of those asked for."""
    if name not in ("$eq", "$contains", "$in"):
        raise InputError(f"filter on {field!r}, a list: {name}; expected $contains, $eq, $ne, $in, $nin or $exists")
    values = _values(field, kind, operand if name == "$in" else [operand])

    def among(table: pa.Table) -> np.ndarray:
        column = table[field].combine_chunks()
        hits = np.asarray(pc.is_in(pc.list_flatten(column), values)).astype(bool)
        parents = np.asarray(pc.list_parent_indices(column))
        passed = np.zeros(len(table), bool)
        passed[parents[hits]] = True
        return passed

    return among


def _values(field: str, kind: pa.DataType, operand: Any) -> pa.Array:
    if not isinstance(operand, list | tuple | set | frozenset):
        raise InputError(f"filter on {field!r}: $in or $nin {operand!r}; expected a list")
    scalars = [_scalar(field, kind, each) for each in operand]
    return pa.array([each.as_py() for each in scalars], kind)


def _scalar(field: str, kind: pa.DataType, value: Any) -> pa.Scalar:
    return pa.scalar(_value(field, kind, value), kind)


def _value(field: str, kind: pa.DataType, value: Any) -> Any:
    """`value`, where it is of the field's type; whole numbers are numbers, but nothing else is turned into anything."""
    value = value.item() if isinstance(value, np.number | np.bool_) else value
    fits = {
        pa.types.is_string: isinstance(value, str),
        pa.types.is_int64: isinstance(value, int) and not isinstance(value, bool),
        pa.types.is_float64: isinstance(value, int | float) and not isinstance(value, bool) and value == value,
        pa.types.is_boolean: isinstance(value, bool),
        pa.types.is_binary: isinstance(value, bytes),
        pa.types.is_timestamp: isinstance(value, date | str),
    }
    wrong = f"filter on {field!r} compares with {value!r}; the field has type {kind}"
    for of_kind, fit in fits.items():
        if of_kind(kind) and not fit:
            raise InputError(wrong)
    try:
        made = as_time(value) if pa.types.is_timestamp(kind) else value
        pa.scalar(made, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeEncodeError, ValueError):
        raise InputError(wrong) from None
    return made


def _mask(table: pa.Table, passed: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(passed, False)).astype(bool) if len(table) else np.zeros(0, bool)


def _all(filters: list[Filter]) -> Filter:
    def passed(table: pa.Table) -> np.ndarray:
        made = np.ones(len(table), bool)
        for each in filters:
            made &= each(table)
        return made

    return passed


def _any(filters: list[Filter]) -> Filter:
    def passed(table: pa.Table) -> np.ndarray:
        made = np.zeros(len(table), bool)
        for each in filters:
            made |= each(table)
        return made

    return passed
