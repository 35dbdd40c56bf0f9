"""A store of objects: its whole life in each kind of object store, one writer, whole versions, damage, errors."""

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.pins import held
from abi_jax.wdbx.storage.place import open_storage
from tests.wdbx.storage.conftest import BUCKET, Place, fill, rows
from tests.wdbx.storage.object_server import Server

ROWS = 12


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "encrypted"])
def test_a_whole_life(place: Place, key: bytes | None) -> None:
    with place.open(key=key) as db:
        holds = fill(db)
        assert rows(db) == holds and db.verify() == []
        with place.open("r", key=key) as reader:
            assert rows(reader) == holds and reader.verify() == []
            db.tag("kept")
            db.collection("c").upsert(["late"], [[7, 7]])
            assert reader.refresh() == db.version and rows(reader) == holds | {"late": [7, 7]}
            assert [pin.version for pin in held(db.storage)] == [reader.version]
        assert held(db.storage) == []
    with place.open(key=key) as db:
        assert rows(db) == holds | {"late": [7, 7]}
        db.compact()
        assert [row is None for row in db.collection("c").get(["late", "a"], at="kept")] == [True, False]
        stats = db.stats()
        assert stats.bytes["segments"] > 0 and stats.bytes["log"] > 0 and stats.bytes["pins"] == 0
        assert [each["version"] for each in db.log()] == list(range(db.version, 0, -1))
    storage = place.storage()
    assert wdbx.verify(place.url, key=key) == [] and wdbx.verify(place.url) == []
    assert storage.read("lock") == b"" and not storage.written()
    assert len(storage.names("segments")) == 1 and storage.partial() == []


def test_steps_are_those_of_orbax(server: Server) -> None:
    """What is uploaded is what a folder would hold: with the parts of the log joined, it is a store there."""
    with wdbx.open(f"s3://{BUCKET}/orbax") as db:
        holds = fill(db)
        db.seal()
        paths = db.storage.paths(f"segments/{db.storage.names('segments')[0]}")
        assert {"_METADATA", "_CHECKPOINT_METADATA", "vectors/.zarray", "vectors/0.0"} <= set(paths)
    with wdbx.open(f"s3://{BUCKET}/orbax", "r") as db:
        assert rows(db) == holds


def test_downloaded_it_is_a_store_of_files(place: Place, tmp_path: Path) -> None:
    with place.open() as db:
        holds = fill(db)
        db.seal()
        db.collection("c").delete(["a"])
    storage = place.storage()
    for folder in ("", "log", "manifests", "segments", "history"):
        for path in storage.paths(folder) if folder else ["wdbx.json", "head", "lock"]:
            file = tmp_path / folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(storage.read(f"{folder}/{path}".lstrip("/")) or b"")
    assert wdbx.verify(tmp_path) == []
    with wdbx.open(tmp_path) as db:
        del holds["a"]
        assert rows(db) == holds


def test_readers_see_whole_versions(place: Place) -> None:
    """Each refresh is at least as new as the one before, and of one generation, while another seals and compacts."""
    ids = [f"row-{i}" for i in range(ROWS)]
    writer = place.open(retention=0.0)
    c = writer.create_collection("c", 2, "l2")

    def write() -> None:
        for n in range(1, 25):
            c.upsert(ids, np.full((ROWS, 2), n))
            if n % 4 == 0:
                writer.seal(everything=n % 8 == 0)

    thread = threading.Thread(target=write)
    thread.start()
    seen: list[float] = []
    with place.open("r") as reader:
        going, last = True, 0
        while going:
            going = thread.is_alive()
            assert reader.refresh() >= last
            last = reader.version
            found = [row.vector.tolist() for row in reader.collection("c").get(ids) if row is not None]
            assert len(found) in (0, ROWS) and len({tuple(each) for each in found}) <= 1
            seen += [found[0][0]] if found else []
        assert reader.verify() == []
    thread.join()
    writer.close()
    assert seen == sorted(seen) and seen[-1] == 24


def test_every_flipped_byte_is_named(place: Place) -> None:
    """In every object, at its beginning, its end and between; so is one that is missing, or cut off."""
    with place.open() as db:
        fill(db)
        db.seal()
        db.collection("c").upsert(["tail"], [[8, 8]])
        db.collection("c").delete(["a"])
    storage = place.storage()
    objects = storage.objects
    keys = [key for key in objects.names() if objects.get(key)[0]]
    assert len(keys) > 15
    for number, key in enumerate(keys):
        data = objects.get(key)[0] or b""
        at = [0, len(data) - 1, (number * 37) % len(data)][number % 3]
        flipped = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        damages = (flipped, data[:-1], None)
        for damage in damages if place.url.startswith("memory:") else damages[number % 3 :][:1]:
            objects.put(key, damage) if damage is not None else objects.delete([key])
            found = [each.file for each in wdbx.verify(place.url)]
            missing_head = damage is None and key.startswith("log/")
            assert any(key == file or key.startswith(f"{file}/") for file in found) or (missing_head and found), key
        objects.put(key, data)
    assert wdbx.verify(place.url) == []


