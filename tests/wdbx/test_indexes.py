"""Inverted lists on disk: made by who writes, used by who reads, made again where damaged, and never in the way."""

import contextlib
import logging
import shutil
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx import background
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.search import index, plan
from abi_jax.wdbx.segment import Segment
from abi_jax.wdbx.storage.local import LocalStorage
from tests.thorough import usual
from tests.wdbx.crashes import Operations, Quick
from tests.wdbx.test_crash import MODES, Story, stop_at

ROWS, DIM = 3000, 8
KEY = bytes(range(32))


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are worth it early, so that these tests are quick."""
    monkeypatch.setattr(plan, "WORTH_LISTS", 1000)


def vectors(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(40, DIM))
    return (centers[rng.integers(0, 40, rows)] + 0.05 * rng.normal(size=(rows, DIM))).astype(np.float32)


def opened(root: Path, **settings: Any) -> Database:
    return Database(LocalStorage(root, Quick()), background=False, **settings)


def fill(root: Path, key: bytes | None = None, tenant: str = "") -> None:
    with opened(root, key=key) as db:
        db.create_collection("c", DIM, "l2", ids="int", tenant=tenant).upsert(range(ROWS), vectors())
        assert db.collection("c").index() == 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "WORTH_LISTS", 1000)
        root = tmp_path_factory.mktemp("indexes") / "store"
        fill(root)
        yield root


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


@pytest.fixture
def unmade(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody makes lists any more."""

    def refused(*args: Any) -> None:
        raise AssertionError("lists were made")

    monkeypatch.setattr(index, "make_index", refused)


def way(db: Database) -> str:
    """How a query was answered, which must be right."""
    queries = vectors(20, seed=1)
    c = db.collection("c")
    found, how = c.query(queries, 5, recall=0.95, explain=True)
    exact = c.query(queries, 5)
    same = [len({a.id for a in x} & {b.id for b in y}) / 5 for x, y in zip(exact, found, strict=True)]
    assert np.mean(same) >= 0.95
    assert isinstance(how[0]["way"], str)
    return how[0]["way"]


def files(root: Path) -> list[str]:
    return sorted(each.relative_to(root).as_posix() for each in (root / "indexes").rglob("*") if each.is_file())


def test_readers_use_what_a_writer_made(store: Path, unmade: None) -> None:
    with wdbx.open(store, mode="r") as db:
        assert way(db) == "ivf"
        assert db.verify() == []
        stats = db.stats()
        assert stats.collections[0].indexed == 1
        assert 0 < stats.bytes["indexes"] < stats.bytes["segments"]
        assert [each["kind"] for each in db.log()][:1] == ["seal"]
        assert wdbx.check_proof(db.collection("c").prove(7), db.link()).row is not None
    with opened(store) as db:
        assert db.index() == 0  # they are there


def test_readers_write_nothing(tmp_path: Path) -> None:
    with opened(tmp_path / "store", indexes=False) as db:
        db.create_collection("c", DIM, "l2", ids="int").upsert(range(ROWS), vectors())
        db.seal()
        assert db.collection("c").index() == 1  # in memory
    with wdbx.open(tmp_path / "store", mode="r") as db:
        assert db.index() == 0 and db.collection("c").index() == 1
        assert way(db) == "ivf"
    assert files(tmp_path / "store") == []


