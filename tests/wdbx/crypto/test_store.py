"""A store with a key: who has it reads everything, who has not sees sizes; what is erased does not come back."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.keyring import KEYS_FILE
from abi_jax.wdbx.load import STORE_FILE

KEY = bytes(range(32))
OTHER = bytes(range(1, 33))
VECTOR = np.arange(1, 17, dtype=np.float32) * 0.7320508
SECRETS: dict[str, bytes] = {
    "collection": b"board-minutes",
    "field": b"whistleblower",
    "id": b"memo-of-the-ninth",
    "metadata": b"Ada Lovelace, Countess",
    "tag": b"before-the-merger",
    "tenant": b"acme-laboratories",
    "vector": VECTOR[:4].tobytes(),
    "row": VECTOR.tobytes(),
}


def fill(db: wdbx.Database) -> None:
    """Every secret once in a log, once in a segment, and a manifest over it."""
    tenant = SECRETS["tenant"].decode() if db.storage.ring else ""
    for i, name in enumerate((SECRETS["collection"].decode(), f"{SECRETS['collection'].decode()}-2")):
        schema = {SECRETS["field"].decode(): str}
        c = db.create_collection(name, 16, metric="l2", schema=schema, tenant=tenant if i else "")
        about = {SECRETS["field"].decode(): SECRETS["metadata"].decode()}
        ids = [f"{SECRETS['id'].decode()}-{j}" for j in range(300)]
        c.upsert(ids, np.tile(VECTOR, (300, 1)), [about] * 300)
        c.delete(ids[:3])
    db.tag(SECRETS["tag"].decode())


def written(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def found(path: Path) -> set[str]:
    """Which secrets can be read in some file's bytes, or in a file's name."""
    everything = [*written(path).values(), *(name.encode() for name in written(path))]
    return {what for what, secret in SECRETS.items() if any(secret in data for data in everything)}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Writes a store: sealed, and with the same secrets again in its log."""

    def made(name: str = "store", **options: Any) -> Path:
        path = tmp_path / name
        with wdbx.open(path, **options) as db:
            fill(db)
            db.seal()
            c = db.collection(SECRETS["collection"].decode())
            c.upsert([SECRETS["id"].decode()], [VECTOR], {SECRETS["field"].decode(): [SECRETS["metadata"].decode()]})
            db.tag(SECRETS["tag"].decode() + " again")
            db.create_collection(SECRETS["collection"].decode() + "-3", 2)
        return path

    return made


def test_without_the_key_nothing_can_be_read(make: Callable[..., Path]) -> None:
    assert found(make("plain")) == set(SECRETS) - {"tenant"}  # so the search finds what is there
    path = make("sealed", key=KEY)
    assert found(path) == set()
    with wdbx.open(path, key=KEY) as db:
        c = db.collection(SECRETS["collection"].decode())
        assert len(c) == 298
        hit = c.query(VECTOR, top_k=1)[0]
        assert isinstance(hit, wdbx.Hit)
        assert hit.id == "memo-of-the-ninth" and hit.score == 0
        assert hit.metadata == {"whistleblower": "Ada Lovelace, Countess"}
        assert c.view(SECRETS["tag"].decode()).version == 6


def test_the_wrong_key_changes_nothing(make: Callable[..., Path]) -> None:
    path = make(key=KEY)
    before = written(path)
    for mode in ("a", "r"):
        with pytest.raises(wdbx.NoKeyError, match="under another key than the one given"):
            wdbx.open(path, mode=mode, key=OTHER)
        with pytest.raises(wdbx.NoKeyError, match="is encrypted; expected its key"):
            wdbx.open(path, mode=mode)
    with pytest.raises(wdbx.NoKeyError, match="under another key"):
        wdbx.verify(path, key=OTHER)
    assert written(path) == before


def test_a_key_for_a_plain_store(make: Callable[..., Path]) -> None:
    path = make()
    before = written(path)
    with pytest.raises(InputError, match="is not encrypted; expected no key"):
        wdbx.open(path, key=KEY)
    with wdbx.open(path) as db:
        for call in (lambda: db.rotate(OTHER), lambda: db.erase_tenant("x")):
            with pytest.raises(InputError, match="is not encrypted; expected a store that was made with a key"):
                call()
        with pytest.raises(InputError, match=r"tenant 'x'.*is not encrypted"):
            db.create_collection("c", 2, tenant="x")
    assert set(written(path)) >= set(before) - {"head"}


def test_verify_without_the_key_finds_what_was_changed(make: Callable[..., Path]) -> None:
    path = make(key=KEY)
    assert wdbx.verify(path) == []
    assert wdbx.verify(path, key=KEY) == []
    for name, data in written(path).items():
        if name == "lock" or not data:
            continue
        at = len(data) * 2 // 3
        (path / name).write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        assert any(name in str(finding) for finding in wdbx.verify(path)), name
        (path / name).write_bytes(data)
    assert wdbx.verify(path) == []


def test_rotation_touches_no_data(make: Callable[..., Path]) -> None:
    path = make(key=KEY)
    with wdbx.open(path, key=KEY) as db:
        before = written(path)
        db.rotate(OTHER)
        assert {name for name, data in written(path).items() if data != before.get(name)} == {KEYS_FILE}
        db.collection("board-minutes").upsert(["after"], [VECTOR])
        db.seal()
    with pytest.raises(wdbx.NoKeyError):
        wdbx.open(path, key=KEY)
    with wdbx.open(path, key=OTHER) as db:
        assert len(db.collection("board-minutes")) == 299
        assert db.verify() == []


