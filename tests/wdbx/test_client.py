"""Records in and out, with no collection made before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from tests.wdbx.test_ask import Letters


@pytest.fixture
def client(tmp_path: Path) -> Any:
    with wdbx.Client(tmp_path / "store") as opened:
        yield opened


def test_the_calls_that_people_know(client: wdbx.Client) -> None:
    client.insert("embeddings", {"doc_id": "a", "vector": [1.0, 0.0], "lang": "en", "year": 2020, "tags": ["x"]})
    client.insert("embeddings", [{"doc_id": "b", "vector": np.array([0.6, 0.8])}, {"doc_id": "c", "vector": [0, 1]}])
    found = client.query("embeddings", query_vector=[1, 0], top_k=2)
    assert found == [
        {"doc_id": "a", "score": 1.0, "lang": "en", "year": 2020, "tags": ["x"]},
        {"doc_id": "b", "score": pytest.approx(0.6)},
    ]
    assert [each["doc_id"] for each in client.query("embeddings", [1, 0], where={"tags": "x"})] == ["a"]
    version = client.insert("embeddings", {"doc_id": "a", "vector": [0.0, 2.0], "lang": "de"})
    record = client.get("embeddings", "a")
    assert record["vector"].tolist() == [0, 2] and record["lang"] == "de" and "year" not in record
    assert client.get("embeddings", "a", at=version - 1)["year"] == 2020
    assert client.delete("embeddings", "a") == 1
    assert client.delete("embeddings", ["a", "b"]) == 1
    assert client.get("embeddings", "a") is None
    assert [each and each["doc_id"] for each in client.get("embeddings", ["a", "c"])] == [None, "c"]


def test_documents(tmp_path: Path) -> None:
    with wdbx.Client(tmp_path / "store", encoder=Letters()) as client:
        client.insert("notes", [{"doc_id": 1, "document": "bake a cake"}, {"doc_id": 2, "document": "a cluster"}])
        assert client.query("notes", text="cluster", top_k=1)[0]["document"] == "a cluster"
        assert client.query("notes", text="cake", mode="keyword")[0]["doc_id"] == 1
        assert client.get("notes", 1)["document"] == "bake a cake"


def test_without_a_path_nothing_stays() -> None:
    with wdbx.Client(encoder=lambda texts: Letters()(texts)) as client:
        client.insert("c", {"doc_id": "a", "document": "cake"})
        assert client.query("c", text="cake")[0]["doc_id"] == "a"
        root = client.database.storage.root
        assert root.is_dir()
    assert not root.exists()


def test_a_collection_made_before_may_have_more_fields(client: wdbx.Client) -> None:
    client.create_collection("c", 2, metric="ip", schema={"year": int})
    client.insert("c", {"doc_id": "a", "vector": [1, 0]})
    client.insert("c", {"doc_id": "b", "vector": [3, 0], "year": 2020})
    assert [each["score"] for each in client.query("c", [1, 0])] == [3.0, 1.0]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"doc_id": "z", "vector": [1, 0], "lnag": "en"}, "field 'lnag' is not in collection c; its fields: lang"),
        ({"doc_id": "z", "vector": [1, 0, 0]}, "dimension 2"),
        ({"vector": [1, 0]}, "record 0 has no 'doc_id'"),
        ({"doc_id": 3, "vector": [1, 0]}, "id 3 .* has ids of type str"),
        ({"doc_id": "z", "vector": [1, 0], "lang": 3}, "field 'lang' of row 0 is 3"),
        ([{"doc_id": "z", "vector": [1, 0]}, "x"], "record 1 is 'x'; expected a mapping"),
        ([{"doc_id": "z", "vector": [1, 0]}, {"doc_id": "y"}], "record 1 has no 'vector'"),
        ({"doc_id": "z"}, "record 0 has no .vector.; expected one, or an encoder"),
    ],
)
def test_records_that_do_not_fit(client: wdbx.Client, records: Any, message: str) -> None:
    client.insert("c", {"doc_id": "a", "vector": [1, 0], "lang": "en"})
    version = client.database.version
    with pytest.raises(InputError, match=message):
        client.insert("c", records)
    assert client.database.version == version


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"doc_id": "a"}, "record 0 has 'vector' None; expected a list of numbers"),
        ({"doc_id": "a", "vector": [0, 0]}, "is zero, which has no direction"),
        ({"doc_id": "a", "vector": [1, 0], "inner": {"x": 1}}, "'inner' is of type struct"),
    ],
)
def test_a_first_record_that_does_not_fit_leaves_no_collection(
    client: wdbx.Client, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        client.insert("c", record)
    assert (client.database.collections(), client.database.version) == ([], 0)
    with pytest.raises(InputError, match="there is no collection 'c'"):
        client.query("c", [1, 0])
