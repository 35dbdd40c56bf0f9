"""Segments are bounded by their texts, too, however many are written, merged or imported at once."""

import time
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx import background, merge, tail
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.row_sizes import row_bytes, runs
from abi_jax.wdbx.rows import make_metadata
from abi_jax.wdbx.spec import make_spec
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.tail import Tail
from abi_jax.wdbx.text import postings, words
from abi_jax.wdbx.transfer import sources
from tests.wdbx.crashes import Quick

MOST = 20_000
TEXT = 700
HEADS = 2000  # bytes that an Arrow file has beside its rows


class Deletes(Quick):
    """Deletes rows while a segment of them is written."""

    def __init__(self) -> None:
        self.collection: wdbx.Collection | None = None
        self.ids: list[str] = []

    def save_arrays(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        if self.collection is not None and self.ids:
            self.collection.delete([self.ids.pop()])
            self.collection.upsert([f"late {len(self.ids)}"], [[1, 1]], [{"text": "late"}])
        super().save_arrays(folder, arrays)


def text_of(id_: str) -> str:
    return f"{id_} ".ljust(TEXT, "x")


def write(c: wdbx.Collection, start: int, stop: int) -> None:
    ids = [f"r{i:03}" for i in range(start, stop)]
    c.upsert(ids, np.ones((len(ids), 2)), {"text": [text_of(each) for each in ids], "tags": [["a", "b"]] * len(ids)})


def sizes(db: Database) -> list[int]:
    """Bytes of metadata of every segment."""
    assert db.sealed.manifest is not None
    return [each.metadata_bytes for each in db._contents.collections[1].segments]


def check(db: wdbx.Database, gone: set[str], count: int = 120) -> None:
    c = db.collection("c")
    wanted = {f"r{i:03}" for i in range(count)} - gone
    assert {each for each in c.ids() if each.startswith("r")} == wanted
    assert {row.metadata["text"] for row in c.get(sorted(wanted)) if row} == {text_of(each) for each in wanted}
    assert [hit.id for hit in c.query(text="r067", mode="keyword", fields=["text"])] == ["r067"]


@pytest.mark.parametrize("key", [None, bytes(32)], ids=["plain", "encrypted"])
def test_texts_bound_a_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: bytes | None) -> None:
    """Of a tail that is sealed, of segments that are merged with it, of all in a compaction, of mostly dead ones."""
    monkeypatch.setattr(merge, "LARGEST_METADATA", MOST)
    operations = Deletes()
    with Database(LocalStorage(tmp_path / "s", operations), background=False, key=key, retention=0) as db:
        c = db.create_collection("c", 2, schema={"text": str, "tags": "list[str]"})
        write(c, 0, 70)
        operations.collection, operations.ids = c, ["r001", "r069", "r030"]
        db.seal()
        gone = {"r001", "r069", "r030"}
        assert len(sizes(db)) == 3 and max(sizes(db)) <= MOST + HEADS
        check(db, gone, 70)
        for start in range(70, 120, 10):
            write(c, start, start + 10)
            db.seal()
            assert max(sizes(db)) <= MOST + HEADS
        check(db, gone)
        db.compact()
        assert len(sizes(db)) < 8 and max(sizes(db)) <= MOST + HEADS
        check(db, gone)
        more = {f"r{i:03}" for i in range(120) if i % 5 not in (0, 2)} - {"r067"}
        c.delete(sorted(more))
        db.seal()
        gone |= more
        assert max(sizes(db)) <= MOST + HEADS
        check(db, gone)
        assert db.verify() == []
    with wdbx.open(tmp_path / "s", "r", key=key) as db:
        check(db, gone)
        assert sorted(each for each in db.collection("c").ids() if each.startswith("late")) == [
            "late 0",
            "late 1",
            "late 2",
        ]
        assert db.verify() == []


