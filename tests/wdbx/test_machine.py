"""Any sequence of operations, with closing, kills, sealing and a reader in between, beside an oracle in memory."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage

DIM = 3
KNOWN = ["a", "b", "doc-1", "doc-10", "doc-2", "ü", "文"]
IDS = st.sampled_from(KNOWN)
VECTORS = st.lists(st.integers(-3, 3), min_size=DIM, max_size=DIM)
LANGS = st.sampled_from([None, "en", "de"])
NAMES = st.sampled_from(["c", "d"])  # of collections; "c" is always there
Oracle = dict[str, tuple[list[int], str | None]]
Held = dict[str, Oracle]


class Store(RuleBasedStateMachine):
    """Collections under `l2`; `past` is what they held at every version, `seen` what the reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(prefix="wdbx-"))
        self.now: Held = {}
        self.past: dict[int, Held] = {}
        self.tags: dict[str, int] = {}
        self.reader: Database | None = None

    @initialize()
    def create(self) -> None:
        self.db = self.open()
        self.create_or_drop("c")

    def open(self) -> Database:
        return Database(LocalStorage(self.folder / "store"), background=False)

    def remember(self) -> None:
        self.past[self.db.version] = {name: dict(rows) for name, rows in self.now.items()}

    @rule(name=st.just("d"))
    def create_or_drop(self, name: str) -> None:
        if name in self.now:
            self.db.drop_collection(name)
            del self.now[name]
        else:
            self.db.create_collection(name, DIM, metric="l2", schema={"lang": str})
            self.now[name] = {}
        self.remember()

    @rule(name=NAMES, rows=st.dictionaries(IDS, st.tuples(VECTORS, LANGS), min_size=1, max_size=4))
    def upsert(self, name: str, rows: Oracle) -> None:
        if name in self.now:
            about = [{"lang": lang} for _, lang in rows.values()]
            made = self.db.collection(name).upsert(list(rows), [v for v, _ in rows.values()], about)
            assert made == self.db.version
            self.now[name] |= rows
            self.remember()

    @rule(rows=st.dictionaries(IDS, st.tuples(VECTORS, LANGS), min_size=1, max_size=4))
    def import_(self, rows: Oracle) -> None:
        vectors = np.array([v for v, _ in rows.values()], np.float32)
        columns = {"id": list(rows), "vector": vectors, "lang": [lang for _, lang in rows.values()]}
        assert self.db.collection("c").import_(columns) == len(rows)
        self.now["c"] |= rows
        self.remember()

    @rule()
    def add_columns(self) -> None:
        """Rows say nothing of them."""
        fields = len(self.db.collection("c").spec.schema)
        if fields < 4:
            assert self.db.collection("c").add_columns({f"field {fields}": float}) == self.db.version
            self.remember()

    @rule(name=NAMES, ids=st.lists(IDS, min_size=1, max_size=3))
    def delete(self, name: str, ids: list[str]) -> None:
        if name in self.now:
            there = {each for each in ids if each in self.now[name]}
            assert self.db.collection(name).delete(ids) == len(there)
            for each in there:
                del self.now[name][each]
            self.remember()

    @rule(name=st.sampled_from(["kept", "v1.0"]), data=st.data())
    def tag(self, name: str, data: Any) -> None:
        self.tags[name] = data.draw(st.sampled_from(sorted(self.past)))
        self.db.tag(name, self.tags[name])
        self.remember()

    @precondition(lambda self: self.tags)
    @rule(data=st.data())
    def untag(self, data: Any) -> None:
        name = data.draw(st.sampled_from(sorted(self.tags)))
        del self.tags[name]
        self.db.untag(name)
        self.remember()

    @rule(everything=st.booleans())
    def seal(self, everything: bool) -> None:
        self.db.seal(everything)
        self.remember()

    @rule(kill=st.booleans())
    def open_again(self, kill: bool) -> None:
        """A store that is not closed is left as a kill would leave it: all that was acknowledged is on disk."""
        self.close_reader()
        if kill:
            copy = self.folder / f"copy-{len(list(self.folder.iterdir()))}"
            shutil.copytree(self.folder / "store", copy)
            self.db.close()
            shutil.rmtree(self.folder / "store")
            copy.rename(self.folder / "store")
        else:
            self.db.close()
        self.db = self.open()
        assert self.db.verify() == []

    @rule()
    def refresh(self) -> None:
        """A reader sees what it saw before, until it looks again; then what there is."""
        if self.reader is None:
            self.reader = wdbx.open(self.folder / "store", mode="r")
        else:
            self.check(self.reader, self.reader.version)
            assert self.reader.refresh() == self.db.version
        self.check(self.reader, self.db.version)

    def close_reader(self) -> None:
        if self.reader is not None:
            self.check(self.reader, self.reader.version)
            self.reader.close()
            self.reader = None

    @invariant()
    def holds_what_the_oracle_does(self) -> None:
        if hasattr(self, "db"):
            self.check(self.db, self.db.version)

    @rule(data=st.data())
    def look_back(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.past)))
        self.check(self.db, version)
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=self.db.head(version).time)
        found = self.db.resolve(moment)
        assert found >= version and self.db.head(found).time == self.db.head(version).time
        assert {name: self.db.resolve(name) for name in self.tags} == self.tags

    @rule(data=st.data(), id_=IDS)
    def prove(self, data: Any, id_: str) -> None:
        """With nothing but the last link, a proof shows what there was."""
        version = data.draw(st.sampled_from(sorted(self.past)))
        shown = wdbx.check_proof(self.db.collection("c").prove(id_, at=version), self.db.link())
        expected = self.past[version]["c"].get(id_)
        assert (None if shown.row is None else shown.row.vector.tolist()) == (expected[0] if expected else None)

    def check(self, db: Database, version: int) -> None:
        views = db.views(version)
        assert set(views) == set(self.past[version])
        for name, expected in self.past[version].items():
            check_view(views[name], expected)

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.close_reader()
            self.db.close()
        shutil.rmtree(self.folder)


def check_view(view: wdbx.View, expected: Oracle) -> None:
    assert len(view) == len(expected)
    ids = [*KNOWN, "nobody"]
    for each, row in zip(ids, view.get(ids), strict=True):
        assert (row is not None) == (each in expected)
        if row is not None:
            vector, lang = expected[each]
            assert row.vector.tolist() == vector
            assert row.metadata == ({} if lang is None else {"lang": lang})
    query = [1, 0, -1]
    for where, kept in ((None, expected), ({"lang": "en"}, {k: v for k, v in expected.items() if v[1] == "en"})):
        ranked = sorted(kept, key=lambda k: (float(np.square(np.subtract(kept[k][0], query)).sum()), k.encode()))
        assert [hit.id for hit in view.search([query], top_k=3, where=where)[0]] == ranked[:3]


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a WDBX store"):
        wdbx.open(tmp_path)
    with pytest.raises(InputError, match=r"not a WDBX store: it has no wdbx\.json"):
        wdbx.open(tmp_path, mode="r")
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]
