"""Rows that only the log holds: in memory, in the order of their birth, searchable as soon as they are acknowledged."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from abi_jax.wdbx.ids import IdColumn
from abi_jax.wdbx.rows import Rows, widened
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.text.postings import GrowingPostings, Postings

if TYPE_CHECKING:
    from abi_jax.wdbx.search.codes import Codes, CodesMaker

ALIVE = np.iinfo(np.int64).max  # the version at which a row dies that has not
SMALLEST, LARGEST = 1 << 10, 1 << 15  # rows there is room for at first; it grows by doubling
FEW = 256  # rows whose metadata are taken from where they are
JOINED = 256 << 20  # bytes of metadata that are joined, at most: Arrow's texts end at 2 GiB in a column
ROOM_BYTES = 64 << 20  # of vectors there is room for at first: memory that is not used is not taken


class Tail:
    """Rows `0` to `count`, of which none is ever moved or changed; only `died` changes, from `ALIVE`, once a row.

    A reader of version v may therefore look at a tail while it grows: it takes the rows that were there at v, and
    every row whose death is later than v is alive to it. metadata_bytes: of all rows.
    """

    def __init__(self, spec: CollectionSpec) -> None:
        self.spec = spec
        self.count = 0
        room = min(LARGEST, max(SMALLEST, ROOM_BYTES // (spec.dim * spec.numpy_dtype.itemsize)))
        self.vectors = np.empty((room, spec.dim), spec.numpy_dtype)
        self.born = np.empty(room, np.int64)
        self.died = np.full(room, ALIVE, np.int64)
        self.ids: list[Any] = []
        self.numbers = np.empty(room if spec.ids == "int" else 0, np.int64)  # the same, where they are numbers
        self._rows: dict[Any, int] = {}  # of an id, the newest
        self._metadata: list[pa.RecordBatch] = []
        self._starts: list[int] = []  # the first row of each batch of metadata
        self.metadata_bytes = 0
        self._postings: dict[str, GrowingPostings] = {}

    def __len__(self) -> int:
        return self.count

    def append(self, version: int, rows: Rows) -> int:
        """Adds rows that are born at `version`; how many of their ids had a row here that was alive, and is not now."""
        ids = rows.ids.tolist() if isinstance(rows.ids, np.ndarray) else rows.ids
        replaced = len(self.kill(version, ids))
        start, end = self.count, self.count + len(ids)
        self._make_room(end)
        self.vectors[start:end] = rows.vectors
        self.born[start:end] = version
        if len(self.numbers):
            self.numbers[start:end] = rows.ids
        self.ids.extend(ids)
        self._rows.update(zip(ids, range(start, end), strict=True))
        self._starts.append(start)
        self._metadata.append(_alone(rows.metadata))
        self.metadata_bytes += rows.metadata.nbytes
        self.count = end
        return replaced

    def kill(self, version: int, ids: Sequence[Any]) -> list[Any]:
        """Lets the rows of ids die at `version`; the ids that had one here."""
        dead = [each for each in ids if each in self._rows]
        self.died[[self._rows[each] for each in dead]] = version
        for each in dead:  # who does not find it any more must see that it died
            del self._rows[each]
        return dead

    def replaced(self, version: int, others: Sequence[IdColumn]) -> int:
        """Lets the rows die whose ids are in `others`; how many did."""
        ids = list(self._rows)
        there = np.zeros(len(ids), bool)
        for each in others if ids else ():
            there |= each.find(ids) >= 0
        return len(self.kill(version, [each for each, found in zip(ids, there.tolist(), strict=True) if found]))

    def find(self, ids: Sequence[Any], count: int, version: int) -> np.ndarray:
        """Of each id the row alive at `version` among the first `count`, int64 `[n]`; -1 where there is none."""
        rows = np.full(len(ids), -1, np.int64)
        for i, each in enumerate(ids):
            row = self._rows.get(each, -1)
            if 0 <= row < count and self.born[row] <= version < self.died[row]:
                rows[i] = row
        missing: dict[Any, list[int]] = {}
        for i in np.flatnonzero(rows < 0).tolist():
            missing.setdefault(ids[i], []).append(i)
        if missing and version < self._newest(count):  # an older row of the id may have been alive then
            for row in np.flatnonzero(self.alive(count, version)).tolist():
                if self.ids[row] in missing:
                    rows[missing[self.ids[row]]] = row
        return rows

    def _newest(self, count: int) -> int:
        died = self.died[: self.count]
        latest_death = int(died[died != ALIVE].max(initial=0))
        return max(int(self.born[: self.count].max(initial=0)), latest_death)

    def alive(self, count: int, version: int) -> np.ndarray:
        """Which of the first `count` rows are alive at `version`, bool `[count]`."""
        return (self.born[:count] <= version) & (version < self.died[:count])

    @cached_property
    def _codes(self) -> "CodesMaker":
        from abi_jax.wdbx.search.codes import CodesMaker

        return CodesMaker(self.spec.metric, self.spec.dim, self.spec.numpy_dtype)

    def codes(self, count: int) -> "Codes":
        """Codes of the first `count` vectors; each is made once."""
        return self._codes.of(self.vectors[:count])

    def metadata(self, count: int) -> pa.Table:
        """Metadata of the first `count` rows."""
        return pa.Table.from_batches(self._metadata, schema=self.spec.arrow_schema).slice(0, count)

    def metadata_of(self, rows: np.ndarray) -> pa.Table:
        """Metadata of rows, ascending. All are joined only where that is quicker, and not too much for a column."""
        if len(rows) > FEW and self.metadata_bytes < JOINED:
            return self.metadata(self.count).take(pa.array(rows))
        batches = np.searchsorted(np.array(self._starts[: len(self._metadata)], np.int64), rows, "right") - 1
        parts = []
        for run in np.split(rows, np.flatnonzero(np.diff(batches)) + 1) if self.spec.schema and len(rows) else ():
            number = int(batches[np.searchsorted(rows, run[0])])
            parts.append(self._metadata[number].take(pa.array(run - self._starts[number])))
        return pa.Table.from_batches(parts, schema=self.spec.arrow_schema)

    def postings(self, field: str, count: int) -> Sequence[tuple[int, Postings]]:
        """Words of a field of texts, in pieces: first row and postings. They may go beyond `count`."""
        return self._postings.setdefault(field, GrowingPostings()).up_to(self.metadata(count)[field])

    @property
    def worded(self) -> tuple[str, ...]:
        """Fields whose words were asked for."""
        return tuple(self._postings)

    def rest(self, count: int) -> "Tail":
        """A tail of the rows behind the first `count`."""
        made = Tail(self.spec)
        made._make_room(self.count - count)
        made.count = self.count - count
        for name in self._columns:
            getattr(made, name)[: made.count] = getattr(self, name)[count : self.count]
        made.ids = self.ids[count:]
        made._rows = {each: row - count for each, row in self._rows.items() if row >= count}
        made._set_metadata(self.metadata(self.count).slice(count).to_batches() if self.spec.schema else [])
        return made

    def with_columns(self, spec: CollectionSpec) -> "Tail":
        """A tail of the same rows, of a collection that has got columns: they have no values in them."""
        made = self.rest(0)
        made.spec = spec
        table = widened(self.metadata(self.count) if self.spec.schema else pa.table({}), spec.arrow_schema, self.count)
        made._set_metadata(table.to_batches())
        return made

    def _set_metadata(self, batches: list[pa.RecordBatch]) -> None:
        self._metadata = batches
        self.metadata_bytes = sum(each.nbytes for each in batches)
        self._starts = [0, *accumulate(map(len, batches[:-1]))] if batches else []

    @property
    def _columns(self) -> tuple[str, ...]:
        return ("vectors", "born", "died", *(["numbers"] if len(self.numbers) else []))

    def _make_room(self, count: int) -> None:
        room = len(self.born)
        if count <= room:
            return
        while room < count:
            room *= 2
        for name in self._columns:
            old = getattr(self, name)
            new = np.empty((room, *old.shape[1:]), old.dtype)
            new[: self.count] = old[: self.count]
            if name == "died":
                new[self.count :] = ALIVE
            setattr(self, name, new)


def _alone(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same in memory of its own: what it was read from has vectors, too, and would stay as long."""
    return pa.ipc.read_record_batch(batch.serialize(), batch.schema) if batch.num_columns else batch