def test_keys_go_with_what_they_encrypted(make: Callable[..., Path]) -> None:
    path = make(key=KEY)
    for _ in range(3):
        with wdbx.open(path, key=KEY, retention=0) as db:
            db.collection("board-minutes").upsert(["more"], [VECTOR])
            db.compact()
    keys = json.loads((path / KEYS_FILE).read_bytes())["keys"]
    names = written(path)
    assert all(any(name.startswith(each["of"]) for name in names) for each in keys.values())
    assert len(keys) < 12


def test_an_erased_tenant_is_noise(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(key=KEY)
    shutil.copytree(path, tmp_path / "copy")
    with wdbx.open(path, key=KEY) as db:
        handle = db.collection("board-minutes-2")
        assert len(handle) == 297
        before = db.version
        with pytest.raises(InputError, match="tenant 'nobody' has no collection; expected one of"):
            db.erase_tenant("nobody")
        version = db.erase_tenant("acme-laboratories")
        assert version == before + 1
        assert db.collections() == ["board-minutes", "board-minutes-3"]
        with pytest.raises(InputError, match="was erased"):
            handle.upsert(["again"], [VECTOR])
        with pytest.raises(InputError, match=f"collection 2 was erased at version {version}"):
            handle.view(before)
        assert db.verify() == []
        db.create_collection("new", 2, tenant="acme-laboratories").upsert(["x"], [[1, 2]])  # a new life, with new keys
    # In the copy, too: its files, with the keys that are left.
    (tmp_path / "copy" / KEYS_FILE).write_bytes((path / KEYS_FILE).read_bytes())
    with pytest.raises(wdbx.DamagedError, match="has no data key"):
        wdbx.open(tmp_path / "copy", key=KEY)
    for _ in range(2):
        with wdbx.open(path, key=KEY) as db:
            assert db.collections() == ["board-minutes", "board-minutes-3", "new"]
            assert len(db.collection("board-minutes")) == 298
            assert [hit.id for hits in db.collection("new").view().search([[1, 2]]) for hit in hits] == ["x"]
            assert db.verify() == []
            db.compact()
            assert db.verify() == []
    assert wdbx.verify(path) == []
    with wdbx.open(path, key=KEY, mode="r") as db:
        assert next(each for each in db.log() if each["kind"] == "erase")["version"] == version


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def tenants(path: Path) -> set[str]:
    return {each["tenant"] for each in json.loads((path / KEYS_FILE).read_bytes())["keys"].values()}


def test_an_erasure_is_finished_whatever_happens(
    make: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(key=KEY)
    with wdbx.open(path, key=KEY) as db:
        db.tag("a key of this log is there")
        monkeypatch.setattr(db.storage, "put", full_disk)
        with pytest.raises(wdbx.WdbxError, match=r"is erased since version .*, but its keys are still in keys\.json"):
            db.erase_tenant("acme-laboratories")
        monkeypatch.undo()
        shutil.copytree(path, tmp_path / "copy")  # as if the process ended here
        db.collection("board-minutes").upsert(["later"], [VECTOR])
        db.seal()
    assert tenants(path) == {""}
    path = tmp_path / "copy"
    assert len(tenants(path)) == 2
    with wdbx.open(path, key=KEY) as db:
        assert db.collections() == ["board-minutes", "board-minutes-3"]
        assert db.verify() == []
    assert tenants(path) == {""}


def test_lost_keys_are_told_from_erased_ones(make: Callable[..., Path]) -> None:
    path = make(key=KEY)
    (path / KEYS_FILE).rename(path / "elsewhere")
    with pytest.raises(wdbx.DamagedError, match=r"keys\.json is missing"):
        wdbx.open(path, key=KEY)
    assert [finding.file for finding in wdbx.verify(path)] == [KEYS_FILE, "elsewhere"]
    (path / "elsewhere").rename(path / KEYS_FILE)
    about = (path / STORE_FILE).read_bytes()
    (path / STORE_FILE).unlink()
    (path / "head").unlink()
    before = written(path)
    with pytest.raises(wdbx.DamagedError, match=r"has lost its wdbx\.json"):
        wdbx.open(path, key=KEY)
    assert written(path) == before
    (path / STORE_FILE).write_bytes(about)
    wdbx.open(path, key=KEY).close()


def test_readers_see_keys_that_are_made_after_they_opened(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "s", key=KEY) as db:
        c = db.create_collection("c", 2, metric="l2")
        with wdbx.open(tmp_path / "s", mode="r", key=KEY) as reader:
            for i in range(3):
                c.upsert([str(i)], [[i, i]])
                db.seal()
                reader.refresh()
                assert len(reader.collection("c")) == i + 1
            with pytest.raises(InputError, match="open for reading"):
                reader.rotate(OTHER)


def test_the_same_rows_have_other_digests_under_another_key(make: Callable[..., Path]) -> None:
    contents = []
    for name, key in (("a", KEY), ("b", KEY), ("c", None)):
        path = make(name, **({} if key is None else {"key": key}))
        manifest = json.loads(max((path / "manifests").iterdir()).read_bytes())
        contents += [step["content"] for step in manifest["segments"].values()]
    assert len(set(contents[:4])) == 4  # who guesses a row's content cannot confirm it