@pytest.mark.parametrize("schema", [None, {"text": str}])
def test_vectors_bound_what_is_sealed_of_a_tail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schema: dict[str, type] | None
) -> None:
    monkeypatch.setattr(merge, "LARGEST", 30 * 2 * 4)
    with Database(LocalStorage(tmp_path / "s", Quick()), background=False) as db:
        c = db.create_collection("c", 2, "l2", schema=schema)
        c.upsert([f"r{i:03}" for i in range(100)], np.arange(200).reshape(100, 2))
        c.delete(["r000", "r050"])
        db.seal()
        assert sorted(map(len, db._contents.collections[1].segments)) == [10, 30, 30, 30]
        assert [row.vector.tolist() for row in c.get(["r001", "r099"]) if row] == [[2, 3], [198, 199]]
        assert len(c) == 98
        assert db.verify() == []


def test_postings_are_made_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [None, "the cat", "", "a dog and the cat", "東京 cat", "dog " * 30, *(f"word{i} cat" for i in range(20))]
    column = pa.chunked_array([texts[:4], texts[4:], []], pa.string())
    whole = postings.make_postings(column)
    seen: list[int] = []

    def spied(part: pa.Array) -> Any:
        seen.append(part.nbytes)
        return words.split(part)

    monkeypatch.setattr(postings, "SPLIT_AT_ONCE", 60)
    monkeypatch.setattr(postings, "split", spied)
    parts = postings.make_postings(column)
    assert len(seen) > 5 and sorted(seen)[-2] < 80
    assert parts.number == whole.number
    for name in ("lengths", "ends", "rows", "counts"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_long_texts_are_imported_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, given = 40, []
    columns = {"id": [f"r{i}" for i in range(count)], "vector": np.ones((count, 2)).tolist()}
    table = pa.table(columns | {"text": pa.array([text_of(str(i)) for i in range(count)], pa.large_string())})
    monkeypatch.setattr(sources, "BATCH_BYTES", 10 * TEXT)
    made = sources.arrow_piece

    def spied(name: str, first: int, batch: pa.RecordBatch, found: Any) -> Any:
        given.append(batch.nbytes)
        return made(name, first, batch, found)

    monkeypatch.setattr(sources, "arrow_piece", spied)
    with Database(LocalStorage(tmp_path / "s", Quick()), background=False) as db:
        c = db.create_collection("c", 2, schema={"text": str})
        assert c.import_(table) == count
        assert len(given) >= 4 and max(given) <= 10 * TEXT
        assert [row.metadata["text"] for row in c.get([f"r{i}" for i in range(count)]) if row] == table[
            "text"
        ].to_pylist()


def test_a_long_tail_is_not_joined_to_read_rows_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(*_: Any) -> pa.Table:
        raise AssertionError("all of its metadata were asked for")

    with Database(LocalStorage(tmp_path / "s", Quick()), background=False) as db:
        c = db.create_collection("c", 2, "l2", schema={"text": str})
        for turn in range(6):
            ids = [f"r{turn}{i}" for i in range(turn + 1)]
            c.upsert(ids, [[turn, i] for i in range(turn + 1)], [{"text": text_of(each)} for each in ids])
        monkeypatch.setattr(Tail, "metadata", joined)
        monkeypatch.setattr(tail, "FEW", 1)
        monkeypatch.setattr(tail, "JOINED", 1000)
        wanted = ["r53", "r00", "r21", "r31", "r20", "r55"]
        assert [row.metadata["text"] for row in c.get(wanted) if row] == [text_of(each) for each in wanted]
        hits = c.query([5, 2], top_k=8)
        assert [hit.metadata["text"] for hit in hits] == [text_of(hit.id) for hit in hits]
        assert len({hit.id[:2] for hit in hits}) > 2


def test_more_texts_than_arrow_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = make_spec("c", 2, "l2", "float32", "str", {"text": str})
    monkeypatch.setattr(pa, "array", lambda values, kind, **_: pa.chunked_array([values[:1], values[1:]], kind))
    with pytest.raises(InputError, match="field 'text' has more than 2 GiB in one write"):
        make_metadata(spec, {"text": ["a", "b"]}, 2)


VALUES = st.one_of(st.none(), st.text(max_size=9))


@given(
    texts=st.lists(VALUES, max_size=20),
    lists=st.lists(st.one_of(st.none(), st.lists(VALUES, max_size=4)), min_size=20, max_size=20),
    most_rows=st.integers(1, 30),
    most_bytes=st.integers(1, 200),
)
def test_runs(texts: list[Any], lists: list[Any], most_rows: int, most_bytes: int) -> None:
    table = pa.table({"t": pa.array(texts, pa.string()), "l": pa.array(lists[: len(texts)], pa.list_(pa.string()))})
    sizes = row_bytes(table)
    for i, (text, listed) in enumerate(zip(texts, lists, strict=False)):
        held = (text or "") + "".join(each or "" for each in listed or [])
        assert sizes[i] >= len(held.encode())
    made = list(runs(sizes, most_rows, most_bytes))
    assert [i for start, stop in made for i in range(start, stop)] == list(range(len(texts)))
    for start, stop in made:
        assert stop - start == 1 or (stop - start <= most_rows and sizes[start:stop].sum() <= most_bytes)


def test_what_was_written_is_in_memory_once(tmp_path: Path) -> None:
    """Metadata that was read from a record does not keep the record."""
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 256, schema={"year": int}, ids="int")
        c.upsert([0], np.ones((1, 256)), {"year": [2000]})
        tracemalloc.start()
        try:
            for start in range(1, 10_000, 1000):
                c.upsert(np.arange(start, start + 1000), np.ones((1000, 256)), {"year": [2000] * 1000})
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 10_000 * 256 * 4 / 2  # beside the rows of the tail, for which there was room before


