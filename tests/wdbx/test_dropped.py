"""Collections that were dropped: readable as long as their versions are kept, and then their files go."""

import json
from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.keyring import KEYS_FILE
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from tests.wdbx.crashes import Quick


def opened(path: Path, retention: float, key: bytes | None = None) -> Database:
    return Database(LocalStorage(path, Quick()), retention=retention, background=False, key=key)


def filled(db: Database) -> tuple[int, int]:
    """Two collections; one has two segments, deaths that a third step tells, and rows in the log. Dropped; when."""
    c, other = db.create_collection("c", 2), db.create_collection("other", 2)
    other.upsert(["o"], [[1, 1]])
    c.upsert([f"a{i}" for i in range(9)], np.ones((9, 2)))
    db.seal()
    c.delete(["a0"])
    db.seal()
    c.upsert(["b"], [[1, 1]])
    before = db.version
    db.drop_collection("c")
    return before, db.version


def steps(path: Path) -> int:
    return len(list((path / "segments").iterdir()))


@pytest.mark.parametrize("key", [None, bytes(32)], ids=["plain", "encrypted"])
def test_their_files_go(tmp_path: Path, key: bytes | None) -> None:
    path = tmp_path / "s"
    with opened(path, 3600, key) as db:
        before, dropped = filled(db)
        db.seal()
        assert sorted(db.at(before)["c"].ids()) == [*(f"a{i}" for i in range(1, 9)), "b"]
        kept = steps(path)
        assert kept > 2
    with opened(path, 0, key) as db:
        snapshot = db.at(before)
        db.compact()
        assert steps(path) == kept  # somebody reads them
        assert len(snapshot["c"].get([f"a{i}" for i in range(9)])) == 9
        snapshot.close()
        db.compact()
        assert steps(path) == 1
        with pytest.raises(InputError, match=f"'c' was dropped at version {dropped}, and no version of it is kept"):
            db.view(1, before)
        assert db.at(before).collections() == ["other"]
        assert db.verify() == []
    if key is not None:
        keys = json.loads((path / KEYS_FILE).read_bytes())["keys"].values()
        assert sum(each["of"].startswith("segments/") for each in keys) == 1
    with opened(path, 0, key) as db:
        assert db.collections() == ["other"] and db.collection("other").ids() == ["o"]
        db.create_collection("c", 2).upsert(["new"], [[1, 1]])
        db.seal()
        assert db.collection("c").ids() == ["new"]
        assert {each["collection"] for each in db.log()} == {None, "c", "other"}
        assert db.verify() == []
    assert wdbx.verify(path) == []


def test_one_that_only_the_log_had(tmp_path: Path) -> None:
    with opened(tmp_path / "s", 0) as db:
        db.create_collection("c", 2).upsert(["a"], [[1, 1]])
        db.drop_collection("c")
        db.seal()
        assert steps(tmp_path / "s") == 0
        assert db.verify() == []


def test_a_tag_keeps_one(tmp_path: Path) -> None:
    with opened(tmp_path / "s", 0) as db:
        before, _ = filled(db)
        db.tag("kept", before)
        db.compact()
        assert len(db.at("kept")["c"]) == 9
    with opened(tmp_path / "s", 0) as db:
        assert len(db.at("kept")["c"]) == 9
