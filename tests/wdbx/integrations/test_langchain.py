"""LangChain's own tests of a vector store, and what WDBX has beyond them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError

for needed in ("langchain_core", "langchain_tests"):
    pytest.importorskip(needed, reason=f"the package {needed} is not installed: extra langchain, and langchain-tests")

# ruff: noqa: E402
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from abi_jax.wdbx.integrations.langchain import WdbxVectorStore

EMBEDDING = DeterministicFakeEmbedding(size=6)
TEXTS = ["reset the cluster", "bake a cake", "the cluster is down"]


class TestStandard(VectorStoreIntegrationTests):
    """Every test of `langchain-tests`."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[WdbxVectorStore]:
        """An empty store."""
        store = WdbxVectorStore(tmp_path / "store", self.get_embeddings())
        try:
            yield store
        finally:
            store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[WdbxVectorStore]:
    with wdbx.open(tmp_path / "store") as db:
        made = WdbxVectorStore(db, EMBEDDING, schema={"lang": str})
        made.add_texts(TEXTS, [{"lang": "en", "page": 1}, {"lang": "de", "tags": ["x"]}, {}], ids=["a", "b", "c"])
        yield made


def test_metadata_and_filters(store: WdbxVectorStore) -> None:
    found = store.similarity_search("bake a cake", k=1)
    assert found == [Document(id="b", page_content="bake a cake", metadata={"lang": "de", "tags": ["x"]})]
    assert [each.id for each in store.similarity_search("x", filter={"lang": {"$in": ["en"]}})] == ["a"]
    with pytest.raises(InputError, match="filter on 'page': collection documents has the fields lang, document"):
        store.similarity_search("x", filter={"page": 1})
    with pytest.raises(InputError, match="cannot be stored as JSON"):
        store.add_texts(["x"], [{"what": object()}])


def test_modes_versions_and_scores(store: WdbxVectorStore) -> None:
    version = store.database.version
    store.delete(["a"])
    assert [each.id for each in store.similarity_search("cluster", mode="keyword")] == ["c"]
    assert {each.id for each in store.similarity_search("cluster", mode="keyword", at=version)} == {"a", "c"}
    assert {each.id for each in store.similarity_search("cluster", mode="hybrid")} == {"b", "c"}
    document, score = store.similarity_search_with_relevance_scores("bake a cake", k=1)[0]
    assert document.id == "b" and score == pytest.approx(1)
    by_vector = store.similarity_search_by_vector(EMBEDDING.embed_query(TEXTS[2]), k=1)
    assert [each.id for each in by_vector] == ["c"]


def test_marginal_relevance(store: WdbxVectorStore) -> None:
    store.add_texts([TEXTS[0]], ids=["again"])
    found = [each.id for each in store.max_marginal_relevance_search(TEXTS[0], k=2, lambda_mult=0.1)]
    assert found[0] in ("a", "again") and found[1] in ("b", "c")


def test_a_store_is_opened_again(store: WdbxVectorStore, tmp_path: Path) -> None:
    path = store.database.storage.root
    store.database.close()
    again = WdbxVectorStore.from_texts(["more"], EMBEDDING, database=path, ids=["d"])
    assert [each.id for each in again.get_by_ids(["a", "z", "d"])] == ["a", "d"]
    again.close()
    with wdbx.open(tmp_path / "other") as db:
        db.create_collection("documents", 6)
        with pytest.raises(InputError, match="collection documents has no field 'document'"):
            WdbxVectorStore(db, EMBEDDING)


def test_what_does_not_fit(store: WdbxVectorStore) -> None:
    wrong: Any = {"metadatas": [{}]}
    with pytest.raises(InputError, match="2 texts, 1 metadatas, 2 ids"):
        store.add_texts(["x", "y"], **wrong)
    with pytest.raises(InputError, match="delete needs ids"):
        store.delete()
