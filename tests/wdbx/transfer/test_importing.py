"""Imports: all rows or none, in one version, whatever is written beside them."""

import os
import threading
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.transfer import importing
from tests.wdbx.crashes import Quick

ROWS, DIM = 700, 4


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "STEP_BYTES", 200 * DIM * 4)
    monkeypatch.setattr("abi_jax.wdbx.transfer.piece.PIECE_BYTES", 60 * DIM * 4)


def vectors(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, DIM)).astype(np.float32)


@pytest.mark.parametrize("ids", ["str", "int"])
def test_rows_replace_those_that_are_there(tmp_path: Path, small_steps: None, ids: str) -> None:
    x = vectors()
    order = np.random.default_rng(1).permutation(ROWS)
    name = (lambda i: f"document {i}") if ids == "str" else (lambda i: i)
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM, "l2", schema={"year": int}, ids=ids)
        c.upsert([name(0), name(-1)], [[1] * DIM] * 2, {"year": [7, 7]})
        db.seal()
        c.upsert([name(1), name(-2)], [[2] * DIM] * 2)
        before = db.version
        assert c.import_({"id": [name(i) for i in order.tolist()], "vector": x[order], "year": order}) == ROWS
        assert db.version == before + 2  # a sealing, and the import
    for _ in range(2):
        with wdbx.open(tmp_path / "store") as db:
            c = db.collection("c")
            assert len(c) == ROWS + 2
            assert len(c.view(before)) == len(c.view(before + 1)) == 4
            for i, row in enumerate(c.get([name(i) for i in range(ROWS)])):
                assert row is not None
                assert row.vector.tolist() == x[i].tolist()
                assert (row.metadata, row.born) == ({"year": i}, before + 2)
            assert db.verify() == []
            db.compact()
            assert c.view(before).get(name(0))[0].vector.tolist() == [1] * DIM  # type: ignore[union-attr]
            assert db.verify() == []


def test_what_is_written_meanwhile(tmp_path: Path, small_steps: None) -> None:
    """Whichever comes later has the row; rows that are written while an import streams are replaced by it."""
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM, "l2")
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                c.upsert(["3", "500", "other"], [[9] * DIM] * 3)
                db.seal()

        writer = threading.Thread(target=write)
        writer.start()
        try:
            c.import_(vectors())
        finally:
            stop.set()
            writer.join()
        c.import_(vectors(1))
        c.upsert(["4"], [[8] * DIM])
        x = vectors(1)
        x[4] = 8
    with wdbx.open(tmp_path / "store") as db:
        c = db.collection("c")
        assert len(c) == ROWS + 1
        assert np.array_equal([row.vector for row in c.get([str(i) for i in range(ROWS)]) if row], x)
        assert db.verify() == []


def test_a_bad_row_leaves_nothing(tmp_path: Path, small_steps: None) -> None:
    x = vectors()
    x[678, 2] = np.nan
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM)
        with pytest.raises(InputError, match="the array: vector 678 has nan at 2"):
            c.import_(x)
        assert db.version == 1
        assert not list((tmp_path / "store" / "segments").iterdir())
        assert db.verify() == []


def test_what_is_wrong_first_is_said(tmp_path: Path, small_steps: None) -> None:
    """Rows of earlier steps are still being written then."""
    ids = [f"n{i}" for i in range(ROWS)]
    ids[230], ids[440] = ids[3], ids[441]
    x = vectors()
    x[678, 2] = np.nan
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM)
        with pytest.raises(InputError, match="id 'n3' comes twice"):
            c.import_({"id": ids, "vector": x})
        ids[230] = "n230"
        with pytest.raises(InputError, match="id 'n441' comes twice"):
            c.import_({"id": ids, "vector": x})
        ids[440] = "n440"
        with pytest.raises(InputError, match="vector 678 has nan"):
            c.import_({"id": ids, "vector": x})
        assert not list((tmp_path / "store" / "segments").iterdir())


class _Together(Quick):
    """Steps of an import of which the first two wait for each other."""

    def __init__(self) -> None:
        self.both = threading.Barrier(2)
        self.saved = count(1)  # by two threads

    def save_arrays(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        if next(self.saved) <= 2:
            self.both.wait(100)
        super().save_arrays(folder, arrays)


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "encrypted"])
def test_two_steps_are_written_at_once(tmp_path: Path, small_steps: None, key: bytes | None) -> None:
    with Database(LocalStorage(tmp_path / "store", _Together()), background=False, key=key) as db:
        c = db.create_collection("c", DIM, ids="int")
        order = np.random.default_rng(2).permutation(ROWS)
        c.import_({"id": order, "vector": vectors()[order]})
        assert [row.vector.tolist() for row in c.get(range(ROWS)) if row] == vectors().tolist()
        assert db.verify() == []


def test_an_id_that_comes_twice(tmp_path: Path, small_steps: None) -> None:
    ids = [f"n{i}" for i in range(ROWS)]
    ids[690] = ids[3]
    ids[691] = ids[688]
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", DIM)
        with pytest.raises(InputError, match="id 'n3' comes twice"):
            c.import_({"id": ids[:691], "vector": vectors()[:691]})
        with pytest.raises(InputError, match="id 'n688' comes twice"):
            c.import_({"id": ids[600:], "vector": vectors()[600:]})
        assert len(c) == 0
        c.import_({"id": ids, "vector": vectors()}, duplicates="last")
        assert len(c) == ROWS - 2
        found = c.get(["n3", "n688"])
        assert [row.vector.tolist() for row in found if row] == vectors()[[690, 691]].tolist()
        assert db.verify() == []


def test_snapshots_stay(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "store", retention=0) as db:
        c = db.create_collection("c", DIM, "l2")
        c.upsert(["a"], [[1] * DIM])
        with db.snapshot() as snapshot:
            c.upsert(["a", "b"], [[2] * DIM] * 2)
            db.drop_collection("c")
            db.compact()
            assert snapshot.collections() == ["c"]
            assert len(snapshot["c"]) == 1
            assert snapshot["c"].query([1] * DIM)[0].score == 0  # type: ignore[union-attr]
            with db.at(snapshot.version) as again:
                assert again["c"].get("a")[0].vector.tolist() == [1] * DIM  # type: ignore[union-attr]
        with pytest.raises(InputError, match="no collection 'c' at version"):
            db.snapshot().collection("c")


def test_another_writer_has_taken_the_store_over(tmp_path: Path, small_steps: None) -> None:
    """An import that fails takes nothing away then: steps of the next writer have the numbers of its own."""
    store = tmp_path / "store"
    x = vectors()
    with Database(LocalStorage(store), background=False) as db:
        db.create_collection("c", DIM)
        after: list[Database] = []

        def rows() -> Iterator[dict[str, object]]:
            for i in range(ROWS):
                yield {"id": str(i), "vector": x[i]}
            until = monotonic() + 100
            while {"00000001", "00000002"} - set(os.listdir(store / "segments")) and monotonic() < until:
                sleep(0.01)
            (store / "lock").unlink()
            after.append(Database(LocalStorage(store), background=False))
            after[0].collection("c").upsert(["later"], x[:1])
            after[0].seal()
            yield {"id": "bad", "vector": x[0, :2]}

        with pytest.raises(InputError, match="the rows: "):
            db.collection("c").import_(rows())
    with after[0]:
        assert after[0].verify() == []
    with wdbx.open(store) as db:
        assert db.collection("c").ids() == ["later"]
