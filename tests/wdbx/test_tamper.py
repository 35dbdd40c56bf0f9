"""Whatever is changed in a store, by one byte or by whole files, `verify` reports, and names the file."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.findings import Finding
from abi_jax.wdbx.pins import Pin
from abi_jax.wdbx.storage.local import LocalStorage
from abi_jax.wdbx.verify import verify

FLIPS = 500
# It says who writes, or wrote last and did not close the store; no version depends on it, and the next writer makes it.
NOT_COVERED = {"lock"}


def fill(db: Database) -> None:
    """Two collections, several segments with deaths, history, tags, and versions that only the log holds."""
    rng = np.random.default_rng(0)
    text = db.create_collection("text", 4, schema={"lang": str, "year": int})
    number = db.create_collection("number", 2, "l2", "int8", ids="int")
    for batch, count in enumerate((120, 40, 9)):
        ids = [f"doc-{i}" for i in range(batch * 5, batch * 5 + count)]
        text.upsert(ids, rng.normal(size=(count, 4)), {"lang": ["en"] * count, "year": list(range(count))})
        if batch == 0:
            number.upsert(range(30), rng.integers(-9, 9, (30, 2)).astype(np.int8))
        db.seal()
    db.tag("kept")
    text.delete(["doc-1", "doc-20"])
    text.upsert(["ü"], [[1, 2, 3, 4]], [{"lang": "de"}])


KEY = bytes(32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was closed, with the pin of a reader that was killed."""
    return make(tmp_path_factory.mktemp("tamper") / "store", None)


def make(root: Path, key: bytes | None) -> Path:
    with Database(LocalStorage(root), background=False, key=key) as db:
        fill(db)
    (root / "pins" / "reader").write_bytes(Pin(7, "").encode())
    assert verify(LocalStorage(root)) == []
    folders = {path.relative_to(root).parts[0] for path in files(root)} - {"keys.json"}
    assert folders == {"wdbx.json", "head", "lock", "log", "manifests", "segments", "history", "pins"}
    assert len(list((root / "segments").iterdir())) >= 3
    return root


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def found(root: Path, *names: str) -> list[Finding]:
    """What `verify` finds: something, in each of the files `names`, and it says what they hold."""
    findings = verify(LocalStorage(root))
    for name in names:
        of_file = [each for each in findings if each.file == name]
        assert of_file and all(each.holds and each.wrong for each in of_file), (name, findings)
    return findings


@pytest.mark.slow
def test_every_byte(store: Path) -> None:
    """Single bytes, each as likely as any other of its file, and no file without one."""
    flip(store, FLIPS)


@pytest.mark.slow
def test_every_byte_of_an_encrypted_store(tmp_path: Path) -> None:
    """Whoever looks has no key."""
    store = make(tmp_path / "store", KEY)
    assert (store / "keys.json").exists()
    flip(store, FLIPS // 5)


def flip(store: Path, flips: int) -> None:
    rng = random.Random(0)
    paths = [path for path in files(store) if path.name not in NOT_COVERED and path.stat().st_size]
    sizes = [path.stat().st_size for path in paths]
    chosen = paths + rng.choices(paths, sizes, k=max(flips - len(paths), 0))
    for path in chosen:
        data = path.read_bytes()
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        name = path.relative_to(store).as_posix()
        assert name in {each.file for each in verify(LocalStorage(store))}, f"byte {at} of {name}"
        path.write_bytes(data)
    assert verify(LocalStorage(store)) == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "empty", "by one byte", "by half", "one byte more", "zeros"])
def test_whole_files(store: Path, how: str) -> None:
    for path in files(store):
        name, data = path.relative_to(store).as_posix(), path.read_bytes()
        if name in NOT_COVERED or (how == "deleted" and name.startswith("pins/")):
            continue  # without its pin a reader may miss files, and begins again
        changed = {
            "deleted": None,
            "empty": b"",
            "by one byte": data[:-1],
            "by half": data[: len(data) // 2],
            "one byte more": data + b"\n",
            "zeros": bytes(len(data)),
        }[how]
        if changed is None:
            path.unlink()
        else:
            path.write_bytes(changed)
        findings = verify(LocalStorage(store))
        log_is_gone = changed is None and name.startswith("log/")
        assert {"log"} if log_is_gone else {name} <= {each.file for each in findings}, name
        path.write_bytes(data)


@pytest.mark.parametrize("folder", ["manifests", "segments", "history", "log"])
def test_swapped(store: Path, folder: str) -> None:
    """Two files of a kind, each in the place of the other."""
    paths = [path for path in files(store / folder) if path.stat().st_size]
    for one in paths:
        other = next((p for p in paths if p.name == one.name and p.read_bytes() != one.read_bytes()), None)
        other = other or next((p for p in paths if p.read_bytes() != one.read_bytes()), None)
        if other is None:
            continue
        a, b = one.read_bytes(), other.read_bytes()
        one.write_bytes(b)
        other.write_bytes(a)
        found(store, one.relative_to(store).as_posix(), other.relative_to(store).as_posix())
        one.write_bytes(a)
        other.write_bytes(b)


def test_swapped_segments(store: Path) -> None:
    one, other = sorted((store / "segments").iterdir())[:2]
    one.rename(store / "between")
    other.rename(one)
    (store / "between").rename(other)
    assert {each.file.split("/")[1] for each in found(store)} == {one.name, other.name}


@pytest.mark.parametrize("name", ["notes.txt", "log/notes.txt", "segments/00000099/vectors/0.0", "pins/x", ".tmp-1"])
def test_added(store: Path, name: str) -> None:
    (store / name).parent.mkdir(parents=True, exist_ok=True)
    (store / name).write_bytes(b"added")
    found(store, name)


def test_older_files_put_back(store: Path, tmp_path: Path) -> None:
    """Of everything that is replaced or deleted in the life of a store, the older file put back is found."""
    earlier: dict[str, list[bytes]] = {}
    for life in range(3):
        with Database(LocalStorage(store), background=False) as db:
            for step in range(2):
                db.collection("text").upsert([f"new-{life}-{step}"], np.ones((1, 4)))
                if step:
                    db.seal()
                for path in files(store):
                    data = path.read_bytes()
                    seen = earlier.setdefault(path.relative_to(store).as_posix(), [])
                    seen += [] if data in seen else [data]
        earlier["head"] += [(store / "head").read_bytes()]
    assert verify(LocalStorage(store)) == []
    tried = 0
    for name, versions in earlier.items():
        path = store / name
        now = path.read_bytes() if path.exists() else None
        for data in versions:
            if data == now or name in NOT_COVERED or name.startswith("pins/"):
                continue
            tried += 1
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            assert verify(LocalStorage(store)), f"an older {name}, put back"
            path.unlink() if now is None else path.write_bytes(now)
    assert tried > 20
    assert verify(LocalStorage(store)) == []


def test_a_version_deleted_from_the_log(store: Path) -> None:
    """Whole records, cut out of the middle or off the end: the bytes that are left are all well formed."""
    log = files(store / "log")[-1]
    data = log.read_bytes()
    starts = [at for at in range(128, len(data)) if data[at : at + 4] == b"WREC"] + [len(data)]
    assert len(starts) > 3
    for i in range(len(starts) - 1):
        log.write_bytes(data[: starts[i]] + data[starts[i + 1] :])
        assert verify(LocalStorage(store)), f"record {i} of {len(starts) - 1}"


def test_no_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a WDBX store"):
        verify(LocalStorage(tmp_path))
    (tmp_path / "s").mkdir()
    with wdbx.open(tmp_path / "s") as db:
        assert db.verify() == []
