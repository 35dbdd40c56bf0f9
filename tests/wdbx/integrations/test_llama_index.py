"""The vector store that LlamaIndex sees: its conventions for nodes, filters, documents and modes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError

pytest.importorskip("llama_index.core", reason="the package llama-index-core is not installed: extra llama-index")

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from abi_jax.wdbx.integrations.llama_index import WdbxVectorStore

EQ = FilterOperator.EQ
KING = "Stephen King"
FIELDS = {"author": str, "year": int, "tags": "list[str]"}


def node(id_: str, text: str, vector: list[float], document: str, **metadata: Any) -> TextNode:
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id=document)}
    return TextNode(id_=id_, text=text, embedding=vector, relationships=source, metadata=metadata)


NODES = [
    node(
        "a",
        "lorem ipsum",
        [1.0, 0.0, 0.0],
        "doc-0",
        author="Stephen King",
        year=1977,
        tags=["x", "y"],
        inner={"deep": 1},
    ),
    node("b", "dolor sit", [0.0, 1.0, 0.0], "doc-1", author="Francis Ford", year=1972, tags=["x"]),
    node("c", "amet lorem", [0.0, 0.6, 0.8], "doc-1", author="Stephen King"),
]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WdbxVectorStore]:
    with wdbx.open(tmp_path / "store") as db:
        made = WdbxVectorStore(db, fields=FIELDS)
        assert made.query(VectorStoreQuery([1.0, 0, 0])).ids == []
        assert made.add(NODES) == ["a", "b", "c"]
        yield made


def filters(*given: tuple[str, FilterOperator, Any], how: FilterCondition = FilterCondition.AND) -> MetadataFilters:
    made = [MetadataFilter(key=key, operator=operator, value=value) for key, operator, value in given]
    return MetadataFilters(filters=made, condition=how)


def test_class() -> None:
    assert BasePydanticVectorStore in WdbxVectorStore.__mro__
    assert WdbxVectorStore.class_name() == "WdbxVectorStore"


def test_add_and_query(store: WdbxVectorStore) -> None:
    found = store.query(VectorStoreQuery(query_embedding=[1.0, 0.0, 0.0], similarity_top_k=1))
    assert (found.ids, found.similarities) == (["a"], [pytest.approx(1.0)])
    assert found.nodes is not None
    first = found.nodes[0]
    assert first.get_content() == "lorem ipsum" and first.ref_doc_id == "doc-0"
    assert first.metadata == NODES[0].metadata


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (filters(("author", FilterOperator.EQ, "Stephen King")), {"a", "c"}),
        (filters(("author", FilterOperator.NE, "Stephen King")), {"b"}),
        (filters(("year", FilterOperator.GT, 1972)), {"a"}),
        (filters(("year", FilterOperator.LTE, 1977), ("author", FilterOperator.EQ, "Francis Ford")), {"b"}),
        (filters(("year", FilterOperator.IN, [1977, 1972])), {"a", "b"}),
        (filters(("author", FilterOperator.NIN, ["Stephen King"])), {"b"}),
        (filters(("tags", FilterOperator.ANY, ["y", "z"])), {"a"}),
        (filters(("tags", FilterOperator.ALL, ["x", "y"])), {"a"}),
        (filters(("tags", FilterOperator.CONTAINS, "x")), {"a", "b"}),
        (filters(("year", FilterOperator.IS_EMPTY, None)), {"c"}),
        (filters(("author", FilterOperator.TEXT_MATCH, "King")), {"a", "c"}),
        (filters(("author", FilterOperator.TEXT_MATCH_INSENSITIVE, "n k")), {"a", "c"}),
        (
            filters(("year", FilterOperator.EQ, 1977), ("year", FilterOperator.EQ, 1972), how=FilterCondition.OR),
            {"a", "b"},
        ),
        (filters(("year", FilterOperator.EQ, 1977), how=FilterCondition.NOT), {"b", "c"}),
    ],
)
def test_filters(store: WdbxVectorStore, given: MetadataFilters, expected: set[str]) -> None:
    found = store.query(VectorStoreQuery(query_embedding=[1.0, 1, 1], similarity_top_k=9, filters=given))
    assert set(found.ids or ()) == expected
    assert {each.node_id for each in store.get_nodes(filters=given)} == expected
    nested = MetadataFilters(filters=[given, *filters(("author", FilterOperator.NE, "")).filters])
    assert {each.node_id for each in store.get_nodes(filters=nested)} == expected


def test_a_field_that_was_not_declared(store: WdbxVectorStore) -> None:
    with pytest.raises(InputError, match="filter on 'inner': collection nodes has the fields author, year, tags"):
        store.get_nodes(filters=filters(("inner", FilterOperator.EQ, "x")))


def test_metadata_that_are_named_as_what_the_store_keeps(store: WdbxVectorStore) -> None:
    made = node("d", "the text", [0.0, 0.0, 1.0], "doc-2", year=2000)
    made.metadata["document"] = "another"
    store.add([made])
    found = store.get_nodes(["d"])[0]
    assert found.metadata["document"] == "another" and found.get_content() == "the text"


def test_documents(store: WdbxVectorStore) -> None:
    found = store.query(VectorStoreQuery(query_embedding=[1.0, 1, 1], similarity_top_k=9, doc_ids=["doc-1"]))
    assert set(found.ids or ()) == {"b", "c"}
    found = store.query(VectorStoreQuery(query_embedding=[1.0, 1, 1], similarity_top_k=9, node_ids=["c", "z"]))
    assert found.ids == ["c"]
    store.delete("doc-1")
    assert [each.node_id for each in store.get_nodes()] == ["a"]


def test_nodes(store: WdbxVectorStore) -> None:
    assert [each.node_id for each in store.get_nodes(["c", "z", "a"])] == ["c", "a"]
    store.delete_nodes(["a", "b"], filters(("year", FilterOperator.EQ, 1977)))
    assert [each.node_id for each in store.get_nodes()] == ["b", "c"]
    store.add([node("b", "new", [1.0, 0, 0], "doc-2")])
    assert store.get_nodes(["b"])[0].get_content() == "new"
    store.clear()
    assert store.get_nodes() == []


def test_modes(store: WdbxVectorStore) -> None:
    words = VectorStoreQuery(query_str="lorem", similarity_top_k=5, mode=VectorStoreQueryMode.TEXT_SEARCH)
    assert set(store.query(words).ids or ()) == {"a", "c"}
    both = VectorStoreQuery([0.0, 1, 0], 3, query_str="lorem", mode=VectorStoreQueryMode.HYBRID)
    assert set((store.query(both).ids or [])[:2]) == {"a", "c"}
    with pytest.raises(InputError, match="query mode 'svm'"):
        store.query(VectorStoreQuery([0.0, 1, 0], mode=VectorStoreQueryMode.SVM))


async def test_coroutines(store: WdbxVectorStore) -> None:
    await store.adelete("doc-0")
    found = await store.aquery(VectorStoreQuery([1.0, 0, 0], 9))
    assert set(found.ids or ()) == {"b", "c"}


def test_an_index(store: WdbxVectorStore) -> None:
    from llama_index.core import MockEmbedding, VectorStoreIndex

    index = VectorStoreIndex.from_vector_store(store, embed_model=MockEmbedding(embed_dim=3))
    found = index.as_retriever(similarity_top_k=2).retrieve("anything")
    assert len(found) == 2
