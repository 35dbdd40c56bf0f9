"""A store's folder: where it is, what it lacks, and what in it is not finished."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.base import FOLDERS
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.storage.operations import FileOperations
from abi_jax.wdbx.storage.step_files import file_hashes


def test_stays_where_it_was_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that goes to another folder still writes to the store that it opened, and reads that one."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with wdbx.open("store") as db, wdbx.open("store", "r") as reader:
        c = db.create_collection("c", 2)
        monkeypatch.chdir(tmp_path / "elsewhere")
        with wdbx.open("store") as other:
            other.create_collection("c", 2).upsert(["other"], [[1, 1]])
        c.upsert(["own"], [[1, 1]])
        db.seal()
        reader.refresh()
        assert reader.collection("c").ids() == ["own"]
    with wdbx.open(tmp_path / "store") as db:
        assert db.collection("c").ids() == ["own"]


@pytest.mark.parametrize("inside", ["", "sub", "sub/sub"])
def test_a_file_is_no_store(tmp_path: Path, inside: str) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(InputError, match="file is a file; expected a WDBX store"):
        wdbx.open(file / inside)
    with pytest.raises(InputError, match="is not a WDBX store"):
        wdbx.open(file / inside, "r")
    assert file.read_text() == "text"


def test_a_copy_without_empty_folders(tmp_path: Path) -> None:
    """Readers of it still pin what they look at, and a writer can seal."""
    store = tmp_path / "store"
    with wdbx.open(store) as db:
        db.create_collection("c", 2).upsert(["a"], [[1, 1]])
    empty = [name for name in FOLDERS if not os.listdir(store / name)]
    assert {"pins", "segments", "manifests"} <= set(empty)
    for name in empty:
        (store / name).rmdir()
    with wdbx.open(store, "r"), Database(LocalStorage(store), background=False) as db:
        assert len(db.stats().pins) == 1
        db.collection("c").upsert(["b"], [[1, 1]])
        db.seal()
    with wdbx.open(store) as db:
        assert db.collection("c").ids() == ["a", "b"]
        assert db.verify() == []


class Meddles(FileOperations):
    """Takes away what looks unfinished, as `collect` does, whenever a file is about to get its name."""

    database: Database | None = None
    collected = 0

    def rename(self, source: Path, target: Path) -> None:
        self._collect()
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._collect()
        super().link(source, target)

    def _collect(self) -> None:
        db = self.database
        if db is not None:
            for name in db.storage.partial():
                db.storage.delete(name)
            self.collected += 1


def test_what_is_being_written_is_not_garbage(tmp_path: Path) -> None:
    operations = Meddles()
    with Database(LocalStorage(tmp_path / "store", operations), background=False, key=bytes(range(32))) as db:
        c = db.create_collection("c", 2)
        c.upsert(["a"], [[1, 1]])
        db.seal()
        operations.database = db
        c.upsert(["b"], np.ones((1, 2)))  # makes a data key
        assert operations.collected == 1
        assert db.storage.put_new("indexes/new", b"new")
        db.storage.put("indexes/new", b"newer")
        assert operations.collected == 3
        operations.database = None
    left = tmp_path / "store" / "indexes" / ".tmp-left"
    left.write_text("of a process that ended")
    with wdbx.open(tmp_path / "store", key=bytes(range(32))) as db:
        assert not left.exists()
        assert db.collection("c").ids() == ["a", "b"]
        assert db.verify() == []


class Waits(FileOperations):
    """Knows what was brought to disk before a step got its name."""

    def __init__(self) -> None:
        self.synced: set[Path] = set()
        self.lacking: set[Path] = set()

    def sync(self, path: Path) -> None:
        super().sync(path)
        self.synced.add(path)

    def sync_folder(self, folder: Path) -> None:
        super().sync_folder(folder)
        self.synced.add(folder)

    def rename(self, source: Path, target: Path) -> None:
        self.lacking |= {source, *source.rglob("*")} - self.synced
        super().rename(source, target)


@pytest.mark.parametrize("key", [None, bytes(range(32))])
def test_a_step_is_on_disk_and_hashed_when_it_is_there(tmp_path: Path, key: bytes | None) -> None:
    operations = Waits()
    with Database(LocalStorage(tmp_path / "store", operations), background=False, key=key) as db:
        arrays = {"a": np.arange(12.0).reshape(3, 4), "b": np.arange(3)}
        hashes = db.storage.save("segments/00000001", arrays, "")
        assert not operations.lacking
        assert hashes == file_hashes(db.storage, "segments/00000001")
        files = [each for each in (tmp_path / "store/segments/00000001").rglob("*") if each.is_file()]
        assert len(hashes) == len(files) > 2
        assert all(hashlib.sha256(each.read_bytes()).hexdigest() in hashes.values() for each in files)


def test_what_a_step_is_is_what_its_manifest_names(tmp_path: Path) -> None:
    """Nothing else there is read, however it is called; what is missing is damage."""
    with wdbx.open(tmp_path) as db:
        db.create_collection("c", 2, ids="int", schema={"n": int}).upsert([1, 2], [[1, 1], [1, 2]], {"n": [1, 2]})
        db.seal()
    step = next((tmp_path / "segments").iterdir())
    shutil.copytree(step / "ids", step / "born")
    with wdbx.open(tmp_path, "r") as db:
        assert db.collection("c").ids() == [1, 2]
        assert {each.file for each in db.verify()} == {f"segments/{step.name}/born/{each}" for each in (".zarray", "0")}
    with wdbx.open(tmp_path, "r", damaged="ignore") as db:
        assert db.collection("c").ids() == [1, 2]
        assert len(db.left_out) == 2
    (step / "metadata" / ".zarray").unlink()
    with pytest.raises(wdbx.DamagedError, match=r"metadata/\.zarray does not describe an array"):
        wdbx.open(tmp_path, "r")
