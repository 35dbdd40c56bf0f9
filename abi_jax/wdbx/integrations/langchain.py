"""A LangChain vector store on WDBX. Needs the extra `langchain`.

    from abi_jax.wdbx.integrations.langchain import WdbxVectorStore

    with wdbx.open("memory.wdbx") as db:
        store = WdbxVectorStore(db, embedding=embeddings, schema={"lang": str})
        store.add_texts(["how to reset the cluster"], [{"lang": "en", "page": 3}])
        store.similarity_search("restart", filter={"lang": "en"})

Metadata may be anything that JSON holds. What is to be filtered by is declared in `schema`, with its type.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database, open_store
from abi_jax.wdbx.hits import Hit
from abi_jax.wdbx.integrations.metadata import open_collection, pack, unpack
from abi_jax.wdbx.view import Row


class WdbxVectorStore(VectorStore):
    """A collection of an open store as LangChain wants it. Every call that writes is durable when it returns."""

    def __init__(
        self,
        database: Database | str | Path,
        embedding: Embeddings,
        collection_name: str = "documents",
        metric: str = "cosine",
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        """database: an open store, or the path of one, which `close` lets go then.

        metric, schema: of the collection, where it is made: "cosine", "l2" or "ip"; fields of metadata that can be
        filtered by, and their types.
        """
        self._owned = None if isinstance(database, Database) else open_store(database)
        self.database: Database = database if isinstance(database, Database) else self._owned  # type: ignore[assignment]
        self._embedding = embedding
        if collection_name in self.database.collections():
            dim = self.database.collection(collection_name).spec.dim
        else:
            dim = len(embedding.embed_query("dimension"))
        self.collection = open_collection(self.database, collection_name, dim, metric, schema)

    @property
    def embeddings(self) -> Embeddings:
        """What makes vectors of texts."""
        return self._embedding

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        database: Database | str | Path,
        ids: list[str] | None = None,
        **settings: Any,
    ) -> "WdbxVectorStore":
        """A store with these texts in it; settings are those of `__init__`."""
        made = cls(database, embedding, **settings)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Writes texts in one version, in place of those that have the same ids; returns the ids."""
        listed = list(texts)
        about = [{} for _ in listed] if metadatas is None else metadatas
        named = [None] * len(listed) if ids is None else list(ids)
        if not len(listed) == len(about) == len(named):
            raise InputError(f"{len(listed)} texts, {len(about)} metadatas, {len(named)} ids; expected as many of each")
        made = [str(uuid4()) if each is None else each for each in named]
        if listed:
            vectors = self._embedding.embed_documents(listed)
            packed = [pack(self.collection, each) for each in about]
            self.collection.upsert(made, vectors, packed, documents=listed)
        return made

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Deletes texts by their ids; ids that are not there are no error."""
        if ids is None:
            raise InputError("delete needs ids; to delete everything, drop the collection")
        self.collection.delete(ids)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of ids, in their order, without those that are not there."""
        return [_document(row) for row in self.collection.get(list(ids)) if row is not None]

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The `k` documents nearest to a text. filter: on declared fields, as `wdbx.filters` has it.

        mode: "vector", "keyword" or "hybrid". at: a version, a tag or a time.
        """
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, *args: Any, **kwargs: Any) -> list[tuple[Document, float]]:
        """Documents and their scores: cosine or inner product, best when high, or squared distance."""
        return self._with_score(*args, **kwargs)

    def _with_score(
        self,
        query: str,
        k: int = 4,
        filter: Mapping[str, Any] | None = None,
        mode: str = "vector",
        at: Any = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        vector = None if mode == "keyword" else self._embedding.embed_query(query)
        hits = self.collection.query(vector, k, filter, at, text=query, mode=mode)
        return [(_document(hit), hit.score) for hit in hits]

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The `k` documents nearest to a vector."""
        return [_document(hit) for hit in self._near(embedding, k, **kwargs)]

    def _near(
        self, vector: list[float], k: int, filter: Mapping[str, Any] | None = None, at: Any = None, **kwargs: Any
    ) -> list[Hit]:
        hits: list[Hit] = self.collection.query(np.asarray(vector), k, filter, at)
        return hits

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Of the `fetch_k` nearest documents `k` that are near, and unlike each other."""
        vector = self._embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """The same for a vector."""
        hits = self._near(embedding, fetch_k, **kwargs)
        rows = self.collection.get([hit.id for hit in hits], kwargs.get("at"))
        there = [(hit, row.vector.astype(np.float32)) for hit, row in zip(hits, rows, strict=True) if row is not None]
        vectors = [vector for _, vector in there]
        chosen = maximal_marginal_relevance(np.asarray(embedding, np.float32), vectors, lambda_mult, k)
        return [_document(there[i][0]) for i in chosen]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        metric = self.collection.spec.metric
        if metric == "cosine":
            return lambda score: (1 + score) / 2
        if metric == "l2":
            return lambda score: 1 / (1 + score)
        raise InputError(f"collection {self.collection.name} has metric {metric}, whose scores have no bounds")

    def close(self) -> None:
        """Lets the store go, where this opened it."""
        if self._owned is not None:
            self._owned.close()


def _document(found: Hit | Row) -> Document:
    return Document(id=str(found.id), page_content=found.document or "", metadata=unpack(found.metadata))
