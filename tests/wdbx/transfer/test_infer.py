"""What a file needs of a collection is read from its types; texts get vectors on their way in."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.transfer.infer import Inferred, infer_file, infer_value


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def lengths(texts: list[str]) -> np.ndarray:
    """Vectors by which equal texts are found again."""
    return np.array([[len(text), 1] for text in texts], np.float32)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_json_lines(name: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / name, [{"id": "a", "vector": [1, 2, 3], "year": 2020, "score_of": 0.5, "ok": True}])
    assert infer_file(path) == Inferred(3, "str", {"year": "int", "score_of": "float", "ok": "bool"})
    assert infer_file(path, fields=["ok"]).schema == {"ok": "bool"}
    with pytest.raises(InputError, match="has no column 'yaer'"):
        infer_file(path, fields=["yaer"])


def test_arrow(tmp_path: Path) -> None:
    table = pa.table(
        {
            "key": pa.array([7], pa.int32()),
            "embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float16(), 2)),
            "lang": pa.array(["en"]).dictionary_encode(),
            "tags": [["x"]],
            "at": pa.array([0], pa.timestamp("ms")),
        }
    )
    path = tmp_path / "rows.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    found = infer_file(path, "key", "embedding")
    assert found == Inferred(2, "int", {"lang": "str", "tags": "list[str]", "at": "time"})


def test_numpy(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((2, 5)))
    assert infer_file(tmp_path / "v.npy") == Inferred(5, "int", {})
    np.savez(tmp_path / "v.npz", vector=np.zeros((2, 5)), id=np.array(["a", "b"]), year=np.array([1, 2]))
    assert infer_file(tmp_path / "v.npz") == Inferred(5, "str", {"year": "int"})


def test_what_no_field_holds(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"id": "a", "inner": {"x": 1}}])
    with pytest.raises(InputError, match=r"column 'inner' is of type struct.*name those to take"):
        infer_file(path)
    with pytest.raises(InputError, match=r"expected \.npy"):
        infer_file(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="is not there"):
        infer_file(tmp_path / "nothing.jsonl")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"broken\.parquet cannot be read"):
        infer_file(tmp_path / "broken.parquet")


@pytest.mark.parametrize(
    ("value", "kind"), [("x", "str"), (3, "int"), (0.5, "float"), (True, "bool"), ([1], "list[int]"), (b"x", "bytes")]
)
def test_values(value: Any, kind: str) -> None:
    assert infer_value("f", value) == kind


def test_vectors_are_made_of_documents(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": "x" * i, "year": i} for i in range(1, 2500)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2, "l2", schema={"year": int, "document": str}, encoder=lengths)
        assert c.import_(path, document="text") == len(rows)
        assert [hit.id for hit in c.query("y" * 2000, top_k=1)] == ["r2000"]
        row = c.get("r7")[0]
        assert row is not None and (row.document, row.metadata) == ("x" * 7, {"year": 7})
        assert c.import_(pa.table({"id": ["new"], "text": ["xx"]}), document="text") == 1
        picked = write_jsonl(tmp_path / "picked.jsonl", [{"id": "p", "text": "x", "junk": {}}])
        assert c.import_(picked, document="text", fields=["text"]) == 1
        plain = write_jsonl(tmp_path / "plain.jsonl", [{"id": "q", "document": "xyz"}])
        assert c.import_(plain) == 1
        found = c.get(["new", "p", "q"])
        assert [row.document for row in found if row is not None] == ["xx", "x", "xyz"]


def test_documents_beside_vectors(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "text": ["hello"], "vector": [[3.0, 4.0]]})
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 2, schema={"document": str})
        c.import_(table, document="text")
        row = c.get("a")[0]
        assert row is not None and row.document == "hello" and row.vector.tolist() == [3, 4]
        with pytest.raises(InputError, match="has no encoder at hand"):
            c.import_(table.drop_columns("vector"), document="text")
        with pytest.raises(InputError, match="has no column 'words'"):
            c.import_(table, document="words")
        with pytest.raises(InputError, match="expected a file of rows or an Arrow table"):
            c.import_(np.eye(2), document="text")