@pytest.mark.parametrize("how", ["a byte", "missing", "all missing"])
def test_damaged(store: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Reported, left aside with a warning, made again; answers are right all the while."""
    hurt = store / next(each for each in files(store) if each.endswith("lists1_order/0"))
    data = hurt.read_bytes()
    if how == "all missing":
        shutil.rmtree(store / "indexes")
        (store / "indexes").mkdir()
    elif how == "missing":
        hurt.unlink()
    else:
        hurt.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    findings = wdbx.verify(store)
    name = hurt.relative_to(store).as_posix()
    assert name in {each.file for each in findings}
    assert all(each.file.startswith("indexes/") for each in findings) and (how == "all missing" or len(findings) == 1)
    assert f"lists1_order of {ROWS} rows of collection c" in {each.holds for each in findings}
    with caplog.at_level(logging.WARNING), wdbx.open(store, mode="r") as db:
        assert db.collection("c").index() == 1
        assert way(db) == "ivf"
    with wdbx.open(store, mode="r", damaged="ignore") as db:
        assert way(db) in ("ivf", "quantised")
    assert sum("is left aside, and rows are found without it" in each for each in caplog.messages) == 2
    with opened(store) as db:
        assert len(wdbx.verify(store)) >= 1
        assert db.index() == 1
        assert db.verify() == []
        assert len(list((store / "indexes").iterdir())) == 1


def test_every_file_is_checked(store: Path) -> None:
    rng = np.random.default_rng(0)
    for name in files(store):
        data = (store / name).read_bytes()
        if data:
            at = int(rng.integers(len(data)))
            (store / name).write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            assert [each.file for each in wdbx.verify(store)] == [name]
            (store / name).write_bytes(data)
    (store / "indexes" / "00000099").mkdir()
    (store / "indexes" / "00000099" / "x").write_bytes(b"x")
    assert [each.file for each in wdbx.verify(store)] == ["indexes/00000099/x"]


def test_lists_of_another_kind_are_not_looked_at(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("abi_jax.wdbx.stored_lists.PREFIX", "lists2_")
    with opened(store) as db:
        assert db.index() == 1
        assert db.verify() == []
    assert any("lists2_order" in name for name in files(store))
    assert not any("lists1_order" in name for name in files(store))


def test_they_go_with_their_segment(store: Path) -> None:
    with opened(store) as db:
        before = files(store)
        db.collection("c").upsert(range(ROWS, 2 * ROWS), vectors(seed=3))
        db.seal()
        assert files(store) == []
        assert db.index() == 1
        assert before and len(files(store)) == len(before)
        db.collection("c").upsert([0], vectors(1))
        db.seal()  # of one row, beside the large segment
        assert len(files(store)) == len(before)
        assert db.stats().collections[0].segments == 2
        assert db.verify() == []
        db.drop_collection("c")
        db.compact()
        assert db.verify() == []


def test_a_pinned_reader_keeps_them(store: Path, unmade: None) -> None:
    with wdbx.open(store, mode="r") as reader, pytest.MonkeyPatch.context() as patch:
        with opened(store) as db:
            db.collection("c").upsert(range(ROWS, 2 * ROWS), vectors(seed=3))
            db.seal()
            assert len(files(store)) > 0 and db.stats().collections[0].indexed == 0
        assert way(reader) == "ivf"
        patch.undo()
        reader.refresh()
        assert reader.stats().collections[0].indexed == 0


def test_a_reader_sees_them_after_a_refresh(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with opened(root) as db:
        db.create_collection("c", DIM, "l2", ids="int").upsert(range(ROWS), vectors())
        db.seal()
        with wdbx.open(root, mode="r") as reader:
            reader.collection("c").query(vectors(1)[0], 1)
            assert db.index() == 1
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(index, "make_index", lambda *args: 1 / 0)
                reader.refresh()
                assert reader.stats().collections[0].indexed == 1
                assert way(reader) == "ivf"


def wait_for(true: Any) -> None:
    until = monotonic() + 100
    while not true():
        assert monotonic() < until
        sleep(0.01)


def test_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "IDLE_SECONDS", 0.05)
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM, "l2", ids="int")
        c.import_({"id": np.arange(ROWS), "vector": vectors()})
        wait_for(lambda: db.stats().collections[0].indexed)
        db.drop_collection("c")
        db.create_collection("small", DIM, "l2", ids="int").upsert(range(900), vectors(900))
        wait_for(lambda: not db.stats().unsealed)
        assert db.verify() == []
    with wdbx.open(tmp_path / "other", indexes=False) as db:
        c = db.create_collection("c", DIM, "l2", ids="int")
        c.import_({"id": np.arange(ROWS), "vector": vectors()})
        assert db._indexing is None and db.index() == 0


def test_closing_does_not_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(background, "IDLE_SECONDS", 0.05)
    began, go, made = threading.Event(), threading.Event(), index.make_index

    def slow(*args: Any) -> Any:
        began.set()
        go.wait(100)
        return made(*args)

    monkeypatch.setattr(index, "make_index", slow)
    db = wdbx.open(tmp_path / "store")
    db.create_collection("c", DIM, "l2", ids="int").import_({"id": np.arange(ROWS), "vector": vectors()})
    assert began.wait(100)
    working = db._indexing
    assert working is not None
    db.close()
    assert working._thread.is_alive()
    go.set()
    working._thread.join()
    assert files(tmp_path / "store") == [] and caplog.messages == []
    assert wdbx.verify(tmp_path / "store") == []


def test_rows_that_went_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists of a segment that was merged, or erased, while they were made are not stored."""
    root, make = tmp_path / "store", Segment.make_lists
    with opened(root, key=KEY) as db:
        db.create_collection("c", DIM, "l2", ids="int").upsert(range(ROWS), vectors())
        db.create_collection("t", DIM, "l2", ids="int", tenant="T").upsert(range(ROWS), vectors())
        db.seal()

        def meanwhile(segment: Segment) -> Any:
            made = make(segment)
            if segment.spec.name == "c":
                db.collection("c").upsert(range(ROWS, 2 * ROWS), vectors(seed=3))
                db.seal()
            else:
                db.erase_tenant("T")
            return made

        monkeypatch.setattr(Segment, "make_lists", meanwhile)
        assert db.index() == 0
        monkeypatch.undo()
        assert (root / "indexes").is_dir() and files(root) == []
        assert '"tenant":"' not in (root / "keys.json").read_text().replace('"tenant":""', "")
        monkeypatch.setattr(plan, "WORTH_LISTS", 1000)
        assert db.index() == 1
        assert db.verify() == []


def test_encrypted(tmp_path: Path) -> None:
    """Opened with the key alone, verified without it, and gone with their tenant."""
    root = tmp_path / "store"
    fill(root, KEY, tenant="T")
    order = next(root / each for each in files(root) if each.endswith("lists1_order/0.0"))
    assert wdbx.verify(root) == [] and wdbx.verify(root, KEY) == []
    rows = sorted(np.frombuffer(order.read_bytes()[: 4 * ROWS], np.int32).tolist())
    assert rows != list(range(ROWS))
    with pytest.MonkeyPatch.context() as patch, wdbx.open(root, mode="r", key=KEY) as db:
        patch.setattr(index, "make_index", lambda *args: 1 / 0)
        assert way(db) == "ivf"
    with opened(root, key=KEY) as db:
        db.erase_tenant("T")
        assert not any(each.of.startswith("indexes/") for each in db.storage.ring.entries.values())  # type: ignore[union-attr]
        assert db.verify() == []
        db.create_collection("new", DIM).upsert(["a"], vectors(1))
        db.seal()
        assert files(root) == [] and db.verify() == []


def test_backup(store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, unmade: None) -> None:
    """Lists are copied with the rest; what is damaged of them is left out, and does not stand in the way."""
    with opened(store) as db:
        db.backup(tmp_path / "backup")
        assert db.backup(tmp_path / "backup").copied == 0
    wdbx.restore(tmp_path / "backup", tmp_path / "restored")
    for copy in ("backup", "restored"):
        assert wdbx.verify(tmp_path / copy) == []
        with wdbx.open(tmp_path / copy, mode="r") as db:
            assert way(db) == "ivf"
    (store / files(store)[-1]).write_bytes(b"")
    with caplog.at_level(logging.WARNING), opened(store) as db:
        db.backup(tmp_path / "other")
    assert any("an index is left out" in each for each in caplog.messages)
    assert {each.file.split("/")[0] for each in wdbx.verify(tmp_path / "other")} == {"indexes"}


def test_lists_of_which_nothing_is_known(tmp_path: Path) -> None:
    """All rows are copies of few: nothing was measured, so that nothing is promised."""
    copies = np.repeat(vectors(2), ROWS // 2, axis=0)
    with wdbx.open(tmp_path / "store") as db:
        db.create_collection("c", DIM, "l2", ids="int").upsert(range(ROWS), copies)
        assert db.collection("c").index() == 1
    with wdbx.open(tmp_path / "store", mode="r") as db:
        assert db.stats().collections[0].indexed == 1
        assert db.collection("c").query(copies[0], 5, recall=0.9, explain=True)[1][0]["way"] == "quantised"


class IndexedStory(Story):
    """A life in which every segment gets lists."""

    def _write(self) -> None:
        super()._write()
        assert self.db is not None
        with contextlib.suppress(OSError, InputError):
            self.db.index()
        if self.batches == 1:
            self._upsert({"late": [1, 2]})
            with contextlib.suppress(OSError, InputError):
                self.db.compact()
        self._remember()

    def check(self, folder: Path) -> None:
        super().check(folder)
        with wdbx.open(folder, mode="r") as db:
            stored = [each.stored_lists for each in db.collection("c").view().segments]
            assert all(each is None or each.lists is not None for each in stored)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "share"), usual(product(MODES, range(5)), zip(MODES, range(5), strict=True)))
def test_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, share: int) -> None:
    """While lists are stored, named and taken away: one operation in five, of a step's files one."""
    monkeypatch.setattr(plan, "WORTH_LISTS", 1)
    story = IndexedStory(tmp_path / "all", Operations(tmp_path / "all"))
    story.run()
    done = story.operations.done
    mine = {stop for i, each in enumerate(done) if "/indexes/" in each for stop in range(i, i + 9)}
    stops = [i for i in sorted(mine) if i < len(done) and ("lists1_" not in done[i] or "order" in done[i])]
    assert any(done[i].startswith("remove_tree") for i in stops) and len(stops) > 20
    for stop in stops[share::5]:
        stop_at(tmp_path, IndexedStory, how, stop)
