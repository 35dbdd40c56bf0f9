"""Text in, text out: encoders, modes of asking, and fusion."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.text import Fusion

TEXTS = {"a": "reset the cluster", "b": "restart a node", "c": "bake a cake", "d": "the cluster is down"}


class Letters:
    """Counts of letters: near where texts are made of the same ones."""

    dimension = 26
    name = "letters"

    def __call__(self, texts: list[str]) -> np.ndarray:
        made = np.zeros((len(texts), 26), np.float32)
        for row, text in zip(made, texts, strict=True):
            for letter in text.lower():
                if letter.isascii() and letter.isalpha():
                    row[ord(letter) - ord("a")] += 1
        return made


@pytest.fixture
def db(tmp_path: Path) -> Any:
    with wdbx.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def notes(db: wdbx.Database) -> wdbx.Collection:
    made = db.create_collection("notes", encoder=Letters(), schema={"lang": str})
    made.upsert(list(TEXTS), documents=list(TEXTS.values()), metadata=[{"lang": "en"}] * 3 + [{"lang": "de"}])
    return made


def test_texts_in_and_out(notes: wdbx.Collection) -> None:
    hits = notes.query("cluster reset the", top_k=2)
    assert (hits[0].id, hits[0].document) == ("a", TEXTS["a"])
    assert hits[0].score == pytest.approx(1.0)
    assert hits[0].metadata == {"lang": "en"}
    row = notes.get("c")[0]
    assert row is not None and row.document == TEXTS["c"] and row.metadata == {"lang": "en"}
    np.testing.assert_array_equal(row.vector, Letters()([TEXTS["c"]])[0])
    several = notes.query(["bake a cake", "restart a node"], top_k=1)
    assert [[hit.id for hit in each] for each in several] == [["c"], ["b"]]
    assert [hit.id for hit in notes.query("cake", where={"document": {"$contains": "node"}})] == ["b"]


def test_what_the_collection_remembers_of_its_encoder(notes: wdbx.Collection, db: wdbx.Database) -> None:
    path = db.storage.root
    assert (notes.spec.dim, notes.spec.encoder, dict(notes.spec.schema)["document"]) == (26, "letters", "str")
    assert db.collection("notes").query("cake", top_k=1)[0].id == "c"
    db.close()
    with wdbx.open(path) as again:
        with pytest.raises(InputError, match=r"has no encoder at hand .* \(it was made with letters\)"):
            again.collection("notes").query("cake")
        assert again.collection("notes", encoder=Letters()).query("cake", top_k=1)[0].id == "c"
    with wdbx.open(path, mode="r", encoder=Letters()) as again:
        assert again.collection("notes").query("cake", top_k=1)[0].id == "c"


def test_an_encoder_may_tell_questions_from_documents(db: wdbx.Database) -> None:
    class Prompted(Letters):
        def queries(self, texts: list[str]) -> np.ndarray:
            return self([text.removeprefix("find ") for text in texts])

    c = db.create_collection("c", encoder=Prompted())
    c.upsert(["a", "b"], documents=["find", "xyz"])
    assert [hit.id for hit in c.query("find xyz", top_k=1)] == ["b"]


def test_keyword_and_hybrid(notes: wdbx.Collection) -> None:
    assert [hit.id for hit in notes.query("cluster", mode="keyword")] == ["a", "d"]
    near = [hit.id for hit in notes.query("cluster", top_k=4)]
    worded = [hit.id for hit in notes.query("cluster", mode="keyword")]
    expected: dict[str, float] = {}
    for ranked in (near, worded):
        for rank, id_ in enumerate(ranked, 1):
            expected[id_] = expected.get(id_, 0.0) + 1 / (5 + rank)
    hits = notes.query("cluster", mode="hybrid", top_k=3, fusion=Fusion(k=5))
    assert [hit.id for hit in hits] == sorted(expected, key=lambda id_: (-expected[id_], id_))[:3]
    assert [hit.score for hit in hits] == [expected[hit.id] for hit in hits]
    assert [hit.document for hit in hits] == [TEXTS[str(hit.id)] for hit in hits]
    assert [hit.id for hit in notes.query("cluster", mode="hybrid", where={"lang": "de"})] == ["d"]


def test_fusion_looks_as_deep_as_it_is_told(notes: wdbx.Collection) -> None:
    assert len(notes.query("cluster", mode="hybrid", top_k=1, fusion=Fusion(depth=1))) == 1
    assert len(notes.query("cluster", mode="hybrid", top_k=4, fusion=Fusion(depth=1))) == 4


def test_words_beside_a_vector_of_ones_own(notes: wdbx.Collection) -> None:
    vector = Letters()(["bake a cake"])
    hits = notes.query(vector[0], text="cluster", mode="hybrid", top_k=4)
    assert {hits[0].id, hits[1].id} <= {"a", "c", "d"}
    assert [each[0].id for each in notes.query(vector, text=["cake"], mode="keyword")] == ["c"]


def test_documents_with_vectors_of_ones_own(db: wdbx.Database) -> None:
    c = db.create_collection("c", 2, schema={"document": str})
    c.upsert(["a", "b"], [[1, 0], [0, 1]], documents=["one", None])
    assert [hit.document for hit in c.query([1, 0])] == ["one", None]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"vectors": "cake", "mode": "words"}, "mode 'words': expected one of vector, keyword, hybrid"),
        ({}, "nothing is asked for"),
        ({"vectors": "cake", "text": "cake"}, "are both texts"),
        ({"vectors": np.ones(26), "mode": "hybrid"}, "looks for words; expected text="),
        ({"vectors": np.ones((2, 26)), "text": ["a"], "mode": "hybrid"}, "2 vectors and 1 texts"),
        ({"text": ["cake", 3]}, r"text 1 is 3; expected a string"),
        ({"text": "cake", "top_k": 0}, "top_k 0"),
    ],
)
def test_questions_that_make_no_sense(notes: wdbx.Collection, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        notes.query(**asked)


def test_documents_that_make_no_sense(notes: wdbx.Collection, db: wdbx.Database) -> None:
    version = db.version
    wrong: dict[str, Any]
    for wrong, message in (
        ({"documents": ["x", "y"]}, "field 'document' has 2 values for 1 rows"),
        ({"documents": "x"}, "expected a list of texts"),
        ({"documents": [3]}, "field 'document' of row 0 is 3"),
        ({"documents": [None]}, "text 0 is None; expected a string"),
        ({"documents": ["x"], "metadata": [{"document": "y"}]}, "expected one of them"),
        ({}, "ids and no vectors"),
    ):
        with pytest.raises(InputError, match=message):
            notes.upsert(["z"], **wrong)
    bare = db.create_collection("bare", 26)
    with pytest.raises(InputError, match="has no texts; expected one that was made with a field 'document'"):
        bare.upsert(["z"], [[1] * 26], documents=["x"])
    with pytest.raises(InputError, match=r"the encoder made vectors of shape \(1, 26\).*dimension 3"):
        db.create_collection("other", 3, encoder=Letters()).query("x")
    assert db.version == version + 2  # two collections, nothing else
