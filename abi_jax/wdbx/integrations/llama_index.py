"""A LlamaIndex vector store on WDBX. Needs the extra `llama-index`.

    from abi_jax.wdbx.integrations.llama_index import WdbxVectorStore

    with wdbx.open("memory.wdbx") as db:
        store = WdbxVectorStore(db, fields={"lang": str})
        index = VectorStoreIndex.from_vector_store(store, embed_model=...)

What is to be filtered by is declared in `fields`, with its type; nodes are kept whole beside it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.core.vector_stores.utils import metadata_dict_to_node, node_to_metadata_dict

from abi_jax.errors import InputError
from abi_jax.wdbx.collection import CollectionHandle
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.hits import Hit
from abi_jax.wdbx.integrations.metadata import REST, open_collection
from abi_jax.wdbx.spec import DOCUMENT
from abi_jax.wdbx.view import Row

REF, NODE = "ref_doc_id", "node_id"
MODES = {
    VectorStoreQueryMode.DEFAULT: "vector",
    VectorStoreQueryMode.TEXT_SEARCH: "keyword",
    VectorStoreQueryMode.SPARSE: "keyword",
    VectorStoreQueryMode.HYBRID: "hybrid",
}
OPERATORS = {
    FilterOperator.EQ: "$eq",
    FilterOperator.NE: "$ne",
    FilterOperator.GT: "$gt",
    FilterOperator.GTE: "$gte",
    FilterOperator.LT: "$lt",
    FilterOperator.LTE: "$lte",
    FilterOperator.IN: "$in",
    FilterOperator.NIN: "$nin",
    FilterOperator.ANY: "$in",
    FilterOperator.CONTAINS: "$contains",
    FilterOperator.TEXT_MATCH: "$contains",
}


class WdbxVectorStore(BasePydanticVectorStore):
    """A collection of an open store as LlamaIndex wants it. It is made with the first node that is added."""

    stores_text: bool = True
    flat_metadata: bool = False
    collection_name: str = "nodes"
    metric: str = "cosine"

    _database: Database = PrivateAttr()
    _fields: dict[str, Any] = PrivateAttr()

    def __init__(
        self,
        database: Database,
        collection_name: str = "nodes",
        metric: str = "cosine",
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        """metric, fields: of the collection, where it is made: what can be filtered by, and its types."""
        super().__init__(stores_text=True, collection_name=collection_name, metric=metric)
        self._database = database
        self._fields = {**(fields or {}), REF: str, NODE: str}

    @classmethod
    def class_name(cls) -> str:
        """What LlamaIndex calls it."""
        return "WdbxVectorStore"

    @property
    def client(self) -> Database:
        """The open store."""
        return self._database

    @property
    def collection(self) -> CollectionHandle | None:
        """The collection; None before the first node."""
        there = self.collection_name in self._database.collections()
        return self._database.collection(self.collection_name) if there else None

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Writes nodes, which have embeddings, in one version, in place of those of the same ids."""
        listed = list(nodes)
        if not listed:
            return []
        vectors = [node.get_embedding() for node in listed]
        target = open_collection(self._database, self.collection_name, len(vectors[0]), self.metric, self._fields)
        known = set(dict(target.spec.schema)) - {DOCUMENT}
        rows = [
            {name: value for name, value in node.metadata.items() if name in known}
            | {REF: node.ref_doc_id, NODE: node.node_id}
            | {REST: json.dumps(node_to_metadata_dict(node, remove_text=False))}
            for node in listed
        ]
        texts = [node.get_content(metadata_mode=MetadataMode.NONE) for node in listed]
        target.upsert([node.node_id for node in listed], vectors, rows, documents=texts)
        return [node.node_id for node in listed]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Deletes the nodes of a document."""
        if (target := self.collection) is not None:
            target.delete(target.ids({REF: ref_doc_id}))

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Deletes nodes by their ids, or by a filter, or those of the ids that pass it."""
        if (target := self.collection) is not None:
            target.delete(self._chosen(target, node_ids, filters))

    def clear(self) -> None:
        """Deletes all nodes."""
        if (target := self.collection) is not None:
            target.delete(target.ids())

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Nodes by their ids, or by a filter, or those of the ids that pass it; all, without either."""
        if (target := self.collection) is None:
            return []
        return [_node(row) for row in target.get(self._chosen(target, node_ids, filters)) if row is not None]

    def _chosen(
        self, target: CollectionHandle, node_ids: list[str] | None, filters: MetadataFilters | None
    ) -> list[str]:
        where = where_of(filters)
        if node_ids is None:
            return target.ids(where)
        passed = None if where is None else set(target.ids(where))
        return [each for each in node_ids if passed is None or each in passed]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes that answer best: by embedding, by the words of `query_str` (BM25), or by both."""
        if query.mode not in MODES:
            raise InputError(f"query mode {query.mode.value!r}; expected one of {', '.join(m.value for m in MODES)}")
        if (target := self.collection) is None:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        mode = MODES[query.mode]
        vector = None if mode == "keyword" or query.query_embedding is None else np.asarray(query.query_embedding)
        named = {REF: query.doc_ids, NODE: query.node_ids}
        clauses = [where_of(query.filters), *({field: {"$in": ids}} for field, ids in named.items() if ids)]
        wanted = [each for each in clauses if each]
        where = {"$and": wanted} if wanted else None
        top_k = (mode == "hybrid" and query.hybrid_top_k) or query.similarity_top_k
        hits: list[Hit] = target.query(
            vector, top_k, where, text=query.query_str if mode != "vector" else None, mode=mode
        )
        sign = -1 if target.spec.metric == "l2" and mode == "vector" else 1
        return VectorStoreQueryResult(
            nodes=[_node(hit) for hit in hits],
            similarities=[sign * hit.score for hit in hits],
            ids=[str(hit.id) for hit in hits],
        )


def where_of(filters: MetadataFilters | None) -> dict[str, Any] | None:
    """LlamaIndex's filters as those of `wdbx.filters`."""
    if filters is None or not filters.filters:
        return None
    clauses = [_clause(each) if isinstance(each, MetadataFilter) else where_of(each) for each in filters.filters]
    made = [each for each in clauses if each is not None]
    if filters.condition == FilterCondition.OR:
        return {"$or": made}
    return {"$not": {"$or": made}} if filters.condition == FilterCondition.NOT else {"$and": made}


def _clause(given: MetadataFilter) -> dict[str, Any]:
    if given.operator == FilterOperator.IS_EMPTY:
        return {given.key: {"$exists": False}}
    if given.operator == FilterOperator.ALL:
        return {"$and": [{given.key: {"$contains": each}} for each in _listed(given)]}
    if given.operator == FilterOperator.TEXT_MATCH_INSENSITIVE:
        return {given.key: {"$regex": f"(?i){_quoted(str(given.value))}"}}
    return {given.key: {OPERATORS[given.operator]: given.value}}


def _listed(given: MetadataFilter) -> list[Any]:
    if not isinstance(given.value, list) or not given.value:
        raise InputError(f"filter on {given.key!r}: {given.operator.value} {given.value!r}; expected a list")
    return list(given.value)


def _quoted(text: str) -> str:
    r"""A text as a regular expression; RE2 ends a literal at `\E`."""
    return "".join(c if c.isalnum() or c == "_" or ord(c) > 127 else f"\\x{{{ord(c):x}}}" for c in text)


def _node(found: Hit | Row) -> BaseNode:
    node: BaseNode = metadata_dict_to_node(json.loads(found.metadata[REST]))
    return node