@pytest.mark.parametrize("key", [None, bytes(range(32))], ids=["plain", "encrypted"])
def test_what_a_step_is_is_what_its_manifest_names(place: Place, key: bytes | None) -> None:
    """Nothing else there is read, however it is called; what is missing is damage."""
    with place.open(key=key) as db:
        holds = fill(db)
        db.seal(everything=True)
        step = f"segments/{db.storage.names('segments')[-1]}"
    objects = place.storage().objects
    for name in (".zarray", "0"):
        objects.put(f"{step}/planted/{name}", objects.get(f"{step}/id_ends/{name}")[0] or b"")
    objects.put(f"{step}/large", bytes(100))
    read: list[str] = []
    storage = place.storage()
    get_all = storage.objects.get_all

    def watched(keys: Iterable[str]) -> dict[str, bytes]:
        wanted = list(keys)
        read.extend(wanted)
        return get_all(wanted)

    storage.objects.get_all = watched  # type: ignore[method-assign]
    with Database(storage, "r", background=False, key=key) as db:
        assert rows(db) == holds
        assert f"{step}/large" not in read and not any(each.startswith(f"{step}/planted") for each in read)
        assert {each.file for each in db.verify()} == {
            f"{step}/{each}" for each in ("planted/.zarray", "planted/0", "large")
        }
    objects.delete([f"{step}/metadata/.zarray"])
    with pytest.raises(wdbx.DamagedError, match="metadata"):
        place.open("r", key=key)


def test_a_damaged_log_does_not_open(place: Place) -> None:
    """Objects are whole or not there: what is no record was changed, and is not cut off as what a crash left."""
    with place.open() as db:
        db.create_collection("c", 2).upsert(["a"], [[1, 1]])
    objects = place.storage().objects
    key = [key for key in objects.names("log/") if objects.get(key)[0]][-1]
    data = objects.get(key)[0] or b""
    parts = [*objects.names("log/")]
    for damage in (data[:-1], data[:-1] + b"x"):
        objects.put(key, damage)
        for mode in ("r", "a"):
            with pytest.raises(wdbx.DamagedError, match="is damaged"):
                place.open(mode)
    objects.put(key, data)
    refused = 0
    for part in parts:
        kept = objects.get(part)[0]
        objects.delete([part])
        try:
            with place.open("r") as reader:  # what held nothing is not missed
                assert rows(reader) == {"a": [1, 1]}
        except wdbx.DamagedError:
            refused += 1
            assert wdbx.verify(place.url)
        objects.put(part, kept or b"")
    assert refused == 3
    with place.open() as db:
        assert rows(db) == {"a": [1, 1]}


@pytest.mark.parametrize(
    "url, said",
    [
        ("ftp://host/store", r"scheme 'ftp' is not known; expected a path, or one of file://, memory://, gs://, s3://"),
        ("file://elsewhere/store", r"is on host 'elsewhere'; expected file:///path, of this machine"),
        ("s3://bucket", r"s3://bucket does not name a place for a store; expected s3://bucket/path"),
        ("gs:///store", r"expected gs://bucket/path"),
        ("s3://Not A Bucket/store", r"s3://Not A Bucket/store: .*expected s3://bucket/path"),
    ],
)
def test_urls_that_are_none(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        wdbx.open(url)


def test_a_url_that_became_a_path() -> None:
    for where in (Path("s3://bucket/store"), "s3:/bucket/store"):
        with pytest.raises(InputError, match="s3:/bucket/store is a URL with one slash"):
            wdbx.open(where)


def test_what_is_secret_in_a_url_is_not_repeated() -> None:
    with pytest.raises(InputError, match="has credentials in it") as caught:
        wdbx.open("s3://AKIAKEY:topsecret@bucket/store")
    assert "topsecret" not in str(caught.value)


def test_a_store_that_is_not_there(place: Place) -> None:
    with pytest.raises(InputError, match=r"is not a WDBX store: it has no wdbx\.json"):
        place.open("r")
    assert place.storage().objects.names() == []


def test_what_needs_a_folder_is_refused(place: Place) -> None:
    with place.open() as db, pytest.raises(InputError, match="is no folder of this machine"):
        _ = db.storage.root


def test_something_else_is_there(place: Place) -> None:
    storage = place.storage()
    storage.objects.put("photos/cat.jpg", b"cat")
    with pytest.raises(InputError, match="is not empty and not a WDBX store: it has photos"):
        place.open()
    assert storage.objects.names() == ["photos/cat.jpg"]


def test_memory_without_a_name_is_its_own() -> None:
    with wdbx.open("memory://") as one, wdbx.open("memory://") as other:
        one.create_collection("c", 2)
        assert one.collections() == ["c"] and other.collections() == []


def test_a_file_url(tmp_path: Path) -> None:
    with wdbx.open(f"file://{tmp_path}/a%20store") as db:
        db.create_collection("c", 2)
    assert (tmp_path / "a store" / "wdbx.json").is_file()
    assert open_storage(tmp_path / "a store").read("wdbx.json") is not None
