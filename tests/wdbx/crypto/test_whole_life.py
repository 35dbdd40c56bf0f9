"""Everything else that a store can do, it does encrypted, too."""

from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx

KEY = bytes(range(32))
SECRET = b"a very private remark"


def nothing_to_read(path: Path) -> bool:
    files = [file.read_bytes() for file in path.rglob("*") if file.is_file()]
    return not any(SECRET in data or b"private-" in data for data in files)


def test_import_search_snapshots_backup_and_restore(tmp_path: Path) -> None:
    path, rng = tmp_path / "s", np.random.default_rng(0)
    vectors = rng.standard_normal((5000, 8)).astype(np.float32)
    with wdbx.open(path, key=KEY) as db:
        c = db.create_collection("private-notes", 8, metric="l2", schema={"text": str, "year": int}, tenant="t")
        kept = db.create_collection("kept", 8)
        rows = {
            "id": [f"private-{i:05d}" for i in range(5000)],
            "vector": list(vectors),
            "text": [SECRET.decode() if i % 1000 == 7 else "nothing" for i in range(5000)],
            "year": list(range(5000)),
        }
        c.import_(rows)
        c.import_({name: column[:10] for name, column in rows.items()})
        assert len(c) == 5000
        assert [hit.id for hit in c.view().search(vectors[4321:4322], top_k=1)[0]] == ["private-04321"]
        found = c.view().search(vectors[:1], top_k=2, where={"year": {"$gte": 4990}})[0]
        assert all(hit.metadata["year"] >= 4990 for hit in found)
        before = db.version
        c.delete(["private-04321"])
        with db.at(before) as then:
            assert len(then.collection("private-notes")) == 5000
        assert db.stats() is not None
        db.backup(tmp_path / "backup")
        assert db.verify() == []
        with pytest.raises(wdbx.WdbxError, match="is encrypted; proofs are of stores that are not"):
            c.prove("private-00001")
    assert nothing_to_read(path) and nothing_to_read(tmp_path / "backup")
    assert wdbx.verify(tmp_path / "backup") == []
    wdbx.restore(tmp_path / "backup", tmp_path / "restored")
    with wdbx.open(tmp_path / "restored", key=KEY) as db:
        assert len(db.collection("private-notes")) == 4999
        db.erase_tenant("t")
        db.backup(tmp_path / "backup")  # over the one before, whose keys it takes away
        kept = db.collection("kept")
        kept.upsert(["x"], [np.ones(8)])
        assert db.stats() is not None
        db.compact()
        assert db.verify() == []
    with wdbx.open(tmp_path / "backup", key=KEY) as db:
        assert db.collections() == ["kept"]
        assert db.verify() == []
