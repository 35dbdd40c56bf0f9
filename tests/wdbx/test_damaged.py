"""A damaged store, opened all the same: what it shows is true, and it says what it does not show."""

import random
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from tests.thorough import usual
from tests.wdbx.crashes import Quick

KEY = bytes(range(32))
HOW = ("a byte", "cut", "deleted")
Past = dict[int, dict[str, dict[str, Any]]]
NOTHING_WITHOUT = ("wdbx.json", "keys.json", "manifests")  # which all else stands on


class Life:
    """Writes a store, and knows what it held at every version."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.now: dict[str, dict[str, Any]] = {}
        self.past: Past = {}
        self.rng = np.random.default_rng(0)

    def seen(self) -> None:
        self.past[self.db.version] = {name: dict(rows) for name, rows in self.now.items()}

    def create(self, name: str) -> None:
        self.db.create_collection(name, 2, "l2", schema={"n": int})
        self.now[name] = {}
        self.seen()

    def upsert(self, name: str, ids: list[str]) -> None:
        vectors = self.rng.integers(0, 99, (len(ids), 2)).tolist()
        self.db.collection(name).upsert(ids, vectors, {"n": [v[0] for v in vectors]})
        self.now[name] |= dict(zip(ids, vectors, strict=True))
        self.seen()

    def delete(self, name: str, ids: list[str]) -> None:
        self.db.collection(name).delete(ids)
        for each in ids:
            self.now[name].pop(each, None)
        self.seen()

    def seal(self) -> None:
        self.db.seal()
        self.seen()


def more(life: Life, turn: int) -> None:
    life.upsert("big", ["a300", f"d{turn}"])
    life.delete("big", ["a301"])
    life.upsert("small", ["s2", f"s3{turn}"])


def written(path: Path, key: bytes | None) -> Past:
    """Two collections; one has large and small segments, updates and deaths across them, and rows in two logs."""
    with Database(LocalStorage(path, Quick()), background=False, key=key) as db:
        life = Life(db)
        life.create("big")
        life.create("small")
        life.upsert("big", [f"a{i}" for i in range(400)])
        life.upsert("small", ["s1", "s2"])
        life.seal()
        life.upsert("big", [f"a{i}" for i in range(20)] + [f"b{i}" for i in range(50)])
        life.delete("big", ["a100", "b3"])
        life.seal()
        life.upsert("big", ["a200", "c"])
        life.delete("big", ["a201"])
        life.seal()
        more(life, 0)
    with Database(LocalStorage(path, Quick()), background=False, key=key) as life.db:
        more(life, 1)
    return life.past


@pytest.fixture(scope="module", params=[None, KEY], ids=["plain", "encrypted"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Past, bytes | None]:
    path = tmp_path_factory.mktemp("damaged") / "store"
    past = written(path, request.param)
    assert wdbx.verify(path) == []
    assert {entry.name for entry in path.iterdir()} >= {"log", "segments", "manifests", "history", "head"}
    assert len(list((path / "segments").iterdir())) == 4
    return path, past, request.param


def check(db: Database, past: Past) -> int:
    """What is shown is true at every version; how many rows there are at the last one."""
    for version in sorted(past):
        if version > db.version:
            continue
        for name, view in db.views(version).items():
            truth = past[version][name]
            rows = {row.id: row for row in view.get(view.ids()) if row}
            assert {id_: row.vector.tolist() for id_, row in rows.items()} == {
                id_: truth.get(str(id_)) for id_ in rows
            }, (version, name)
            assert all(row.metadata["n"] == row.vector[0] for row in rows.values())
    return sum(len(view) for view in db.views().values())


def opened(path: Path, key: bytes | None) -> Database:
    return Database(LocalStorage(path, Quick()), "r", key=key, damaged="ignore")


def test_what_is_not_damaged(whole: tuple[Path, Past, bytes | None], tmp_path: Path) -> None:
    path, past, key = whole
    with opened(path, key) as db:
        assert db.left_out == ()
        assert check(db, past) == sum(map(len, past[max(past)].values()))
    with pytest.raises(InputError, match="damaged 'x': expected one of refuse, ignore"):
        wdbx.open(path, "r", key=key, damaged="x")
    with pytest.raises(InputError, match="damaged='ignore' with mode 'a': what is damaged can be read, mode 'r'"):
        wdbx.open(tmp_path / "new", key=key, damaged="ignore")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("how", "share"), usual(product(HOW, (0, 1)), [("a byte", 0), ("cut", 1), ("deleted", 0)]))
def test_every_file(whole: tuple[Path, Past, bytes | None], tmp_path: Path, how: str, share: int) -> None:
    path, past, key = whole
    rng = random.Random(how)
    shown = {}
    store = Path(shutil.copytree(path, tmp_path / "store"))
    every = sum(map(len, past[max(past)].values()))
    small: list[Path] = []
    large: list[Path] = []
    for file in sorted(each for each in store.rglob("*") if each.is_file() and each.stat().st_size):
        (large if file.parent.parent.parent.name == "segments" else small).append(file)
    for file in small + large[share::2]:
        name, data = file.relative_to(store).as_posix(), file.read_bytes()
        if how == "a byte":
            at = rng.randrange(len(data))
            file.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        elif how == "cut":
            file.write_bytes(data[: len(data) // 2])
        else:
            file.unlink()
        try:
            with opened(store, key) as db:
                rows = check(db, past)
                assert db.left_out or rows == every or name.startswith(("log/", "head")), name
                shown[name] = (db.version, rows, [each.file for each in db.left_out])
        except wdbx.WdbxError as error:
            assert isinstance(error, wdbx.DamagedError) and name.startswith(NOTHING_WITHOUT), (name, error)
        except InputError:
            assert name == "wdbx.json"
        file.write_bytes(data)
    for name, (version, rows, files) in shown.items():
        if name.startswith(("segments", "history")):
            assert version == max(past) and name in files and rows > 0, name
        if name.startswith("log"):
            assert version >= int(name[4:24]) - 1, name  # what was before the file is there
    assert sum(name.startswith("segments") for name in shown) > 10
    assert sum(name.startswith("log") for name in shown) == 2


def test_a_segment_that_is_damaged(whole: tuple[Path, Past, bytes | None], tmp_path: Path) -> None:
    """Its rows are not there, all others are, and none that died comes back; a collection may have to go."""
    path, past, key = whole
    store, last = Path(shutil.copytree(path, tmp_path / "store")), max(past)
    vectors = sorted(store.glob("segments/*/vectors/0.0"), key=lambda each: each.stat().st_size)
    big = vectors[-1]
    big.write_bytes(bytes(len(big.read_bytes())))
    with opened(store, key) as db:
        (finding,) = db.left_out
        assert finding.file == big.relative_to(store).as_posix() and finding.wrong == "is not what was sealed"
        shown = set(db.collection("big").ids())
        lost = set(past[last]["big"]) - shown
        assert {"a0", "a200", "a300", "b1", "c", "d0", "d1"} <= shown and "a50" in lost and "a201" not in shown
        assert len(db.collection("small")) == len(past[last]["small"])
        with pytest.raises(wdbx.DamagedError, match=r"is damaged, and shows nothing for certain: segments/"):
            db.collection("small").prove("s1")
        assert db.collection("big").export(tmp_path / "rescued.jsonl") == len(shown)
    deaths = max(store.glob("segments/*/deaths/0.0"))
    deaths.write_bytes(bytes(len(deaths.read_bytes())))
    with opened(store, key) as db:
        assert db.collections() == ["small"]
        with pytest.raises(wdbx.DamagedError, match=r"collection 'big' is left out: segments/.*is not what was sealed"):
            db.collection("big")
        assert db.refresh() == last and db.collections() == ["small"] and len(db.left_out) == 2
    with pytest.raises(wdbx.DamagedError):
        wdbx.open(store, "r", key=key).backup(tmp_path / "backup")


def test_a_log_that_is_damaged(whole: tuple[Path, Past, bytes | None], tmp_path: Path) -> None:
    """All is there up to the version that is damaged."""
    path, past, key = whole
    store = Path(shutil.copytree(path, tmp_path / "store"))
    logs = sorted(store.glob("log/*"))
    data = logs[-1].read_bytes()
    heads = [at for at in range(128, len(data)) if data[at : at + 4] == b"WREC"]
    broken = heads[1] + 140  # in the payload of the second record
    logs[-1].write_bytes(data[:broken] + bytes([data[broken] ^ 1]) + data[broken + 1 :])
    first = int(logs[-1].name.split("-")[0])
    with pytest.raises(wdbx.DamagedError, match=f"version {first + 1} and later.*a record is damaged"):
        wdbx.open(store, "r", key=key)
    with opened(store, key) as db:
        assert db.version == first
        assert [each.file for each in db.left_out] == [f"log/{logs[-1].name}", "head"]
        assert check(db, past) == sum(map(len, past[first].values()))
    logs[0].write_bytes(b"none")  # what lies behind what is sealed
    with opened(store, key) as db:
        assert db.version < first and check(db, past) > 0


def test_while_it_is_written(tmp_path: Path) -> None:
    """What goes because another process has sealed it is not damage."""
    with Database(LocalStorage(tmp_path / "s", Quick()), background=False, retention=0) as db:
        life = Life(db)
        life.create("c")
        with opened(tmp_path / "s", None) as reader:
            for turn in range(6):
                life.upsert("c", [f"r{turn}", "same"])
                db.seal(everything=turn % 2 == 0)
                life.seen()
                assert reader.refresh() == db.version
                assert reader.left_out == ()
                assert set(reader.collection("c").ids()) == set(life.now["c"])


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """It is named as one that is damaged, and the rest is shown."""
    with wdbx.open(tmp_path / "store") as db:
        for name in ("a", "b"):
            c = db.create_collection(name, 2, ids="int")
            c.import_({"id": np.arange(3), "vector": np.ones((3, 2), np.float32)})
    vectors = min((tmp_path / "store" / "segments").glob("*/vectors/0.0"))
    vectors.unlink()
    vectors.mkdir()
    with pytest.raises(wdbx.DamagedError, match=r"vectors/0\.0"):
        wdbx.open(tmp_path / "store", "r")
    [found] = wdbx.verify(tmp_path / "store")
    assert found.file.endswith("vectors/0.0") and found.wrong == "cannot be read: Is a directory"
    with wdbx.open(tmp_path / "store", "r", damaged="ignore") as db:
        assert [each.file for each in db.left_out] == [found.file]
        assert db.collection("a").ids() == [] and db.collection("b").ids() == [0, 1, 2]
