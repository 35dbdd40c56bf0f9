"""Backups are stores; they hold one version, whatever is written meanwhile, and damage is not copied."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.transfer import backup
from abi_jax.wdbx.transfer.replace import Replacement

DIM = 4


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Two segments, deaths, rows that only the log holds, an import."""
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM, "l2", schema={"n": int})
        c.upsert([f"a{i}" for i in range(50)], np.ones((50, DIM)), {"n": list(range(50))})
        db.seal()
        c.import_({"id": [f"a{i}" for i in range(40, 300)], "vector": np.full((260, DIM), 2.0)})
        c.delete(["a0"])
        c.upsert(["late"], [[3] * DIM])
    return tmp_path / "store"


def content(path: Path, at: int | None = None) -> dict[object, object]:
    with wdbx.open(path, mode="r") as db:
        ids = [f"a{i}" for i in range(301)] + ["late", "later"]
        assert db.verify() == []
        return {row.id: (row.vector.tolist(), row.metadata) for row in db.collection("c").get(ids, at) if row}


def test_backup_and_restore(store: Path, tmp_path: Path) -> None:
    before = content(store)
    with wdbx.open(store) as db:
        version = db.version
        first = db.backup(tmp_path / "backup")
        assert first.version == version
        db.collection("c").upsert(["later"], [[4] * DIM])
        again = db.backup(tmp_path / "second", version)
        assert again.version == version
        assert content(tmp_path / "backup") == content(tmp_path / "second") == before
        db.seal()
        after = db.backup(tmp_path / "backup")
        assert after.kept > after.copied  # of what was there, nothing was copied again
        with pytest.raises(InputError, match="is sealed"):
            db.backup(tmp_path / "third", version)
    assert content(tmp_path / "backup") == content(store) == before | {"later": ([4.0] * DIM, {})}
    assert content(tmp_path / "backup", version) == before
    wdbx.restore(tmp_path / "backup", tmp_path / "restored")
    with wdbx.open(tmp_path / "restored") as db:
        db.collection("c").upsert(["a1"], [[5] * DIM])
        db.compact()
    assert len(content(tmp_path / "restored")) == len(before) + 1


def test_a_reader_whose_log_was_sealed_meanwhile(store: Path, tmp_path: Path) -> None:
    with wdbx.open(store, mode="r") as reader, wdbx.open(store) as db:
        db.collection("c").upsert(["later"], [[4] * DIM])
        db.compact()
        assert reader.backup(tmp_path / "backup").version == db.version
        assert len(content(tmp_path / "backup")) == 301


def test_what_cannot_be_backed_up(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    wdbx.open(other).close()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with wdbx.open(store) as db:
        with pytest.raises(InputError, match="other holds another store"):
            db.backup(other)
        with pytest.raises(InputError, match=r"not empty: it has notes\.txt"):
            db.backup(tmp_path / "full")
        with pytest.raises(InputError, match="in the store itself"):
            db.backup(store / "backup")
        file = next(store.glob("segments/*/vectors/0.0"))
        data = bytearray(file.read_bytes())
        data[5] ^= 1
        file.chmod(0o600)
        file.write_bytes(data)
        with pytest.raises(wdbx.DamagedError, match=r"vectors/0\.0 is not what was sealed"):
            db.backup(tmp_path / "damaged")
    assert not (tmp_path / "damaged" / "wdbx.json").exists()
    with pytest.raises(InputError, match="not a WDBX store"):
        wdbx.restore(tmp_path / "damaged", tmp_path / "restored")
    with pytest.raises(InputError, match="is not empty"):
        wdbx.restore(store, tmp_path / "full")


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
def test_a_store_that_somebody_begins_meanwhile(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    """It is not the restoring's to take away, whether it is written to or not."""
    target, begun = tmp_path / "target", []

    def source(*about: Any) -> Any:
        begun.append(wdbx.open(target))
        begun[0].create_collection("c", DIM, "l2").upsert(["a1"], [[7] * DIM])
        if not is_open:
            begun[0].close()
        return reading(*about)

    reading = backup._source
    monkeypatch.setattr(backup, "_source", source)
    error, said = (wdbx.LockedError, "open for writing") if is_open else (InputError, "not empty")
    with pytest.raises(error, match=said):
        wdbx.restore(store, target)
    begun[0].close()
    assert content(target) == {"a1": ([7.0] * DIM, {})}


def test_two_restore_to_one_place(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, refused = tmp_path / "target", []

    def copy(*about: Any) -> Any:
        with pytest.raises(wdbx.WdbxError, match="target is open for writing in another process") as error:
            other(store, target)
        refused.append(error.value)
        return copying(*about)

    def other(*where: Path) -> None:
        with monkeypatch.context() as again:
            again.setattr(backup, "_copy", copying)
            again.setattr(backup, "_refuse_filled", lambda *_: None)  # it looked before the first one began
            wdbx.restore(*where)

    copying = backup._copy
    monkeypatch.setattr(backup, "_copy", copy)
    wdbx.restore(store, target)
    assert len(refused) == 1 and content(target) == content(store)


def test_a_copy_that_fails_leaves_nothing(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Replacement, "settle", fail)
    with pytest.raises(KeyboardInterrupt):
        wdbx.restore(store, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_stats(store: Path) -> None:
    with wdbx.open(store) as db, wdbx.open(store, mode="r") as reader:
        stats = db.stats()
        (c,) = stats.collections
        assert (c.name, c.rows, c.dead, c.tail) == ("c", 300, 11, 1)
        assert c.vector_bytes == 300 * DIM * 4
        assert (stats.version, stats.pins, stats.sealing) == (db.version, (reader.version,), False)
        assert stats.unsealed > 0
        assert stats.total_bytes == sum(file.stat().st_size for file in store.rglob("*") if file.is_file())
        assert reader.stats().rows == 300
