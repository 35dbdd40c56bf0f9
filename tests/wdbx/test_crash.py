"""Whatever storage operation fails, dies or is torn: the store opens, holds what was acknowledged, and is whole.

Every run lets one operation in five go wrong, in every mode others; `make thorough` every operation in every mode.
"""

import contextlib
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.storage.lock import WriterLock
from tests.thorough import usual
from tests.wdbx.crashes import Killed, Operations, Quick, copy_store

Held = dict[str, list[int]]
MODES = ("fail", "kill", "tear", "power off", "power off, some luck")


class Story:
    """A short life of a store, and what it held at every version that was acknowledged."""

    options: ClassVar[dict[str, Any]] = {}  # that it is opened with

    def __init__(self, root: Path, operations: Operations) -> None:
        self.root, self.operations = root, operations
        self.now: Held = {}
        self.acknowledged: dict[int, Held] = {0: {}}
        self.possible: list[Held] = [{}]  # what is there, and what may be: a write that failed may yet be on disk
        self.ids = {"new"}
        self.tagged = 0
        self.batches = 3
        self.db: Database | None = None

    def run(self) -> None:
        """Writes, seals, merges, opens again; goes on after what failed, stops where the process dies."""
        for self.batches in (3, 1):
            with contextlib.suppress(OSError, InputError):
                self.db = Database(LocalStorage(self.root, self.operations), background=False, **self.options)
                self._look()
                self._write()
            with contextlib.suppress(OSError, InputError):
                if self.db is not None:
                    self.db.close()

    def _look(self) -> None:
        """What is there is known again: a write that failed is, or is not."""
        assert self.db is not None
        self.now = self._held(self.db)
        assert self.now in self.possible
        self.possible = [self.now]

    def _write(self) -> None:
        assert self.db is not None
        if "c" not in self.db.collections():
            with contextlib.suppress(InputError):
                self.db.create_collection("c", 2, metric="l2")
                self._remember()
        for batch in range(self.batches):
            self._upsert({f"{batch}-{i}": [batch, i] for i in range(3)} | {"same": [batch, batch]})
            self._delete(["0-1", f"{batch}-2"])
            if batch == 0:
                with contextlib.suppress(InputError):
                    self.db.collection("c").add_columns({"field": int})
                    self._remember()
            if batch == 1:
                self._import({"0-0": [7, 7], "i-1": [7, 8]})
                continue
            with contextlib.suppress(InputError):
                self.db.tag("tag")
                self.tagged = self.db.version - 1
                self._remember()
            with contextlib.suppress(OSError, InputError):
                self.db.seal(everything=batch == 2)
            self._remember()

    def _import(self, rows: Held) -> None:
        assert self.db is not None
        self.ids |= set(rows)
        self.possible.append(self.now | rows)
        with contextlib.suppress(OSError, InputError):
            columns = {"id": list(rows), "vector": np.array(list(rows.values()), np.float32)}
            self.db.collection("c").import_(columns)
            self._acknowledged()

    def _upsert(self, rows: Held) -> None:
        assert self.db is not None
        self.ids |= set(rows)
        self.possible.append(self.now | rows)
        with contextlib.suppress(InputError):
            self.db.collection("c").upsert(list(rows), list(rows.values()))
            self._acknowledged()

    def _delete(self, ids: list[str]) -> None:
        assert self.db is not None
        self.possible.append({k: v for k, v in self.now.items() if k not in ids})
        with contextlib.suppress(InputError):
            self.db.collection("c").delete(ids)
            self._acknowledged()

    def _acknowledged(self) -> None:
        self.now = self.possible[-1]
        self.possible = [self.now]
        self._remember()

    def _remember(self) -> None:
        assert self.db is not None
        self.acknowledged[self.db.version] = self.now

    def check(self, folder: Path) -> None:
        """The store in `folder` opens, holds what it must, perhaps what was being written, too, and is whole."""
        if not (folder / "wdbx.json").exists():
            assert max(self.acknowledged) == 0
        with Database(LocalStorage(folder, Quick()), background=False, **self.options) as db:
            last = max(self.acknowledged)
            assert db.version >= last
            held = self._held(db)
            assert held in self.possible
            assert db.resolve("tag") >= self.tagged if self.tagged else True
            assert db.verify() == []
            if "c" not in db.collections():
                db.create_collection("c", 2, metric="l2")
            db.collection("c").upsert(["new"], [[9, 9]])
            db.seal()
        with wdbx.open(folder, mode="r", **self.options) as db:
            assert self._held(db) == held | {"new": [9, 9]}
            assert db.verify() == []

    def _held(self, db: Database) -> Held:
        if "c" not in db.collections():
            return {}
        rows = db.collection("c").get(sorted(self.ids))
        held = {row.id: row.vector.tolist() for row in rows if row is not None}
        assert len(held) == len(db.collection("c"))
        return held  # type: ignore[return-value]


def steps(tmp_path: Path) -> list[str]:
    story = Story(tmp_path / "all", Operations(tmp_path / "all"))
    story.run()
    return story.operations.done


@pytest.mark.slow
@pytest.mark.parametrize(("how", "share"), usual(product(MODES, range(5)), zip(MODES, range(5), strict=True)))
def test_every_operation(tmp_path: Path, how: str, share: int) -> None:
    count = len(steps(tmp_path))
    assert count > 100
    for stop in range(share, count, 5):
        stop_at(tmp_path, Story, how, stop)


def stop_at(tmp_path: Path, kind: type[Story], how: str, stop: int) -> None:
    """Lets operation `stop` of a story go wrong, and checks what is left."""
    root = tmp_path / str(stop) / "store"
    root.parent.mkdir()
    operations = Operations(root, stop, "kill" if "power" in how else how, seed=stop, orbax=how == "kill")
    story = kind(root, operations)
    try:
        story.run()
    except Killed:
        assert how != "fail"
    said = operations.done[stop]
    copy = root.with_name("copy")
    if "power" in how:
        operations.power_off(copy, lucky="luck" in how)
    else:
        copy_store(root, copy)
    try:
        story.check(copy)
    except Exception as error:
        raise AssertionError(f"{how} at operation {stop}: {said}") from error


def test_a_writer_after_a_killed_one(tmp_path: Path) -> None:
    """The next one reads what the killed one did not bring to disk: so it must, before it builds on it."""
    root, operations = tmp_path / "store", Operations(tmp_path / "store")
    killed = Database(LocalStorage(root, operations), background=False)
    c = killed.create_collection("c", 2)
    c.upsert(["a"], [[1, 1]])
    operations.stop, operations.how = len(operations.done) + 1, "kill"
    with pytest.raises(Killed):
        c.upsert(["b"], [[1, 2]])
    assert operations.done[-1].startswith("sync log")
    assert isinstance(killed._lock, WriterLock)
    killed._lock.file.close()
    operations.dead, operations.stop = False, -1
    with Database(LocalStorage(root, operations), background=False) as db:
        assert len(db.collection("c")) == 2
        db.collection("c").upsert(["c"], [[1, 3]])
        operations.power_off(tmp_path / "copy", lucky=False)
    with wdbx.open(tmp_path / "copy") as db:
        assert len(db.collection("c")) == 3
        assert db.verify() == []
