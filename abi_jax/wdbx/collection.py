"""A collection of an open store: what is written to it, read and searched by name."""

import contextlib
import math
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abi_jax.errors import InputError
from abi_jax.lineage_digest import canonical
from abi_jax.lineage_receipt import Receipt
from abi_jax.wdbx.ask import PLAIN, Words, ask
from abi_jax.wdbx.encoder import Encoder, encode
from abi_jax.wdbx.errors import ColumnsChangedError, WdbxError
from abi_jax.wdbx.log.record import Kind
from abi_jax.wdbx.proof.form import Proof
from abi_jax.wdbx.rows import (
    Rows,
    encode_ids,
    encode_rows,
    make_ids,
    make_rows,
    unique_ids,
    with_columns_of,
    with_documents,
)
from abi_jax.wdbx.spec import DOCUMENT, CollectionSpec
from abi_jax.wdbx.text.bm25 import Bm25
from abi_jax.wdbx.text.fusion import Fusion
from abi_jax.wdbx.transfer.encoding import texts_of, with_vectors
from abi_jax.wdbx.transfer.piece import Columns
from abi_jax.wdbx.versions import At
from abi_jax.wdbx.view import Row, View

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from abi_jax.wdbx.database import Database
    from abi_jax.wdbx.search.mesh import MeshSearch, MeshSearchConfig


