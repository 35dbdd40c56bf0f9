"""Any sequence of operations, with closing, kills and sealing in between, beside an oracle in memory."""

import shutil
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

DIM = 3
IDS = st.sampled_from(["a", "b", "doc-1", "doc-10", "doc-2", "ü", "文"])
VECTORS = st.lists(st.integers(-3, 3), min_size=DIM, max_size=DIM)
LANGS = st.sampled_from([None, "en", "de"])
Oracle = dict[str, tuple[list[int], str | None]]


class Store(RuleBasedStateMachine):
    """One collection under `l2`; `past` is what it held at every version."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp(prefix="wdbx-"))
        self.now: Oracle = {}
        self.past: dict[int, Oracle] = {}

    @initialize()
    def create(self) -> None:
        self.db = wdbx.open(self.folder / "store")
        self.db.create_collection("c", DIM, metric="l2", schema={"lang": str})
        self.remember()

    def remember(self) -> None:
        self.past[self.db.version] = dict(self.now)

    @property
    def c(self) -> wdbx.Collection:
        return self.db.collection("c")

    @rule(rows=st.dictionaries(IDS, st.tuples(VECTORS, LANGS), min_size=1, max_size=4))
    def upsert(self, rows: Oracle) -> None:
        about = [{"lang": lang} for _, lang in rows.values()]
        assert self.c.upsert(list(rows), [v for v, _ in rows.values()], about) == self.db.version
        self.now |= rows
        self.remember()

    @rule(ids=st.lists(IDS, min_size=1, max_size=3))
    def delete(self, ids: list[str]) -> None:
        assert self.c.delete(ids) == len({each for each in ids if each in self.now})
        for each in ids:
            self.now.pop(each, None)
        self.remember()

    @rule()
    def seal(self) -> None:
        self.db.seal()
        self.remember()

    @rule(kill=st.booleans())
    def open_again(self, kill: bool) -> None:
        """A store that is not closed is left as a kill would leave it: all that was acknowledged is on disk."""
        if kill:
            copy = self.folder / f"copy-{len(list(self.folder.iterdir()))}"
            shutil.copytree(self.folder / "store", copy)
            self.db.close()
            shutil.rmtree(self.folder / "store")
            copy.rename(self.folder / "store")
        else:
            self.db.close()
        self.db = wdbx.open(self.folder / "store")

    @invariant()
    def holds_what_the_oracle_does(self) -> None:
        if hasattr(self, "db"):
            self.check(self.db.version, self.now)

    @precondition(lambda self: self.past)
    @rule(data=st.data())
    def look_back(self, data: Any) -> None:
        version = data.draw(st.sampled_from(sorted(self.past)))
        self.check(version, self.past[version])

    def check(self, version: int, expected: Oracle) -> None:
        view = self.c.view(version)
        assert len(view) == len(expected)
        ids = ["a", "b", "doc-1", "doc-10", "doc-2", "ü", "文", "nobody"]
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

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
        shutil.rmtree(self.folder)


TestStore = Store.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and not a WDBX store"):
        wdbx.open(tmp_path)
    with pytest.raises(InputError, match=r"not a WDBX store: it has no wdbx\.json"):
        wdbx.open(tmp_path, mode="r")
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]
