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


def test_a_tag_that_is_taken_away_keeps_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "s", 0) as db:
        before, _ = filled(db)
        db.tag("kept", before)
        with pytest.raises(InputError, match=r"there is no tag 'kep' in .*; it has kept"):
            db.untag("kep")
        assert db.untag("kept") == db.version
        db.compact()
        with pytest.raises(InputError, match="version 'kept' is neither a tag"):
            db.at("kept")
        assert db.stats().tags == {}
    with opened(tmp_path / "s", 0) as db:
        with pytest.raises(InputError, match="there is no tag 'kept'"):
            db.untag("kept")
        assert "c" not in db.at(before).collections()
        assert db.verify() == []


def test_a_tag_of_what_was_before_a_collection(tmp_path: Path) -> None:
    """It keeps nothing of a collection that was not there; of one that was, every version since."""
    with opened(tmp_path / "s", 0) as db:
        older = db.create_collection("older", 2)
        older.upsert(["a"], [[0, 1]])
        db.tag("kept")
        newer = db.create_collection("newer", 2)
        for turn in range(1, 9):
            older.upsert(["a"], [[turn, 1]])
            newer.upsert(["a"], [[turn, 1]])
        db.compact()
        assert {each.name: (each.rows, each.dead) for each in db.stats().collections} == {
            "older": (1, 8),
            "newer": (1, 0),
        }
        assert older.get("a", at="kept")[0].vector.tolist() == [0, 1]  # type: ignore[union-attr]
        assert db.verify() == []


def test_a_tag_keeps_one(tmp_path: Path) -> None:
    with opened(tmp_path / "s", 0) as db:
        before, _ = filled(db)
        db.tag("kept", before)
        db.compact()
        assert len(db.at("kept")["c"]) == 9
    with opened(tmp_path / "s", 0) as db:
        assert len(db.at("kept")["c"]) == 9
