"""Sealed rows: immutable arrays, sorted by id, and the versions at which rows of them died since."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa

from abi_jax.wdbx.crypto.pages import SealedArrays
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.filters import Filter
from abi_jax.wdbx.ids import IdColumn, IntIds, TextIds, order_of_ids, text_arrays, text_column
from abi_jax.wdbx.rows import widened
from abi_jax.wdbx.search.flat import row_norms
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.stored_codes import stored_codes
from abi_jax.wdbx.stored_lists import StoredLists
from abi_jax.wdbx.tail import ALIVE
from abi_jax.wdbx.text.postings import Postings, make_postings

if TYPE_CHECKING:
    from abi_jax.wdbx.search.codes import Codes
    from abi_jax.wdbx.search.index import Index, IndexMaker, ListsMaker, ProductMaker
    from abi_jax.wdbx.search.ivf import Lists
    from abi_jax.wdbx.search.products import ProductIndex

FILTERS_KEPT = 4  # a byte a row each
OPENED_WHOLE = 4 << 20  # bytes of encrypted vectors: less than that is opened in a few milliseconds


class Segment:
    """Rows of a step. When they died is the only thing that changes, once a row."""

    def __init__(self, number: int, spec: CollectionSpec, first: int, arrays: Mapping[str, np.ndarray]) -> None:
        """first: the version that `born` counts from. arrays: as `segment_arrays` made them, perhaps mapped."""
        self.number = number
        self.spec = spec
        self.first = first
        self._arrays = arrays
        self._sealed = arrays if isinstance(arrays, SealedArrays) else None
        self._count = self._sealed.shape("vectors")[0] if self._sealed else len(arrays["vectors"])
        self._died: np.ndarray | None = None
        self._codes: Codes | None = None
        self._index: IndexMaker | None = None
        self._listing: ListsMaker | None = None
        self._making_products: ProductMaker | None = None
        self._products: ProductIndex | None = None
        self.stored_lists: StoredLists | None = None  # lists that the manifest names
        self._deaths = 0  # times that rows died
        self._settled = 0  # the version of the last death
        self._alive: tuple[int, np.ndarray] | None = None  # at the last version, after so many deaths
        self._postings: dict[str, Postings] = {}
        self._passed: dict[str, np.ndarray] = {}
        self._passing = Lock()  # of what forgets and remembers filters
        wanted = ("ids",) if spec.ids == "int" else ("id_ends", "id_bytes")
        if missing := [name for name in wanted if name not in arrays]:
            raise DamagedError(f"segment {number} has no array {', '.join(missing)}; see abi wdbx verify")

    def __len__(self) -> int:
        return self._count

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """What it was made of, by name."""
        return self._arrays

    def without_deaths(self) -> "Segment":
        """The same rows as they were sealed; with all that was made of them since, such as codes and postings."""
        made = copy(self)
        made._died, made._alive = None, None
        made._deaths = made._settled = 0
        return made

    @cached_property
    def vectors(self) -> np.ndarray:
        """The vectors of the rows, `[n, dim]`: an array, or `SealedRows`, where opening all of them takes a while."""
        if self._sealed is not None and len(self) * self.spec.dim * self.spec.numpy_dtype.itemsize > OPENED_WHOLE:
            return cast(np.ndarray, self._sealed.rows("vectors"))
        return self._arrays["vectors"].view(self.spec.numpy_dtype)

    @cached_property
    def salts(self) -> np.ndarray | None:
        """What keeps the rows' digests from telling anything, uint8 `[n, 16]`; None where they are not encrypted."""
        return self._sealed.salts(len(self)) if self._sealed else None

    @cached_property
    def ids(self) -> IdColumn:
        """The ids of the rows."""
        if self.spec.ids == "int":
            return IntIds(self._arrays["ids"])
        return TextIds(self._arrays["id_ends"], self._arrays["id_bytes"])

    @property
    def died(self) -> np.ndarray:
        """The version at which each row died, int64 `[n]`, not to be written to; `ALIVE` where it has not."""
        return np.broadcast_to(np.int64(ALIVE), len(self)) if self._died is None else self._died

    def die(self, rows: np.ndarray, versions: np.ndarray | int) -> None:
        """Lets rows die at versions, unless they died before these."""
        if len(rows):
            self._settled = max(self._settled, int(np.max(versions)))  # first: whoever reads before it counts is told
            died = np.full(len(self), ALIVE, np.int64) if self._died is None else self._died
            np.minimum.at(died, rows, versions)
            self._died = died
            self._deaths += 1

    @cached_property
    def born(self) -> np.ndarray:
        """The version at which each row was born, int64 `[n]`."""
        if "born" not in self._arrays:
            return np.broadcast_to(np.int64(self.first), len(self))
        return self._arrays["born"].astype(np.int64) + self.first

    @cached_property
    def norms(self) -> np.ndarray:
        """Norms of the vectors, float32 `[n]`."""
        return row_norms(self.vectors)

    @property
    def codes(self) -> "Codes":
        """Codes of the vectors, in memory; in the order of the index, once there is one."""
        index = self._index  # another thread may let it go, and codes
        if index is not None and index.made is not None:
            self._codes = None
            return index.made.codes
        self._codes = made = self._codes or self._code()
        return made

    def _code(self) -> "Codes":
        from abi_jax.wdbx.search.codes import CodesMaker

        stored = stored_codes(self._arrays)
        return stored or CodesMaker(self.spec.metric, self.spec.dim, self.spec.numpy_dtype).of(self.vectors)

    @property
    def worth_lists(self) -> bool:
        """Whether rows are enough for lists."""
        from abi_jax.wdbx.search.plan import WORTH_LISTS

        return len(self) >= WORTH_LISTS

    def lists(self) -> "Lists | None":
        """Lists of the rows that are made or stored already."""
        index = self._index
        if index is not None and index.made is not None:
            return index.made.lists
        if self._listing is not None and self._listing.made is not None:
            return self._listing.made
        if self._products is not None:
            return self._products.lists
        return self.stored_lists.lists if self.worth_lists and self.stored_lists is not None else None

    def index(self, wait: bool = False) -> "Index | None":
        """Lists of the rows, if they are made or stored; else they are begun, where rows are enough, or waited for."""
        from abi_jax.wdbx.search.index import IndexMaker

        if not self.worth_lists:
            return None
        self._index = maker = self._index or IndexMaker(self.spec.metric, self.vectors)
        return maker.made or maker.ask(lambda: self.codes, self.lists(), wait)

    def lists_by(self, make: Callable[[np.ndarray], "Lists"], wait: bool = False) -> "Lists | None":
        """Lists that are there; else they are begun, where rows are enough, or waited for. make: of the vectors."""
        from abi_jax.wdbx.search.index import ListsMaker

        if not self.worth_lists:
            return None
        if (found := self.lists()) is not None:
            return found
        self._listing = maker = self._listing or ListsMaker(self.spec.metric, self.vectors)
        return maker.ask(make, wait)

    def products(self, make: bool = True, wait: bool = False) -> "ProductIndex | None":
        """Lists and product codes, if they are made or stored; else they are begun, where rows are enough, or awaited.

        make: whether they are begun. No int8 codes are kept beside them, unless a search needs some later.
        """
        if self._products is None and self.worth_lists and self.stored_lists is not None:
            self._products = self.stored_lists.products
        if self._products is not None or not self.worth_lists or not make:
            return self._products
        from abi_jax.wdbx.search.index import ProductMaker

        maker = self._making_products = self._making_products or ProductMaker(self.spec.metric, self.vectors)
        made = maker.ask(lambda: (self._codes or self._code()) if wait else self.codes, self.lists(), wait)
        if made is not None:
            self._products, self._making_products = made, None
            self._codes = self._index = None
        return made

    def make_products(self) -> "ProductIndex | None":
        """Lists and product codes, made behind all searches; None where they could not be made."""
        from abi_jax.wdbx.search.threads import behind_searches

        with behind_searches():
            return self.products(wait=True)

    def make_lists(self, make: Callable[[np.ndarray], "Lists"] | None = None) -> "Lists | None":
        """Lists, made behind all searches; None where another thread was to make them, and could not.

        make: of the vectors, where it is not this host that makes them.
        """
        from abi_jax.wdbx.search.index import make_index
        from abi_jax.wdbx.search.threads import behind_searches

        if self._listing is not None and self._listing.made is not None:
            return self._listing.made
        if make is not None:
            return self.lists_by(make, wait=True)
        if self._index is not None:
            made = self._index.made or self._index.ask(lambda: self.codes, None, wait=True)
            return None if made is None else made.lists
        with behind_searches():
            return make_index(self.spec.metric, np.asarray(self.vectors), self._codes or self._code()).lists

    def with_columns(self, spec: CollectionSpec) -> "Segment":
        """The same rows, of a collection that has got columns: they have no values in them."""
        made = copy(self)
        made.spec = spec
        made.__dict__.pop("metadata", None)
        made.__dict__.pop("stored_spec", None)
        made._postings, made._passed = dict(self._postings), {}
        return made

    @cached_property
    def metadata(self) -> pa.Table:
        """Metadata of the rows, in their order; null in columns that the collection got later."""
        stored = self.stored_metadata
        if len(stored.schema) == len(self.spec.schema):
            return stored
        return widened(stored, self.spec.arrow_schema, len(self))

    @cached_property
    def stored_metadata(self) -> pa.Table:
        """Metadata of the rows in the columns that there were when they were written."""
        if "metadata" not in self._arrays:
            return pa.table({})
        return pa.ipc.open_file(pa.py_buffer(self._arrays["metadata"])).read_all()

    @cached_property
    def stored_spec(self) -> CollectionSpec:
        """The collection as it was when the rows were written: what of it their digests are over."""
        names = self.stored_metadata.schema.names
        known = self.spec.schema[: len(names)]
        if names != [name for name, _ in known]:
            raise DamagedError(f"segment {self.number} has columns {names}; expected those of its collection")
        return replace(self.spec, schema=known)

    @property
    def metadata_bytes(self) -> int:
        """Bytes of the metadata as they are stored, before they are encrypted."""
        if self._sealed is not None:
            return self._sealed.shape("metadata")[0] if "metadata" in self._sealed else 0
        return len(self._arrays["metadata"]) if "metadata" in self._arrays else 0

    def postings(self, field: str) -> Postings:
        """Words of a field of texts; made when they are first asked for."""
        found = self._postings.get(field)
        if found is None:
            found = self._postings.setdefault(field, make_postings(self.metadata[field]))
        return found

    def passed(self, key: str, filter_: Filter) -> np.ndarray:
        """The rows that pass a filter, bool `[n]`. key: says what the filter is; the last few are remembered."""
        found = self._passed.get(key)
        if found is None:
            found = filter_(self.metadata)
            with self._passing:
                while len(self._passed) >= FILTERS_KEPT:
                    del self._passed[next(iter(self._passed))]
                self._passed[key] = found
        return found

    @property
    def worded(self) -> tuple[str, ...]:
        """Fields whose words were asked for."""
        return tuple(self._postings)

    def whole(self, version: int) -> bool:
        """Whether all rows are alive at `version`, as far as can be told at once."""
        return self._died is None and version >= self._last_born

    @cached_property
    def _last_born(self) -> int:
        return self.first + (int(self._arrays["born"].max()) if "born" in self._arrays else 0)

    def alive(self, version: int) -> np.ndarray:
        """Which rows are alive at `version`, bool `[n]`, not to be written to."""
        deaths, now = self._deaths, version >= max(self._settled, self._last_born)
        if now and self._alive is not None and self._alive[0] == deaths:
            return self._alive[1]
        if version >= self._last_born:
            made = np.ones(len(self), bool) if self._died is None else version < self._died
        else:
            made = (self.born <= version) & (version < self.died)
        if now:
            self._alive = (deaths, made)
        return made

    def kill(self, version: int, ids: Sequence[Any]) -> np.ndarray:
        """Lets the rows of ids die at `version`; the rows that did. Rows born later, by an import, stay."""
        if self.first > version:
            return np.zeros(0, np.int64)
        rows = self.ids.find(ids)
        rows = rows[rows >= 0]
        rows = rows[self.died[rows] > version]
        self.die(rows, version)
        return rows

    def find(self, ids: Sequence[Any], version: int) -> np.ndarray:
        """Of each id the row alive at `version`, int64 `[n]`; -1 where there is none."""
        rows = self.ids.find(ids)
        there = rows >= 0
        alive = np.zeros(len(rows), bool)
        alive[there] = self._alive_at(rows[there], version)
        for i in np.flatnonzero(there & ~alive).tolist():  # perhaps an older row of the id was alive then
            run = np.array(self.ids.run(ids[i]), np.int64)
            older = run[self._alive_at(run, version)]
            rows[i] = older[0] if len(older) else -1
        return rows

    def _alive_at(self, rows: np.ndarray, version: int) -> np.ndarray:
        return (self.born[rows] <= version) & (version < self.died[rows])


