"""A collection of an open store: what is written to it, read and searched by name."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from abi_jax.wdbx.log.record import Kind
from abi_jax.wdbx.rows import encode_ids, encode_rows, make_ids, make_rows, unique_ids
from abi_jax.wdbx.spec import CollectionSpec
from abi_jax.wdbx.transfer.piece import Columns
from abi_jax.wdbx.versions import At
from abi_jax.wdbx.view import Hit, Row, View

if TYPE_CHECKING:
    from abi_jax.wdbx.database import Database


class CollectionHandle:
    """A collection of an open store, at its last version."""

    def __init__(self, database: "Database", number: int, spec: CollectionSpec) -> None:
        self._database = database
        self._number = number
        self.spec = spec

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
        return self._database.view(self._number, at)

    def upsert(self, ids: Iterable[Any], vectors: Any, metadata: Any = None) -> int:
        """Writes rows: new ones, and whole new rows for ids that are there. Returns the version, when it is durable.

        metadata: a mapping for each row, or columns by name, or an Arrow table. Raises `InputError` where anything does
        not fit, and then writes nothing.
        """
        rows = make_rows(self.spec, ids, vectors, metadata)
        if not len(rows):
            return self._database.version
        payload = encode_rows(self.spec, rows)
        return self._database.commit(Kind.UPSERT, self._number, len(rows), payload)[0]

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
    ) -> int:
        """Writes many rows, straight into segments: as `upsert` does, in one version, all of them or none.

        source: a file (.npy, .npz, .parquet, .arrow, .jsonl, .jsonl.gz), a folder or a list of them; NumPy vectors, or
        arrays by name; an Arrow table, batch or stream; mappings. It is read a part at a time. id, vector: their
        columns, "id" and "vector" by default; without a column of ids, rows are known by their number. fields: which
        columns are metadata, perhaps by the fields' names; by default all others. duplicates: "error", or "last": of
        rows of one id the last is kept. progress: shows a bar on standard error. Returns how many rows were read.
        Raises `InputError` with the file and the number of the first row that does not fit; then nothing is written.
        """
        taken = dict(fields) if isinstance(fields, Mapping) else None if fields is None else {f: f for f in fields}
        return self._database.take_in(self._number, source, Columns(id, vector, taken), duplicates, progress)

    def get(self, ids: Iterable[Any] | str | int, at: At = None) -> list[Row | None]:
        """The rows of ids, in their order; None where there is none."""
        return self.view(at).get(ids)

    def query(
        self, vectors: Any, top_k: int = 10, where: Mapping[str, Any] | None = None, at: At = None
    ) -> list[Hit] | list[list[Hit]]:
        """The `top_k` rows that score best; see `View.query`."""
        return self.view(at).query(vectors, top_k, where)
