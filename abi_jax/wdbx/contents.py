"""What a store holds at its last version, in memory. Every record changes it, just written or read."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.log.record import GENESIS, Head, Kind, Record
from abi_jax.wdbx.rows import decode_ids, decode_rows
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.spec import CollectionSpec, read_spec, unknown_spec
from abi_jax.wdbx.tail import Tail


@dataclass(frozen=True)
class RowSet:
    """Where a collection's rows are: in segments, then in a tail. Replaced whole: a reader sees every row once.

    views: what was made of them to be read last, by what it was made for.
    """

    segments: tuple[Segment, ...]
    tail: Tail
    views: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Arrival:
    """What an import brings: segments, and rows of segments that die with it, int64 `[m]` by the segment's number."""

    segments: tuple[Segment, ...]
    deaths: dict[int, np.ndarray]


@dataclass
class Collection:
    """A collection at the last version.

    horizon: the first version of it that can still be read. dropped, erased: the version, 0 while it is there.
    retention: seconds for which all versions can be read, None for what its store is opened with.
    deaths: of rows of segments, since the last sealing: segment, row, version.
    """

    number: int
    spec: CollectionSpec
    created: int
    rows: RowSet
    horizon: int = 0
    dropped: int = 0
    erased: int = 0
    retention: float | None = None
    deaths: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def tail(self) -> Tail:
        """Rows that only the log holds."""
        return self.rows.tail

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Sealed rows."""
        return self.rows.segments


class Contents:
    """Collections, tags and the heads of versions that were read or written, oldest first."""

    def __init__(self) -> None:
        self.version = 0
        self.time = 0
        self.link = GENESIS
        self.collections: dict[int, Collection] = {}
        self.tags: dict[str, int] = {}
        self.heads: list[Head] = []
        self.arrivals: dict[int, Arrival] = {}  # of versions that are about to be written
        self.parents: dict[int, list[dict[str, Any]]] = {}  # links of model checkpoints, by version
        self.left_out: dict[int, str] = {}  # collections that cannot be shown, and why

    def named(self) -> dict[str, Collection]:
        """Collections that have not been dropped, by name; not those that are left out."""
        there = (each for each in list(self.collections.values()) if each.number not in self.left_out)
        return {each.spec.name: each for each in there if not each.dropped}

    def dropped(self, number: int) -> bool:
        """Whether a collection was."""
        return number in self.collections and self.collections[number].dropped > 0

    def columns(self, number: int) -> int | None:
        """How many columns a collection has; None where there is none."""
        return len(self.collections[number].spec.schema) if number in self.collections else None

    def apply(self, record: Record) -> Any:
        """Does what a record says. Returns the number of rows that an upsert replaced or a delete found."""
        head = record.head
        result: Any = None
        if head.kind is Kind.CREATE:
            spec = read_spec(self._said(record))
            number = head.collection
            self.collections[number] = Collection(number, spec, head.version, RowSet((), Tail(spec)), head.version)
        elif head.kind is Kind.DROP:
            self._collection(head).dropped = head.version
        elif head.kind is Kind.UPSERT:
            result = self._upsert(record)
        elif head.kind is Kind.DELETE:
            result = self._delete(record)
        elif head.kind is Kind.TAG:
            said = self._said(record)
            if said["version"] is None:
                self.tags.pop(said["name"], None)
            else:
                self.tags[said["name"]] = said["version"]
        elif head.kind is Kind.SEAL:
            result = self._take_in(head, self._said(record))
        elif head.kind is Kind.PARENTS:
            self.parents[head.version] = self._said(record)["parents"]
        elif head.kind is Kind.ERASE:
            for number in self._said(record)["collections"]:
                self._erase(number, head.version)
        elif head.kind is Kind.COLUMNS:
            self._add_columns(head, self._said(record)["columns"])
        elif head.kind is Kind.SETTINGS:
            self._collection(head).retention = self._said(record).get("retention")
        self._go_on(head)
        return result

    def skip(self, head: Head) -> None:
        """Goes on behind a version that nobody can read any more: its key was erased."""
        if head.kind is Kind.CREATE:
            spec = unknown_spec(head.collection)
            rows = RowSet((), Tail(spec))
            self.collections[head.collection] = Collection(head.collection, spec, head.version, rows, head.version)
        self._go_on(head)

    def _erase(self, number: int, version: int) -> None:
        if number in self.collections:
            spec, each = unknown_spec(number), self.collections[number]
            each.spec, each.rows, each.deaths = spec, RowSet((), Tail(spec)), []
            each.dropped, each.erased = each.dropped or version, version

    def _go_on(self, head: Head) -> None:
        self.heads.append(head)
        self.version, self.time, self.link = head.version, head.time, head.link

    def _said(self, record: Record) -> dict[str, Any]:
        try:
            said: dict[str, Any] = json.loads(record.payload) if record.payload else {}
        except ValueError:
            raise DamagedError(f"version {record.head.version} does not say what it did") from None
        return said

    def _collection(self, head: Head) -> Collection:
        found = self.collections.get(head.collection)
        if found is None:
            raise DamagedError(f"version {head.version} changes collection {head.collection}, which was never created")
        return found

    def _add_columns(self, head: Head, added: list[list[str]]) -> None:
        """Rows that are there have no values in them. What others read stays as it was."""
        collection = self._collection(head)
        spec = collection.spec
        spec = replace(spec, schema=(*spec.schema, *((name, kind) for name, kind in added)))
        segments = tuple(each.with_columns(spec) for each in collection.segments)
        collection.rows = RowSet(segments, collection.tail.with_columns(spec))
        collection.spec = spec

    def _take_in(self, head: Head, said: dict[str, Any]) -> int:
        """Rows of an import, which a manifest has; how many rows they replaced that only the log has."""
        if said.get("why") != "import":
            return 0
        collection, arrival = self._collection(head), self.arrivals.pop(head.version, Arrival((), {}))
        segments = (*collection.segments, *arrival.segments)
        for segment in segments:
            if segment.number in arrival.deaths:
                segment.die(arrival.deaths[segment.number], head.version)
        new = [each for each in segments if each.first == head.version]
        replaced = collection.tail.replaced(head.version, [each.ids for each in new])
        collection.rows = RowSet(segments, collection.tail)
        return replaced

    def _upsert(self, record: Record) -> int:
        collection = self._collection(record.head)
        rows = decode_rows(collection.spec, record.payload)
        replaced = self._kill(collection, record.head.version, rows.ids)
        return replaced + collection.tail.append(record.head.version, rows)

    def _delete(self, record: Record) -> int:
        collection = self._collection(record.head)
        ids = decode_ids(collection.spec, record.payload)
        in_tail = collection.tail.kill(record.head.version, ids if isinstance(ids, list) else ids.tolist())
        return len(in_tail) + self._kill(collection, record.head.version, ids)

    def _kill(self, collection: Collection, version: int, ids: Any) -> int:
        dead = 0
        for segment in collection.segments:
            rows = segment.kill(version, ids)
            collection.deaths += [(segment.number, row, version) for row in rows.tolist()]
            dead += len(rows)
        return dead
