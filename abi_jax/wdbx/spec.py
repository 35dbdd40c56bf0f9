"""What a collection is: name, dimension, metric, dtype, type of ids, and typed metadata."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import pyarrow as pa

from abi_jax.errors import InputError

METRICS = ("cosine", "l2", "ip")
DTYPES: Mapping[str, np.dtype] = MappingProxyType(
    {
        "float32": np.dtype(np.float32),
        "float16": np.dtype(np.float16),
        "bfloat16": np.dtype(ml_dtypes.bfloat16),
        "int8": np.dtype(np.int8),
    }
)
ID_TYPES = ("str", "int")
MAX_DIM = 65_536
MAX_TENANT = 255
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")
DOCUMENT = "document"  # the field that holds the text of a row
RESERVED = ("id", "vector", "score")
TYPES: Mapping[str, pa.DataType] = MappingProxyType(
    {
        "str": pa.string(),
        "int": pa.int64(),
        "float": pa.float64(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us", "UTC"),
        "bytes": pa.binary(),
        "list[str]": pa.list_(pa.string()),
        "list[int]": pa.list_(pa.int64()),
    }
)


@dataclass(frozen=True)
class CollectionSpec:
    """A collection as it was created, and with the columns that it got since.

    dtype: of what is stored. ids: "str" or "int". schema: metadata fields and their types, names of `TYPES`, in the
    order of their columns. encoder: what its users make vectors of texts with, a name or a path; empty: nothing known.
    tenant: whose data it is, whose keys can be taken away; "" for nobody's in particular.
    """

    name: str
    dim: int
    metric: str = "cosine"
    dtype: str = "float32"
    ids: str = "str"
    schema: tuple[tuple[str, str], ...] = ()
    encoder: str = ""
    tenant: str = ""

    @property
    def numpy_dtype(self) -> np.dtype:
        """The dtype of stored vectors."""
        return DTYPES[self.dtype]

    @property
    def known(self) -> bool:
        """Whether this is what the collection was created as; see `unknown_spec`."""
        return not self.name.startswith("(")

    @property
    def arrow_schema(self) -> pa.Schema:
        """Schema of the metadata alone."""
        return pa.schema([pa.field(name, TYPES[kind]) for name, kind in self.schema])

    def to_json(self) -> dict[str, Any]:
        """What the log and manifests say of the collection."""
        return asdict(self) | {"schema": [list(field) for field in self.schema]}


def read_spec(said: Mapping[str, Any]) -> CollectionSpec:
    """The collection of which `to_json` said this."""
    return CollectionSpec(**{**said, "schema": tuple((name, kind) for name, kind in said["schema"])})


def unknown_spec(number: int) -> CollectionSpec:
    """What stands for a collection whose key nobody has, or whoever reads has not: no name that one can be given."""
    return CollectionSpec(f"(collection {number})", 1)


def make_spec(
    name: str,
    dim: Any,
    metric: str,
    dtype: Any,
    ids: str,
    schema: Mapping[str, Any] | None,
    encoder: str = "",
    tenant: str = "",
) -> CollectionSpec:
    """A collection as a user describes it. Raises `InputError` with the value that does not fit."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InputError(f"collection name {name!r}: expected at most 255 letters, digits, '_', '-', '.', no dot first")
    if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= MAX_DIM:
        raise InputError(f"dim {dim!r}: expected a whole number from 1 to {MAX_DIM}")
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")
    if ids not in ID_TYPES:
        raise InputError(f"ids {ids!r}: expected one of {', '.join(ID_TYPES)}")
    if not isinstance(tenant, str) or len(tenant) > MAX_TENANT or not tenant.isprintable():
        raise InputError(f"tenant {tenant!r}: expected a text of at most {MAX_TENANT} printable characters")
    fields = tuple((_field_name(field), _field_type(field, kind)) for field, kind in (schema or {}).items())
    if not isinstance(encoder, str):
        raise InputError(f"the encoder's name {encoder!r}: expected a text")
    check_text(encoder, f"the encoder's name {encoder!r}")
    return CollectionSpec(name, dim, metric, _dtype_name(dtype), ids, fields, encoder, tenant)


def with_columns(spec: CollectionSpec, schema: Any) -> CollectionSpec:
    """The collection with more columns behind its own. Raises `InputError` with the field that it cannot have."""
    if not isinstance(schema, Mapping) or not schema:
        raise InputError(f"columns {schema!r}: expected types by field, such as {{'year': int}}")
    fields = [(_field_name(field), _field_type(field, kind)) for field, kind in schema.items()]
    for field, _ in fields:
        if field in dict(spec.schema):
            raise InputError(f"collection {spec.name} has a field {field!r} already; expected a new one")
    return replace(spec, schema=(*spec.schema, *fields))


def check_text(text: str, what: str) -> None:
    """Raises `InputError` where a text has halves of characters, which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} is not valid Unicode") from None


def _dtype_name(dtype: Any) -> str:
    try:
        found = np.dtype(dtype).name
    except TypeError:
        found = str(dtype)
    if found not in DTYPES:
        raise InputError(f"dtype {dtype!r}: expected one of {', '.join(DTYPES)}")
    return found


def _field_name(name: Any) -> str:
    if not isinstance(name, str) or not name or name.startswith("$") or name in RESERVED:
        raise InputError(
            f"field {name!r}: expected a name that does not begin with '$' and is none of {', '.join(RESERVED)}"
        )
    check_text(name, f"field {name!r}")
    return name


def _field_type(field: str, kind: Any) -> str:
    for name, arrow in TYPES.items():
        if kind in (name, arrow) or getattr(kind, "__name__", None) == name or str(kind) == name:
            if field == DOCUMENT and name != "str":
                raise InputError(f"field {field!r} has type {name}; it holds a row's text: expected str")
            return name
    raise InputError(f"field {field!r} has type {kind!r}; expected one of {', '.join(TYPES)}")
