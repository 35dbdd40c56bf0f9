"""Steps that hold nothing but deaths do not pile up."""

from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx import merge, seal


def test_imports_over_imports(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store", retention=0) as db:
        c = db.create_collection("c", 2, "l2", ids="int")
        for turn in range(seal.MOST_HUSKS + 6):
            c.import_({"id": np.arange(turn, 100), "vector": np.full((100 - turn, 2), turn + 1.0)})
            c.delete([turn])
            db.seal()
        manifest = db.sealed.manifest
        assert manifest is not None
        assert len([each for each in manifest.segments.values() if not each.rows]) <= seal.MOST_HUSKS + 1
        assert len(c) == 100 - turn - 1
    with wdbx.open(tmp_path / "store") as db:
        c = db.collection("c")
        assert len(c) == 100 - turn - 1
        assert {tuple(row.vector) for row in c.get(list(range(100))) if row} == {(turn + 1.0, turn + 1.0)}
        assert db.verify() == []
        db.compact()
        assert db.verify() == []
        assert len(db.sealed.manifest.segments) == 1  # type: ignore[union-attr]


def test_what_is_large_is_compacted_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "LARGEST", 100 * 2 * 4)
    with wdbx.open(tmp_path / "store", retention=0) as db:
        c = db.create_collection("c", 2, "l2", ids="int")
        for start in range(0, 240, 40):
            c.import_({"id": np.arange(start, start + 40), "vector": np.ones((40, 2))})
        c.delete([3, 100, 239])
        c.upsert([50, 500], [[2, 2]] * 2)
        db.compact()
        assert [(each.rows, each.dead, each.segments) for each in db.stats().collections] == [(238, 0, 3)]
        version = db.version
        db.compact()
        assert db.version == version + 1
        assert [each.segments for each in db.stats().collections] == [3]
    with wdbx.open(tmp_path / "store") as db:
        c = db.collection("c")
        assert [row.id for row in c.get([3, 50, 100, 200, 239, 500]) if row] == [50, 200, 500]
        assert len(c) == 238
        assert db.verify() == []
