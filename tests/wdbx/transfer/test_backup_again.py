"""A backup over an older one: whatever goes wrong, one of the two is there, and nobody else's work is lost."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.load import STORE_FILE
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.transfer.backup import copy_store
from tests.thorough import usual
from tests.wdbx.crashes import Killed, Operations, Quick

KEY = bytes(range(32))
HOW = ("fail", "kill", "power off")


def opened(path: Path, key: bytes | None = None) -> Database:
    return Database(LocalStorage(path, Quick()), background=False, key=key, retention=0)


def ids(path: Path, key: bytes | None = None) -> list[str]:
    """What a store holds, which is whole."""
    with wdbx.open(path, "r", key=key) as db:
        assert db.verify() == []
        assert all(db.collection("c").get(db.collection("c").ids()))
        return db.collection("c").ids()


def files(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def key(request: pytest.FixtureRequest) -> bytes | None:
    return request.param


@pytest.fixture
def grown(tmp_path: Path, key: bytes | None) -> tuple[Path, Path]:
    """A store, and a backup of it before it was compacted: its steps, logs and data keys are others by now."""
    store, backup = tmp_path / "store", tmp_path / "backup"
    with opened(store, key) as db:
        c = db.create_collection("c", 2)
        c.upsert(["a"], [[1, 1]])
        db.seal()
        c.upsert(["b"], [[1, 2]])
        copy_store(db.storage, LocalStorage(backup, Quick()), db.version)
        c.upsert(["c"], [[1, 3]])
        db.compact()
        c.upsert(["d"], [[1, 4]])
    return store, backup


@pytest.fixture
def source(grown: tuple[Path, Path], key: bytes | None) -> Iterator[Database]:
    with Database(LocalStorage(grown[0], Quick()), "r", key=key) as db:
        yield db


def copy(db: Database, operations: Operations) -> None:
    copy_store(db.storage, LocalStorage(operations.root, operations), db.version)


OLD, NEW = ["a", "b"], ["a", "b", "c", "d"]


def at_operations(source: Database, backup: Path, key: bytes | None, how: str, tmp_path: Path, share: slice) -> None:
    whole = Operations(Path(shutil.copytree(backup, tmp_path / "whole" / "b")))
    copy(source, whole)
    assert ids(whole.root, key) == NEW
    about = [i for i, each in enumerate(whole.done) if each.endswith(f"b/{STORE_FILE}")]
    gone = range(about[-2], about[-1] + 2)  # operations at which no store is there: none that needs room
    assert {whole.done[i].split()[0] for i in gone} <= {"remove", "rename", "sync_folder", "make_folder"}
    for stop, operation in list(enumerate(whole.done))[share]:
        root, said = Path(shutil.copytree(backup, tmp_path / str(stop) / "b")), f"{how} at {stop}: {operation}"
        operations = Operations(root, how="kill" if how == "power off" else how)
        for path in (root, *root.rglob("*")) if how == "power off" else ():
            (operations.sync_folder if path.is_dir() else operations.sync)(path)
        operations.stop = len(operations.done) + stop
        with contextlib.suppress(InputError, Killed):
            copy(source, operations)
        if how == "power off":
            root = root.with_name("after")
            operations.power_off(root, lucky=False)
        if (root / STORE_FILE).exists():
            with opened(root, key) as db:  # takes away what was left half-done
                assert db.collection("c").ids() in (OLD, NEW), said
                assert db.verify() == [], said
        else:
            assert stop in gone, said
        copy(source, Operations(root))
        with Database(LocalStorage(root, Quick()), "r", key=key) as db:
            assert db.collection("c").ids() == NEW
            assert db.verify() == [], said
        shutil.rmtree(tmp_path / str(stop))


@pytest.mark.parametrize(("how", "share"), usual(product(HOW, range(6)), zip(HOW, (0, 2, 4), strict=True)))
def test_operations_that_fail_or_are_the_last(
    source: Database, grown: tuple[Path, Path], key: bytes | None, share: int, how: str, tmp_path: Path
) -> None:
    at_operations(source, grown[1], key, how, tmp_path, slice(share, None, 6))


def test_a_full_disk_leaves_nothing_behind(source: Database, grown: tuple[Path, Path]) -> None:
    backup = grown[1]
    before = files(backup)
    operations = Operations(backup, stop=20)
    with pytest.raises(InputError, match=r"backup.* cannot be read or written: No space left on device"):
        copy(source, operations)
    assert files(backup) == before | {"lock": b""}


def changed(backup: Path, change: Callable[[wdbx.Database], object]) -> None:
    with opened(backup) as db:
        change(db)


@pytest.mark.parametrize("key", [None], indirect=True)
@pytest.mark.parametrize("sealed", [True, False])
def test_a_backup_that_somebody_wrote_to(grown: tuple[Path, Path], sealed: bool) -> None:
    store, backup = grown
    changed(backup, lambda db: db.collection("c").upsert(["own"], [[1, 1]]))
    if sealed:
        changed(backup, lambda db: db.seal())
    before = files(backup)
    with wdbx.open(store, "r") as db:
        with pytest.raises(InputError, match=r"backup has gone on by itself: its version \d+ is not that of .*store"):
            db.backup(backup)
        assert files(backup) == before
        for more in range(9):
            changed(backup, lambda db, i=more: db.collection("c").upsert([f"own-{i}"], [[1, 1]]))  # type: ignore[misc]
        with pytest.raises(InputError, match=r"backup is of version \d+ already; expected a backup of at most"):
            db.backup(backup)
    assert len(ids(backup)) == 12


@pytest.mark.parametrize("key", [None], indirect=True)
def test_a_backup_that_was_only_opened(grown: tuple[Path, Path]) -> None:
    store, backup = grown
    for _ in range(5):  # epochs of its own, and nothing else
        changed(backup, lambda db: db.stats())
    with wdbx.open(store, "r") as db:
        db.backup(backup)
    assert ids(backup) == ids(store)


@pytest.mark.parametrize("key", [None], indirect=True)
def test_a_backup_that_is_open(grown: tuple[Path, Path]) -> None:
    store, backup = grown
    with wdbx.open(store, "r") as db, wdbx.open(backup, "r") as reader:
        with wdbx.open(backup):
            before = files(backup)
            with pytest.raises(wdbx.LockedError, match="backup is open for writing in another process"):
                db.backup(backup)
            assert files(backup) == before
        db.backup(backup)
        assert reader.collection("c").ids() == ["a", "b"]
        reader.refresh()
        assert reader.collection("c").ids() == ["a", "b", "c", "d"]


@pytest.mark.parametrize("key", [None], indirect=True)
def test_a_step_of_the_same_number_that_is_another(grown: tuple[Path, Path]) -> None:
    """It is replaced whole, with what it does not have; until then the one that was there stays."""
    store, backup = grown
    with wdbx.open(store, "r") as db:
        db.backup(backup)
        (step,) = (backup / "segments").iterdir()
        shutil.copytree(step / "vectors", step / "more")
        (step / "vectors" / "0.0").write_bytes(b"rotten")
        with pytest.raises(InputError, match="No space left"):
            copy(db, Operations(backup, stop=20))
        assert (step / "vectors" / "0.0").read_bytes() == b"rotten"
        db.backup(backup)
    assert not (step / "more").exists()
    assert ids(backup) == ids(store)


@pytest.mark.parametrize("key", [None], indirect=True)
def test_what_cannot_be_read(grown: tuple[Path, Path], tmp_path: Path) -> None:
    store, backup = grown
    shutil.rmtree(backup / "log")
    with pytest.raises(wdbx.DamagedError, match="backup/log is empty; expected at least one log file"):
        wdbx.restore(backup, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    expected = r"log is empty.*expected a backup that is whole, or another place"
    with wdbx.open(store, "r") as db, pytest.raises(InputError, match=expected):
        db.backup(backup)


def test_the_last_version_that_is_sealed(tmp_path: Path) -> None:
    """A log begins behind it, and stands on an older manifest: what is between them is nowhere."""
    with opened(tmp_path / "s") as db:
        c = db.create_collection("c", 2)
        version = c.upsert(["a"], [[1, 1]])
        db.seal()
        with pytest.raises(InputError, match=f"version {version} is sealed"):
            db.backup(tmp_path / "b", version)
