"""Settings stay with the collection, and are in force without anybody's doing."""

from pathlib import Path

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError


def test_retention(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store") as db:
        short, long = db.create_collection("short", 2, "l2"), db.create_collection("long", 2, "l2")
        for bad in (-1, float("nan"), "1"):
            with pytest.raises(InputError, match="retention"):
                short.set(retention=bad)  # type: ignore[arg-type]
        for c in (short, long):
            c.upsert(["a"], [[1, 1]])
        first = db.version
        short.set(retention=0)
    for _ in range(2):  # from the log, and from a manifest
        with wdbx.open(tmp_path / "store") as db:
            for name in ("short", "long"):
                db.collection(name).upsert(["a"], [[2, 2]])
            db.compact()
            assert [each.dead for each in db.stats().collections] == [0, 2 if _ else 1]
            assert len(db.collection("long").view(first)) == 1
            with pytest.raises(InputError, match="no longer kept"):
                db.collection("short").view(first)
            assert db.verify() == []
    with wdbx.open(tmp_path / "store") as db:
        db.collection("short").set(retention=None)
        for turn in range(2):
            db.collection("short").upsert(["a"], [[3, turn]])
        db.compact()
        assert db.stats().collections[0].dead == 2
