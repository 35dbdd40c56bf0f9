"""Everything else that a store can do, it does encrypted, too."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.stored_codes import PREFIX

KEY = bytes(range(32))
SECRET = b"a very private remark"


def nothing_to_read(path: Path) -> bool:
    files = [file.read_bytes() for file in path.rglob("*") if file.is_file()]
    return not any(SECRET in data or b"private-" in data for data in files)


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_stored_codes_are_those_that_would_be_made(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((20_000, 64)).astype(np.float32)
    answers: list[list[Any]] = []
    for key in (None, KEY):
        with wdbx.open(tmp_path / f"{key is None}", key=key) as db:
            c = db.create_collection("c", 64, metric=metric, ids="int")
            c.import_({"id": np.arange(20_000), "vector": vectors})
            c.upsert([20_000], vectors[:1])
        with wdbx.open(tmp_path / f"{key is None}", key=key, mode="r") as db:
            view = db.collection("c").view()
            hits = view.search(vectors[:9] + np.float32(0.1), top_k=7)
            answers.append([[(hit.id, hit.score) for hit in each] for each in hits])
            codes = view.segments[0].codes
            assert (PREFIX + "codes" in view.segments[0]._arrays) == (key is not None)
            answers.append([*(each.tobytes() for each in codes.arrays), codes.longest])
    assert answers[0] == answers[2]
    assert answers[1] == answers[3]


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