def segment_arrays(
    spec: CollectionSpec,
    ids: Sequence[Any] | pa.Array | np.ndarray,
    vectors: np.ndarray,
    born: np.ndarray,
    metadata: pa.Table,
    room: np.ndarray | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray, int]:
    """The arrays of a step, the order that its rows were brought into, and the version that `born` counts from.

    Rows are sorted by id, and by birth where an id is there more than once. room: as many vectors or more, of what has
    been written; vectors that are brought into another order are put there.
    """
    column = np.asarray(ids, np.int64) if spec.ids == "int" else text_column(ids)
    order = order_of_ids(column, born)
    sorted_already = (order[1:] > order[:-1]).all()
    if isinstance(column, np.ndarray):
        arrays = {"ids": column[order]}
    else:
        ends, data = text_arrays(column if sorted_already else column.take(pa.array(order)))
        arrays = {"id_ends": ends, "id_bytes": data}
    first = int(born.min())
    if not sorted_already:
        room = np.empty_like(vectors) if room is None else room[: len(vectors)]
        vectors = np.take(vectors, order, axis=0, out=room, mode="clip")  # "raise" has a copy made first
    arrays["vectors"] = np.ascontiguousarray(vectors)
    if (born != first).any():
        arrays["born"] = (born[order] - first).astype(np.uint32)
    if spec.schema:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, spec.arrow_schema) as writer:
            writer.write_table((metadata if sorted_already else metadata.take(pa.array(order))).combine_chunks())
        arrays["metadata"] = np.frombuffer(sink.getvalue(), np.uint8)
    return arrays, order, first
