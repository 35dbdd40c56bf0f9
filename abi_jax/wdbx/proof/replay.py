"""What versions behind a manifest did to one id of a collection."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from abi_jax.wdbx.log.record import Head, Kind
from abi_jax.wdbx.rows import Rows, decode_ids, decode_rows
from abi_jax.wdbx.spec import CollectionSpec, read_spec
from abi_jax.wdbx.view import Row

TELLING = (Kind.CREATE, Kind.DROP, Kind.UPSERT, Kind.DELETE, Kind.COLUMNS)


@dataclass
class State:
    """A collection (None: it is not there), and one id of it.

    touched: the last version that said something of the id, 0 for none; row: what it said, None where it deleted it.
    """

    spec: CollectionSpec | None
    touched: int = 0
    row: Row | None = None


def tells(head: Head, collection: int) -> bool:
    """Whether a version changed the collection, or rows of it, and its payload says how."""
    return head.collection == collection and head.kind in TELLING


def brings(head: Head, collection: int) -> bool:
    """Whether a version imported rows, which are in segments."""
    return head.collection == collection and head.kind is Kind.SEAL


def replay(state: State, id_: str | int, versions: Iterable[tuple[Head, bytes]]) -> State:
    """Does to `state` what versions did, oldest first. Raises `ValueError` where one did what cannot be done."""
    for head, payload in versions:
        spec, at = state.spec, head.version
        if head.kind is Kind.CREATE:
            state = State(read_spec(json.loads(payload)), at)
        elif spec is None:
            raise ValueError(f"version {at} changes a collection that is not there")
        elif head.kind is Kind.DROP:
            state = State(None, at)
        elif head.kind is Kind.COLUMNS:
            added = tuple((name, kind) for name, kind in json.loads(payload)["columns"])
            state = replace(state, spec=replace(spec, schema=(*spec.schema, *added)))
        elif head.kind is Kind.UPSERT:
            rows = decode_rows(spec, payload)
            row = _where(rows.ids, id_)
            state = state if row is None else State(spec, at, _row(spec, rows, row, at))
        elif _where(decode_ids(spec, payload), id_) is not None:
            state = State(spec, at)
    return state


def _where(ids: Any, id_: str | int) -> int | None:
    listed = ids if isinstance(ids, list) else ids.tolist()
    return listed.index(id_) if id_ in listed else None


def _row(spec: CollectionSpec, rows: Rows, at: int, version: int) -> Row:
    about = rows.metadata.slice(at, 1).to_pylist() if spec.schema else [{}]
    kept = {name: value for name, value in about[0].items() if value is not None}
    ids = rows.ids if isinstance(rows.ids, list) else rows.ids.tolist()
    return Row(ids[at], rows.vectors[at].copy(), kept, version)
