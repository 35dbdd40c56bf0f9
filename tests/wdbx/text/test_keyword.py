"""Keyword search equals BM25 written down naively, at every version, with deletes, updates and filters."""

import json
import math
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.text import Bm25, words_of
from abi_jax.wdbx.text.words import split

SENTENCES = Path(__file__).parents[2] / "model" / "golden" / "sentences.json"
Texts = dict[str, str | None]


def naive(texts: Texts, query: str, allowed: set[str], k1: float, b: float) -> list[tuple[str, float]]:
    """The definition, a row at a time: all that have a word of the query, best first."""
    words = {id_: words_of(text) for id_, text in texts.items() if text is not None}
    mean = sum(map(len, words.values())) / max(len(words), 1)
    made = {}
    for id_ in words.keys() & allowed:
        counts, score = Counter(words[id_]), 0.0
        for word, times in Counter(words_of(query)).items():
            if counts[word]:
                having = sum(word in other for other in words.values())
                idf = math.log(1 + (len(words) - having + 0.5) / (having + 0.5))
                tf = counts[word]
                score += times * idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(words[id_]) / mean))
        if score:
            made[id_] = score
    return sorted(made.items(), key=lambda each: (-round(each[1], 9), each[0].encode()))


def same(found: Any, expected: list[tuple[str, float]]) -> None:
    assert [(hit.id, round(hit.score, 6)) for hit in found] == [(id_, round(score, 6)) for id_, score in expected]


WORDS = st.lists(st.sampled_from(["reset", "cluster", "the", "Cluster's", "über", "重置", "x1"]), max_size=6)
TEXT = st.one_of(st.none(), WORDS.map(" ".join))
STEP = st.one_of(
    st.tuples(st.just("upsert"), st.dictionaries(st.sampled_from("abcdefgh"), TEXT, min_size=1, max_size=4)),
    st.tuples(st.just("delete"), st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3)),
    st.tuples(st.just("seal"), st.none()),
    st.tuples(st.just("ask"), st.none()),
)


# equal sums whose parts come in another order
EVEN = {"a": "Cluster's 重置", "b": "reset cluster 重置"}


@settings(max_examples=25, deadline=None)
@example([("upsert", EVEN)], ["reset", "重置", "Cluster's", "重置"], 0, 0, 1)
@given(st.lists(STEP, min_size=1, max_size=6), WORDS, st.floats(0, 3), st.floats(0, 1), st.integers(1, 8))
def test_as_the_definition(steps: list[Any], query: list[str], k1: float, b: float, top_k: int) -> None:
    with TemporaryDirectory() as folder, wdbx.open(Path(folder) / "store") as db:
        c = db.create_collection("c", 1, "l2", schema={"document": str, "lang": str})
        now: Texts = {}
        past = {db.version: dict(now)}
        for what, given_ in steps:
            if what == "upsert":
                about = [{"lang": "en" if id_ in "aceg" else "de"} for id_ in given_]
                c.upsert(list(given_), np.zeros((len(given_), 1)), about, documents=list(given_.values()))
                now |= given_
            elif what == "delete":
                c.delete(given_)
                now = {id_: text for id_, text in now.items() if id_ not in given_}
            elif what == "seal":
                db.seal()
            else:
                c.query(text="the cluster", mode="keyword")
            past[db.version] = dict(now)
        for version, texts in past.items():
            for where, allowed in ((None, set("abcdefgh")), ({"lang": "en"}, set("aceg"))):
                found = c.query(
                    text=" ".join(query), mode="keyword", top_k=top_k, where=where, at=version, bm25=Bm25(k1, b)
                )
                same(found, naive(texts, " ".join(query), allowed, k1, b)[:top_k])


def test_scores_are_those_of_bm25s(tmp_path: Path) -> None:
    """The package leaves the constant factor k1 + 1 out, as Lucene does."""
    bm25s = pytest.importorskip("bm25s", reason="the package bm25s is not installed")
    texts = [text for text in json.loads(SENTENCES.read_text(encoding="utf-8")) if words_of(text)]
    model = bm25s.BM25(method="lucene", k1=1.5, b=0.6)
    model.index([words_of(text) for text in texts], show_progress=False)
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 1, "l2", schema={"document": str}, ids="int")
        c.upsert(range(len(texts)), np.zeros((len(texts), 1)), documents=texts)
        for text in texts[:20]:
            theirs = model.get_scores(words_of(text))
            ours = {hit.id: hit.score for hit in c.query(text=text, mode="keyword", top_k=999, bm25=Bm25(1.5, 0.6))}
            assert ours.keys() == set(np.flatnonzero(theirs).tolist())
            np.testing.assert_allclose([ours[i] for i in ours], 2.5 * theirs[list(ours)], rtol=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("How do I RESET the cluster?", ["how", "do", "i", "reset", "the", "cluster"]),
        ("  snake_case, kebab-case; 3.5%", ["snake", "case", "kebab", "case", "3", "5"]),
        ("Ⅷ ﬁne Straße ÉCOLE", ["viii", "fine", "straße", "école"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("集群重置 reset2", ["集", "群", "重", "置", "reset2"]),
        ("カタカナ한국어", ["カ", "タ", "カ", "ナ", "한국어"]),
        ("", []),
        ("?!", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=3))
def test_words_of_a_column_are_those_of_its_texts(texts: list[str]) -> None:
    words, of = split(pa.array(texts))
    found: list[list[str]] = [[] for _ in texts]
    for word, text in zip(words.to_pylist(), of.tolist(), strict=True):
        found[text].append(word)
    assert found == [words_of(text) for text in texts]


def test_words_of_a_decomposed_text_are_those_of_the_composed() -> None:
    assert words_of("e\u0301cole") == words_of("école") == ["école"]


def test_fields(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 1, "l2", schema={"title": str, "body": str, "year": int})
        c.upsert(["a", "b"], [[0], [0]], [{"title": "cats", "body": "dogs and cats"}, {"title": "dogs"}])
        both = c.query(text="dogs", mode="keyword", fields=["title", "body"])
        assert {hit.id for hit in both} == {"a", "b"}
        titles = c.query(text="dogs", mode="keyword", fields=["title"])
        assert [hit.id for hit in titles] == ["b"]
        with pytest.raises(InputError, match=r"expected fields=\[\.\.\.\] of its texts: title, body"):
            c.query(text="dogs", mode="keyword")
        with pytest.raises(InputError, match="'year': collection c has the texts title, body"):
            c.query(text="dogs", mode="keyword", fields=["year"])


@pytest.mark.parametrize("wrong", [{"k1": -1}, {"k1": float("nan")}, {"b": 1.5}, {"b": -0.1}])
def test_settings_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Bm25(**wrong)


def test_words_of_what_is_sealed_are_known_before_they_are_asked_for(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 1, "l2", schema={"document": str, "title": str})
        c.upsert(["a"], [[0]], documents=["dogs"])
        db.seal()
        assert c.view().segments[0].worded == ()
        c.upsert(["b"], [[0]], documents=["cats"])
        assert [hit.id for hit in c.query(text="cats", mode="keyword")] == ["b"]
        c.upsert(["c"], [[0]], documents=["cats and dogs"])
        db.seal()
        assert [each.worded for each in c.view().segments] == [("document",)]
        assert [hit.id for hit in c.query(text="cats", mode="keyword")] == ["b", "c"]
