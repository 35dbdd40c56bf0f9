"""Columns that a collection gets later: rows before have no value in them, at any version; nothing is written anew."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.rows import encode_rows
from abi_jax.wdbx.storage.local import LocalStorage
from tests.wdbx.crashes import Quick

KEY = bytes(range(32))
MANY = 40  # rows that are not merged with a few


def opened(path: Path, mode: str = "a", **options: Any) -> Database:
    return Database(LocalStorage(path, Quick()), mode, background=False, **options)


def shown(c: Any, *ids: Any, at: int | None = None) -> list[Any]:
    return [row and ({"document": row.document} if row.document else {}) | row.metadata for row in c.get(ids, at=at)]


def columns(db: Database) -> list[int | None]:
    manifest = db.sealed.manifest
    assert manifest is not None
    return [entry.columns for _, entry in sorted(manifest.segments.items()) if entry.rows]


@pytest.mark.parametrize("schema", [{}, {"a": "int"}], ids=["none before", "one before"])
@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "encrypted"])
def test_a_whole_life(tmp_path: Path, key: bytes | None, schema: dict[str, str]) -> None:
    before = [{"a": 1}] if schema else [{}]
    with opened(tmp_path, key=key) as db:
        c = db.create_collection("c", 2, "l2", schema=schema, tenant="t" if key else "")
        c.upsert(range_ids := [f"s{i}" for i in range(MANY)], np.ones((MANY, 2)), before * MANY)
        db.seal()
        c.upsert(["t"], [[3, 3]], before)
        view, version = c.view(), db.version
        with opened(tmp_path, "r", key=key) as reading:
            other = reading.collection("c")
            assert c.add_columns({"b": str, "document": "str"}) == db.version == version + 1
            assert [kind for _, kind in c.spec.schema] == [*schema.values(), "str", "str"]
            c.upsert(["u"], [[4, 4]], [{"b": "new"}], documents=["some words"])
            assert shown(other, "s1", "t") == before * 2 and other.spec.schema == tuple(schema.items())
            reading.refresh()
            assert shown(other, "s1", "t", "u") == [*before * 2, {"document": "some words", "b": "new"}]
            assert reading.verify() == []
        assert view.ids() == sorted([*range_ids, "t"]) and view.spec.schema == tuple(schema.items())
        with pytest.raises(InputError, match="filter on 'b': collection c has the fields"):
            view.ids(where={"b": "new"})
        check(c, before, version)
        assert db.verify() == []
        db.seal()
        assert columns(db) == [len(schema), None]
        check(c, before, version)
        assert db.verify() == []
        if not schema:
            c.delete(range_ids[:10])
    with opened(tmp_path, key=key) as db:
        check(db.collection("c"), before, version)
        db.collection("c").add_columns({"d": "list[int]"})
        db.collection("c").upsert(["v"], [[5, 5]], {"d": [[1, 2]]})
        db.seal()
        assert columns(db)[0] == len(schema)
        db.collection("c").delete(["s20"])
        db.compact()
        assert columns(db) == [None]
        assert shown(db.collection("c"), "v", "s30") == [{"d": [1, 2]}, *before]
        assert db.verify() == []


def check(c: Any, before: list[dict[str, Any]], version: int) -> None:
    assert shown(c, "s30", "t", "u") == [*before * 2, {"document": "some words", "b": "new"}]
    assert shown(c, "s1", "t", "u", at=version) == [*before * 2, None]
    assert c.ids(where={"b": "new"}) == ["u"] and c.ids(where={"b": {"$exists": True}}, at=version) == []
    assert len(c.ids(where={"b": {"$ne": "new"}})) == len(c) - 1
    assert [hit.id for hit in c.query(text="words", mode="keyword")] == ["u"]
    assert c.query([1, 1], 1, where={"b": "new"})[0].id == "u"


def test_proofs(tmp_path: Path) -> None:
    """Of rows with fewer columns than their collection has now, before and after that is sealed, and of absences."""
    with opened(tmp_path) as db:
        c = db.create_collection("c", 2, schema={"a": str})
        c.upsert([f"s{i}" for i in range(MANY)], np.ones((MANY, 2)), {"a": ["x"] * MANY})
        db.seal()
        c.add_columns({"b": int})
        c.upsert(["t"], [[1, 2]], {"b": [7]})
        for _ in range(2):
            for id_, metadata in (("s3", {"a": "x"}), ("t", {"b": 7}), ("s3000", None)):
                row = wdbx.check_proof(c.prove(id_).text(), db.link()).row
                assert (row and row.metadata) == metadata
            db.seal()
        assert columns(db) == [1, None]


def test_what_is_refused_changes_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as db:
        c = db.create_collection("c", 2, schema={"a": str})
        version = db.version
        for schema, said in (
            ({"a": int}, "collection c has a field 'a' already"),
            ({"b": "number"}, "field 'b' has type 'number'; expected one of str, int"),
            ({"id": str}, "field 'id'"),
            ({"document": int}, "it holds a row's text: expected str"),
            ({}, "columns {}: expected types by field"),
            (["b"], r"columns \['b'\]: expected types by field"),
        ):
            with pytest.raises(InputError, match=said):
                c.add_columns(schema)  # type: ignore[arg-type]
        with opened(tmp_path, "r") as reader, pytest.raises(wdbx.WdbxError, match='expected mode="a" to write'):
            reader.collection("c").add_columns({"b": int})
        assert db.version == version and c.spec.schema == (("a", "str"),)
        db.drop_collection("c")
        with pytest.raises(wdbx.WdbxError, match="was dropped"):
            c.add_columns({"b": int})


def test_rows_that_were_made_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that finds other columns than its rows have is made again, before it is a version."""
    with opened(tmp_path) as db:
        c = db.create_collection("c", 2)

        def meanwhile(*given: Any) -> bytes:
            made = encode_rows(*given)
            monkeypatch.setattr("abi_jax.wdbx.collection.encode_rows", encode_rows)
            c.add_columns({"b": int})
            return made

        monkeypatch.setattr("abi_jax.wdbx.collection.encode_rows", meanwhile)
        assert c.upsert(["x"], [[1, 1]]) == db.version == 3
        c.upsert(["y"], [[1, 1]], {"b": [1]})
        assert shown(c, "x", "y") == [{}, {"b": 1}]
    with opened(tmp_path) as db:
        assert shown(db.collection("c"), "x", "y") == [{}, {"b": 1}]