def test_many_imports_leave_few_segments(tmp_path: Path) -> None:
    """Also where nothing else is ever written, and what was deleted meanwhile stays so."""
    with wdbx.open(tmp_path / "store", indexes=False) as db:
        c = db.create_collection("c", 4, "l2", ids="int")
        vectors = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
        for start in range(0, 3000, 100):
            ids = np.arange(start, start + 100)
            c.import_({"id": ids, "vector": vectors[ids]})
            assert db.stats().collections[0].segments <= 2 * merge.MANY
        c.delete(np.arange(0, 3000, 3))
        before = db.version
        c.import_({"id": [5000], "vector": [[9, 9, 9, 9]]})
        db.seal()
        assert db.stats().collections[0].segments <= 2 * merge.MANY and db.verify() == []
        alive = np.flatnonzero(np.arange(3000) % 3)
        expected = alive[np.argsort(np.square(vectors[alive]).sum(axis=1))[:5]].tolist()
        assert [hit.id for hit in c.query([0, 0, 0, 0], top_k=5)] == expected
        assert [hit.id for hit in c.query([0, 0, 0, 0], top_k=5, at=before)] == expected
        assert c.get([3, 5000], at=before - 1)[0] is not None


def test_segments_are_merged_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "IDLE_SECONDS", 0.05)
    with wdbx.open(tmp_path / "store", indexes=False) as db:
        c = db.create_collection("c", 4, ids="int")
        for i in range(merge.MANY):
            c.import_({"id": [i], "vector": [[1, 1, 1, 1]]})
        until = time.monotonic() + 100
        while db.stats().collections[0].segments != 1 and time.monotonic() < until:
            time.sleep(0.05)
        assert db.stats().collections[0].segments == 1 and c.ids() == list(range(merge.MANY))


def test_large_segments_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What merged would be larger than a segment is made is not written again and again."""
    monkeypatch.setattr(merge, "LARGEST", 16 * 1000)
    with wdbx.open(tmp_path / "store", indexes=False) as db:
        c = db.create_collection("c", 4, ids="int")
        for start in range(0, 6000, 300):
            ids = np.arange(start, start + 300)
            c.import_({"id": ids, "vector": np.ones((300, 4), np.float32)})
        db.seal()
        assert db.stats().collections[0].segments == 20


def test_sealing_does_nothing_where_nothing_is_to_be_done(tmp_path: Path) -> None:
    """Also of segments that are alike as they are, and are not as far as they live."""
    with wdbx.open(tmp_path / "store", retention=0, indexes=False) as db:
        c = db.create_collection("c", 4, ids="int")
        for start, rows in ((0, 100), *((1000 * i, 200) for i in range(1, merge.MANY))):
            ids = np.arange(start, start + rows)
            c.import_({"id": ids, "vector": np.ones((rows, 4), np.float32)})
            c.delete([start])
        db.seal()
        assert db.stats().collections[0].segments < merge.MANY
        version = db.version
        for _ in range(3):
            db.seal()
        assert db.version == version
