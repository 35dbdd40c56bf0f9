"""Steps that hold nothing but deaths do not pile up."""

from pathlib import Path

import numpy as np

from abi_jax import wdbx
from abi_jax.wdbx import seal


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