def test_an_import_that_began_before(tmp_path: Path) -> None:
    """Its rows have the columns that there were."""
    with opened(tmp_path) as db:
        c = db.create_collection("c", 2, schema={"a": int})

        def rows() -> Iterator[Mapping[str, Any]]:
            yield {"id": "x", "vector": [1, 1], "a": 1}
            c.add_columns({"b": int})
            yield {"id": "y", "vector": [1, 2], "a": 2}

        c.import_(rows())
        c.import_([{"id": "z", "vector": [1, 3], "b": 3}])
        assert columns(db) == [1, None] and db.verify() == []
        assert shown(c, "x", "y", "z") == [{"a": 1}, {"a": 2}, {"b": 3}]
        assert wdbx.check_proof(c.prove("y"), db.link()).row is not None
    with opened(tmp_path) as db:
        assert shown(db.collection("c"), "x", "y", "z") == [{"a": 1}, {"a": 2}, {"b": 3}]
        db.seal(everything=True)
        assert db.verify() == []


class Slow(Quick):
    """Waits for a column to be asked for while a segment is written."""

    def __init__(self) -> None:
        self.written, self.asked = threading.Event(), threading.Event()

    def save_arrays(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        self.written.set()
        self.asked.wait(100)
        super().save_arrays(folder, arrays)


def test_it_waits_for_a_sealing(tmp_path: Path) -> None:
    operations = Slow()
    with Database(LocalStorage(tmp_path, operations), background=False) as db:
        c = db.create_collection("c", 2, schema={"a": int})
        c.upsert(["x"], [[1, 1]], {"a": [1]})
        sealing = threading.Thread(target=db.seal)
        sealing.start()
        assert operations.written.wait(100)
        made: list[int] = []
        adding = threading.Thread(target=lambda: made.append(c.add_columns({"b": int})))
        adding.start()
        adding.join(0.1)
        assert not made
        operations.asked.set()
        adding.join()
        sealing.join()
        c.upsert(["y"], [[1, 1]], {"b": [1]})
        db.seal()
        assert shown(c, "x", "y") == [{"a": 1}, {"b": 1}] and db.verify() == []