class CollectionHandle:
    """A collection of an open store, at its last version."""

    def __init__(self, database: "Database", number: int, spec: CollectionSpec, encoder: Encoder | None = None) -> None:
        """encoder: makes vectors of texts; without it, vectors must be given."""
        self._database = database
        self._number = number
        self._mesh: MeshSearch | None = None
        self._spec = spec
        self.encoder = encoder

    @property
    def spec(self) -> CollectionSpec:
        """What the collection is, with the columns that it has now."""
        with contextlib.suppress(WdbxError):  # it is closed
            self._spec = self._database.spec(self._number) or self._spec
        return self._spec

    @property
    def name(self) -> str:
        """The collection's name."""
        return self.spec.name

    def __len__(self) -> int:
        return len(self.view())

    def __repr__(self) -> str:
        spec = self.spec
        return f"<collection {spec.name!r}: {len(self)} rows of {spec.dim} x {spec.dtype}, {spec.metric}>"

    def view(self, at: At = None) -> View:
        """The collection at a version, a tag or a time (now)."""
        made = self._database.view(self._number, at)
        return made if self._mesh is None else replace(made, mesh=self._mesh)

    def on(self, mesh: "Mesh | MeshSearch", config: "MeshSearchConfig | None" = None) -> "CollectionHandle":
        """The collection, searched on the devices of a mesh, which keep its vectors as long as this is used."""
        from abi_jax.wdbx.on_mesh import on_mesh  # imported where it is asked for, since it takes a while

        made = copy(self)
        made._mesh = on_mesh(mesh, config)
        return made

    def upsert(
        self,
        ids: Iterable[Any],
        vectors: Any = None,
        metadata: Any = None,
        documents: Sequence[str | None] | None = None,
    ) -> int:
        """Writes rows: new ones, and whole new rows for ids that are there. Returns the version, when it is durable.

        metadata: a mapping for each row, or columns by name, or an Arrow table. documents: the texts of the rows, of
        which the encoder makes the vectors where none are given. Raises `InputError` where anything does not fit, and
        then writes nothing.
        """
        rows = self.make_rows(ids, vectors, metadata, documents)
        if not len(rows):
            return self._database.version
        while True:
            spec = self.spec
            payload, columns = encode_rows(spec, with_columns_of(spec, rows)), len(spec.schema)
            with contextlib.suppress(ColumnsChangedError):
                return self._database.commit(Kind.UPSERT, self._number, len(rows), payload, columns=columns)[0]

    def make_rows(
        self,
        ids: Iterable[Any],
        vectors: Any = None,
        metadata: Any = None,
        documents: Sequence[str | None] | None = None,
    ) -> Rows:
        """Rows as `upsert` would write them. Raises `InputError` where anything does not fit."""
        if documents is not None:
            listed = make_ids(self.spec, ids)
            ids, metadata = listed, with_documents(self.spec, documents, metadata, len(listed))
        if vectors is None:
            if documents is None:
                raise InputError("ids and no vectors; expected vectors, or documents to make them of")
            vectors = encode(self.encoder, self.spec, documents)
        return make_rows(self.spec, ids, vectors, metadata)

    def delete(self, ids: Iterable[Any]) -> int:
        """Deletes rows. Durable when it returns; returns how many of the ids were there."""
        checked = unique_ids(make_ids(self.spec, ids, unique=False))
        if not len(checked):
            return 0
        payload = encode_ids(self.spec, checked)
        found: int = self._database.commit(Kind.DELETE, self._number, len(checked), payload)[1]
        return found

    def import_(
        self,
        source: Any,
        id: str | None = None,
        vector: str | None = None,
        fields: Sequence[str] | Mapping[str, str] | None = None,
        duplicates: str = "error",
        progress: bool = False,
        document: str | None = None,
    ) -> int:
        """Writes many rows, straight into segments: as `upsert` does, in one version, all of them or none.

        source: a file (.npy, .npz, .parquet, .arrow, .jsonl, .jsonl.gz), a folder or a list of them; NumPy vectors, or
        arrays by name; an Arrow table, batch or stream; mappings. It is read a part at a time. id, vector: their
        columns, "id" and "vector" by default; without a column of ids, rows are known by their number. fields: which
        columns are metadata, perhaps by the fields' names; by default all others. duplicates: "error", or "last": of
        rows of one id the last is kept. progress: shows a bar on standard error. document: the column of texts, of a
        file or an Arrow table; where that has no vectors, the encoder makes them. Returns how many rows were read.
        Raises `InputError` with the file and the number of the first row that does not fit; then nothing is written.
        """
        taken = dict(fields) if isinstance(fields, Mapping) else None if fields is None else {f: f for f in fields}
        if (rows := texts_of(source, self.spec, document)) is not None:
            source = with_vectors(rows, self.spec, self.encoder, document or DOCUMENT, vector, str(source))
            if taken is not None:
                taken = {name: column for name, column in taken.items() if column != document} | {DOCUMENT: DOCUMENT}
        return self._database.take_in(self._number, source, Columns(id, vector, taken), duplicates, progress)

    def export(self, path: str | Path, at: At = None, progress: bool = False) -> int:
        """Writes a version (the last) to a file; see `View.export`."""
        return self.view(at).export(path, progress)

    def get(self, ids: Iterable[Any] | str | int, at: At = None) -> list[Row | None]:
        """The rows of ids, in their order; None where there is none."""
        return self.view(at).get(ids)

    def ids(self, where: Mapping[str, Any] | None = None, at: At = None) -> list[Any]:
        """The ids of all rows, or of those that pass a filter, ascending."""
        return self.view(at).ids(where)

    def add_columns(self, schema: Mapping[str, Any]) -> int:
        """More fields of metadata, behind those that there are; the version from which on they are there.

        schema: types by field, as `create_collection` takes them. Rows that are there have no value in them, at any
        version. It waits where rows are being sealed. Raises `InputError` where a field is there already.
        """
        return self._database.add_columns(self._number, schema)

    def set(self, retention: float | None) -> int:
        """Settings that stay with the collection; the version that they are in force from.

        retention: seconds for which all versions can be read; None: what the store is opened with.
        """
        if retention is not None and not (isinstance(retention, int | float) and 0 <= retention < math.inf):
            raise InputError(f"retention {retention!r}: expected seconds, from 0, or None")
        return self._database.commit(Kind.SETTINGS, self._number, 0, canonical({"retention": retention}))[0]

    def prove(self, id_: str | int, at: At = None, to: Receipt | None = None) -> Proof:
        """A proof of the id's row at a version, a tag or a time (now), or that it has none. See `wdbx.check_proof`.

        to: the receipt that it will be checked with, made at that version or later (a link: of the last version). It is
        small when little was written since the last sealing; where there is no row it shows others, beside its place.
        """
        return self._database.prove(self._number, id_, at, to)

    def query(
        self,
        vectors: Any = None,
        top_k: int = 10,
        where: Mapping[str, Any] | None = None,
        at: At = None,
        *,
        text: str | Sequence[str] | None = None,
        mode: str = "vector",
        fields: Sequence[str] | None = None,
        bm25: Bm25 | None = None,
        fusion: Fusion | None = None,
        recall: float = 1.0,
        explain: bool = False,
    ) -> Any:
        """The `top_k` rows that answer best, a list of `Hit`; of several questions a list of such lists.

        vectors: `[dim]` or `[B, dim]`; or a text, or a list of texts, of which the encoder makes them. text: the same
        as texts, or the words beside vectors. mode: "vector", nearness; "keyword", BM25 of the words in `fields`
        (`document`); "hybrid", both, fused by reciprocal ranks. recall: of the nearest rows, how many are to be found
        on average over queries that are distributed as the rows are; below 1, large segments get inverted lists.
        explain: answers with a pair, the second of which says how rows were searched, and why.
        """
        view = self.view(at).with_recall(recall)
        view = view.telling() if explain else view
        plain = fields is None and bm25 is None and fusion is None
        words = PLAIN if plain else Words(fields, bm25 or Bm25(), fusion or Fusion())
        answer = ask(view, self.encoder, vectors, text, top_k, where, mode, words)
        return (answer, view.said()) if explain else answer

    def index(self) -> int:
        """Waits until all segments that are worth it have inverted lists, for queries with a recall below 1.

        Who has the store open for writing seals it first, and stores the lists. Returns how many segments have some.
        """
        if self._database.mode != "r":
            self._database.seal()
        made = self.view().index()
        self._database.index(self._number)
        return made
