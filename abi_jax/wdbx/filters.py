"""Filters on metadata, as Chroma and Pinecone have them: `{"lang": "en", "year": {"$gte": 2020}, "$or": [...]}`.

A row without a value passes no comparison but `$ne`, `$nin` and `{"$exists": False}`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from abi_jax.errors import InputError
from abi_jax.wdbx.spec import CollectionSpec

COMPARE: Mapping[str, Callable[..., Any]] = {
    "$eq": pc.equal,
    "$ne": pc.not_equal,
    "$gt": pc.greater,
    "$gte": pc.greater_equal,
    "$lt": pc.less,
    "$lte": pc.less_equal,
}
OPERATORS = (*COMPARE, "$in", "$nin", "$contains", "$exists")
JOINED = ("$and", "$or", "$not")
Filter = Callable[[pa.Table], np.ndarray]


def make_filter(spec: CollectionSpec, where: Mapping[str, Any]) -> Filter:
    """A function from metadata to the rows that pass, bool `[n]`. Raises `InputError` where it does not fit `spec`."""
    if not isinstance(where, Mapping):
        raise InputError(f'filter {where!r}: expected a mapping, such as {{"year": {{"$gte": 2020}}}}')
    return _all([_clause(spec, key, value) for key, value in where.items()])


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
    if name == "$contains":
        return _contains(field, kind, operand)
    if pa.types.is_list(kind):
        raise InputError(f"filter on {field!r}, a list: {name}; expected $contains or $exists")
    if name in ("$in", "$nin"):
        if not isinstance(operand, list | tuple | set):
            raise InputError(f"filter on {field!r}: {name} {operand!r}; expected a list")
        values = pa.array([_value(field, kind, each) for each in operand], kind)
        among = lambda table: _mask(table, pc.and_(pc.is_in(table[field], values), pc.is_valid(table[field])))  # noqa: E731
        return among if name == "$in" else lambda table: ~among(table)
    if operand is None and name in ("$eq", "$ne"):
        return _operator(field, kind, "$exists", name == "$ne")
    value = pa.scalar(_value(field, kind, operand), kind)
    compare = COMPARE[name]
    return lambda table: _mask(table, compare(table[field], value), missing=name == "$ne")


def _contains(field: str, kind: pa.DataType, operand: Any) -> Filter:
    if pa.types.is_string(kind):
        text = _value(field, kind, operand)
        return lambda table: _mask(table, pc.match_substring(table[field], text))
    if not pa.types.is_list(kind):
        raise InputError(f"filter on {field!r}, {kind}: $contains; expected a text or a list")
    value = pa.scalar(_value(field, kind.value_type, operand), kind.value_type)

    def among(table: pa.Table) -> np.ndarray:
        column = table[field].combine_chunks()
        hits = np.asarray(pc.fill_null(pc.equal(pc.list_flatten(column), value), False))
        parents = np.asarray(pc.list_parent_indices(column))
        passed = np.zeros(len(table), bool)
        passed[parents[hits]] = True
        return passed

    return among


def _value(field: str, kind: pa.DataType, value: Any) -> Any:
    """`value`, where it is of the field's type; whole numbers are numbers, but nothing else is turned into anything."""
    fits = {
        pa.types.is_string: isinstance(value, str),
        pa.types.is_int64: isinstance(value, int) and not isinstance(value, bool),
        pa.types.is_float64: isinstance(value, int | float) and not isinstance(value, bool),
        pa.types.is_boolean: isinstance(value, bool),
        pa.types.is_binary: isinstance(value, bytes),
    }
    for of_kind, fit in fits.items():
        if of_kind(kind) and not fit:
            raise InputError(f"filter on {field!r} compares with {value!r}; the field has type {kind}")
    try:
        pa.scalar(value, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        raise InputError(f"filter on {field!r} compares with {value!r}; the field has type {kind}") from None
    return value


def _mask(table: pa.Table, passed: pa.ChunkedArray, missing: bool = False) -> np.ndarray:
    return np.asarray(pc.fill_null(passed, missing)).astype(bool) if len(table) else np.zeros(0, bool)


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
