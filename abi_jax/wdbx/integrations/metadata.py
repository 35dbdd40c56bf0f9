"""Metadata without a schema, in a store that has one: declared fields are columns, all the rest is JSON in another."""

import json
from collections.abc import Mapping
from typing import Any

from abi_jax.errors import InputError
from abi_jax.wdbx.collection import CollectionHandle
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.spec import DOCUMENT

REST = "metadata_json"


def open_collection(
    database: Database, name: str, dim: int, metric: str, schema: Mapping[str, Any] | None
) -> CollectionHandle:
    """The collection of that name; made, where there is none, with the fields of `schema`, texts, and `REST`."""
    if name in database.collections():
        found = database.collection(name)
        known = dict(found.spec.schema)
        if missing := [field for field in (DOCUMENT, REST, *(schema or {})) if field not in known]:
            raise InputError(f"collection {name} has no field {missing[0]!r}; its fields: {', '.join(known) or 'none'}")
        return found
    return database.create_collection(name, dim, metric, schema={**(schema or {}), DOCUMENT: str, REST: str})


def pack(collection: CollectionHandle, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as fields of the collection."""
    known = dict(collection.spec.schema)
    made = {name: value for name, value in metadata.items() if name in known and name not in (DOCUMENT, REST)}
    rest = {name: value for name, value in metadata.items() if name not in made}
    try:
        return made | ({REST: json.dumps(rest, ensure_ascii=False)} if rest else {})
    except (TypeError, ValueError) as error:
        raise InputError(f"metadata {rest!r:.100} cannot be stored as JSON: {error}") from None


def unpack(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What `pack` was given; the order of entries may differ."""
    made = {name: value for name, value in fields.items() if name != REST}
    rest: dict[str, Any] = json.loads(fields[REST]) if REST in fields else {}
    return rest | made
