"""Rows as records: `Client(path).insert("embeddings", {"doc_id": ..., "vector": ...})`, with no collection made before.

A collection is made with the first record that is inserted into it, as that needs it: its dimension, and a field for
every other entry. Later records may lack fields; one that brings a new field is refused by name, unless the collection
was made with `Client.create_collection` to have it: a schema does not grow by accident.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from abi_jax.errors import InputError
from abi_jax.wdbx.collection import CollectionHandle
from abi_jax.wdbx.database import Database, open_store
from abi_jax.wdbx.encoder import Encoder, dimension
from abi_jax.wdbx.given import whole
from abi_jax.wdbx.hits import Hit
from abi_jax.wdbx.spec import DOCUMENT, make_spec
from abi_jax.wdbx.transfer.infer import infer_value
from abi_jax.wdbx.versions import At

ID, VECTOR, SCORE = "doc_id", "vector", "score"
Record = Mapping[str, Any]


class Client:
    """A store whose collections hold records: `doc_id`, `vector`, perhaps `document`, and any metadata."""

    def __init__(
        self, path: str | Path | None = None, mode: str = "a", metric: str = "cosine", encoder: Encoder | None = None
    ) -> None:
        """path: of the store; None: one that is gone when the client is closed.

        metric: of collections that are made on the way. encoder: makes vectors of `document`s and of texts.
        """
        self._folder = TemporaryDirectory(prefix="wdbx-") if path is None else None
        where = path if self._folder is None else self._folder.name
        self.database: Database = open_store(str(where), mode, encoder=encoder)
        self._metric = metric
        self._encoder = encoder

    def create_collection(self, name: str, dim: int | None = None, **settings: Any) -> CollectionHandle:
        """Makes a collection before anything is inserted; see `Database.create_collection`."""
        return self.database.create_collection(name, dim, **settings)

    def insert(self, collection: str, records: Record | Iterable[Record]) -> int:
        """Writes a record, or several in one version; one whose `doc_id` is there replaces that one whole.

        Returns the version, when it is durable. Raises `InputError` with the first thing that does not fit; then
        nothing is written, and no collection made.
        """
        listed = [records] if isinstance(records, Mapping) else list(records)
        for at, each in enumerate(listed):
            if not isinstance(each, Mapping):
                raise InputError(f"record {at} is {each!r:.60}; expected a mapping with {ID!r} and {VECTOR!r}")
            if ID not in each:
                raise InputError(f"record {at} has no {ID!r}; it has {', '.join(map(str, each)) or 'nothing'}")
        if not listed:
            return self.database.version
        if collection in self.database.collections():
            target = self.database.collection(collection)
        else:
            target = self._make(collection, listed)
        return target.upsert(**_columns(target, listed))

    def _make(self, name: str, records: Sequence[Record]) -> CollectionHandle:
        """The collection that these records need."""
        first = records[0]
        schema: dict[str, Any] = {}
        for each in records:
            for field, value in each.items():
                if field not in (ID, VECTOR) and value is not None and field not in schema:
                    schema[field] = infer_value(field, value)
        dim = len(first[VECTOR]) if hasattr(first.get(VECTOR), "__len__") else None
        if dim is None and self._encoder is None:
            raise InputError(f"record 0 has {VECTOR!r} {first.get(VECTOR)!r:.60}; expected a list of numbers")
        ids = "str" if whole(first[ID]) is None else "int"
        encoder = self._encoder if dim is None or DOCUMENT in schema else None
        if encoder is not None:
            schema[DOCUMENT] = "str"
        spec = make_spec(name, dimension(encoder) if dim is None else dim, self._metric, "float32", ids, schema)
        trial = CollectionHandle(self.database, 0, spec, encoder)
        trial.make_rows(**_columns(trial, records))
        return self.database.create_collection(name, spec.dim, self._metric, schema=schema, ids=ids, encoder=encoder)

    def query(
        self,
        collection: str,
        query_vector: Any = None,
        top_k: int = 5,
        where: Mapping[str, Any] | None = None,
        at: At = None,
        text: str | None = None,
        mode: str = "vector",
    ) -> list[dict[str, Any]]:
        """The `top_k` records that answer best, each with its `score`; see `CollectionHandle.query`."""
        hits: list[Hit] = self.database.collection(collection).query(
            query_vector, top_k, where, at, text=text, mode=mode
        )
        return [{ID: hit.id, SCORE: hit.score} | _text(hit.document) | hit.metadata for hit in hits]

    def get(self, collection: str, doc_id: Any, at: At = None) -> Any:
        """The record of an id, None where there is none; of a list of ids a list."""
        several = isinstance(doc_id, list | tuple)
        rows = self.database.collection(collection).get(doc_id if several else [doc_id], at)
        found = [
            None if row is None else {ID: row.id, VECTOR: row.vector} | _text(row.document) | row.metadata
            for row in rows
        ]
        return found if several else found[0]

    def delete(self, collection: str, doc_id: Any) -> int:
        """Deletes the record of an id, or of each of a list; how many there were."""
        ids = list(doc_id) if isinstance(doc_id, list | tuple | set) else [doc_id]
        return self.database.collection(collection).delete(ids)

    def close(self) -> None:
        """Lets the store go."""
        self.database.close()
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


def _columns(target: CollectionHandle, records: Sequence[Record]) -> dict[str, Any]:
    """Records as the arguments of `upsert`."""
    about = [{k: v for k, v in each.items() if k not in (ID, VECTOR)} for each in records]
    vectors = [each.get(VECTOR) for each in records]
    made: dict[str, Any] = {"ids": [each[ID] for each in records], "metadata": about}
    if all(each is None for each in vectors):
        if target.encoder is None:
            raise InputError(f"record 0 has no {VECTOR!r}; expected one, or an encoder and a {DOCUMENT!r} in each")
        return made | {"documents": [each.pop(DOCUMENT, None) for each in about]}
    for at, each in enumerate(vectors):
        if each is None:
            raise InputError(f"record {at} has no {VECTOR!r}, and others have one; expected one in each")
    return made | {"vectors": vectors}


def _text(document: str | None) -> dict[str, Any]:
    return {} if document is None else {DOCUMENT: document}
