"""What is exported is imported as the same rows, in every format; what does not fit is named with file and row."""

import json
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax import wdbx
from abi_jax.errors import InputError

DIM = 3
SCHEMA = {
    "text": "str",
    "count": "int",
    "share": "float",
    "good": "bool",
    "when": "time",
    "raw": "bytes",
    "tags": "list[str]",
    "sizes": "list[int]",
}
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
VALUES: dict[str, Any] = {
    "text": TEXTS,
    "count": st.integers(-(2**63), 2**63 - 1),
    "share": st.floats(allow_nan=False, allow_infinity=False),
    "good": st.booleans(),
    "when": st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),
    "raw": st.binary(max_size=5),
    "tags": st.lists(TEXTS, max_size=3),
    "sizes": st.lists(st.integers(-9, 9), max_size=3),
}
NUMBERS = st.floats(-100, 100, width=16).filter(bool)
ROWS = st.dictionaries(
    TEXTS.filter(bool),
    st.tuples(st.lists(NUMBERS, min_size=DIM, max_size=DIM), st.fixed_dictionaries({}, optional=VALUES)),
    max_size=6,
)


def held(view: wdbx.View, ids: list[Any]) -> dict[Any, Any]:
    return {row.id: (row.vector.tolist(), row.metadata) for row in view.get(ids) if row is not None}


@pytest.mark.parametrize(
    ("ending", "dtype"),
    [
        ("parquet", "float16"),
        ("arrow", "bfloat16"),
        ("jsonl", "float32"),
        ("jsonl.gz", "float16"),
        ("npz", "bfloat16"),
    ],
)
def test_export_and_import(tmp_path_factory: pytest.TempPathFactory, ending: str, dtype: str) -> None:
    folder = tmp_path_factory.mktemp("export")
    with wdbx.open(folder / "store") as db:
        count = 0

        @settings(max_examples=4, deadline=None)
        @given(sealed=ROWS, more=ROWS)
        def check(sealed: dict[str, Any], more: dict[str, Any]) -> None:
            nonlocal count
            count += 1
            known = {name: kind for name, kind in SCHEMA.items() if kind != "bytes" or ending != "jsonl"}
            ours, theirs = (db.create_collection(f"{n}{count}", DIM, "l2", dtype, known) for n in "ab")
            for rows in (sealed, more):
                for _, about in rows.values():
                    about.pop("raw" if ending == "jsonl" else "", None)
                ours.upsert(list(rows), [vector for vector, _ in rows.values()], [about for _, about in rows.values()])
            version = db.version
            ours.delete(list(sealed)[:1])
            ids = [*sealed, *more]
            for at in (version, None):
                path = folder / f"{count}-{at}.{ending}"
                expected = held(ours.view(at), ids)
                assert ours.export(path, at) == len(expected)
                assert theirs.import_(path) == len(expected)
                assert held(theirs.view(), list(expected)) == expected
            assert len(theirs) == len(ours) + len(held(ours.view(version), list(sealed)[:1]))

        check()


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, list[str]]] = []
    mine = threading.get_ident()

    def fsync(number: int) -> None:
        if threading.get_ident() == mine:
            synced.append((os.fstat(number).st_ino, sorted(os.listdir(tmp_path / "out"))))

    (tmp_path / "out").mkdir()
    with wdbx.open("memory://") as db:
        c = db.create_collection("c", 2)
        c.upsert(["a"], [[1, 0]])
        monkeypatch.setattr("os.fsync", fsync)
        c.export(tmp_path / "out" / "rows.jsonl")
    (first, before), (last, after) = synced
    assert (first, last) == ((tmp_path / "out" / "rows.jsonl").stat().st_ino, (tmp_path / "out").stat().st_ino)
    assert "rows.jsonl" not in before and after == ["rows.jsonl"]


def test_columns_by_other_names(tmp_path: Path) -> None:
    table = pa.table({"key": [1, 2], "embedding": [[1.0, 2.0], [3.0, 4.0]], "jahr": [1999, None], "rest": ["x", "y"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2, "l2", schema={"year": int}, ids="int")
        with pytest.raises(InputError, match=r"a\.parquet has no column 'vector'; its columns: key, embedding"):
            c.import_(tmp_path / "a.parquet", id="key")
        with pytest.raises(InputError, match="has a column 'jahr', which is no field of collection c"):
            c.import_(tmp_path / "a.parquet", id="key", vector="embedding")
        c.import_(tmp_path / "a.parquet", id="key", vector="embedding", fields={"year": "jahr"})
        assert held(c.view(), [1, 2]) == {1: ([1, 2], {"year": 1999}), 2: ([3, 4], {})}
        for source in (table, table.to_reader(), table.to_batches()[0], table.to_pylist(), [tmp_path / "a.parquet"]):
            assert c.import_(source, id="key", vector="embedding", fields=[]) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "vector": [1]}, "vector 7 is of dimension 1"),
        ({"id": "a", "vector": [1, None]}, "7"),
        ({"id": "a", "vector": [1, "x"]}, "7|numbers"),
        ({"id": "", "vector": [1, 2]}, "id number 7 is empty"),
        ({"id": 5, "vector": [1, 2]}, r"id 5 \(number 7\)"),
        ({"vector": [1, 2]}, "row 7 has no 'id'"),
        ({"id": "a", "vector": [1, 2], "year": "x"}, "field 'year' of row 7 is 'x'"),
        ({"id": "a", "vector": [1, 2], "jahr": 3}, "row 7 has a column 'jahr'"),
        ({"id": "a", "vector": [0, 0]}, "vector 7 is zero"),
        ({"id": "a", "vector": [1, float("nan")]}, "vector 7 has nan at 1"),
        ("a", "line 8: str; expected an object"),
    ],
)
def test_a_line_that_does_not_fit(tmp_path: Path, row: Any, message: str) -> None:
    rows = [{"id": f"{i}", "vector": [1, i], "year": i} for i in range(7)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(each) for each in [*rows, row, *rows]))
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2, schema={"year": int})
        with pytest.raises(InputError, match=rf"rows\.jsonl.*({message})"):
            c.import_(path)
        assert (len(c), db.version) == (0, 1)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "a.npz").write_bytes(b"no")
    (tmp_path / "a.npy").write_bytes(b"no")
    (tmp_path / "a.arrow").write_bytes(b"no")
    (tmp_path / "a.txt").write_bytes(b"no")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2)
        for name in ("a.parquet", "a.npz", "a.npy", "a.arrow", "a.txt", "objects.npy", "missing.npy"):
            with pytest.raises(InputError, match=name.replace(".", r"\.")):
                c.import_(tmp_path / name)
        with pytest.raises(InputError, match=r"out\.csv: cannot tell the format"):
            c.export(tmp_path / "out.csv")
