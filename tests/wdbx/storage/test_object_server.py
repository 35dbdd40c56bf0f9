"""Servers that deny, fail, forget to answer, or do not look at conditions: clear errors, and nothing that is lost."""

from datetime import UTC, datetime

import pytest

from abi_jax import wdbx
from abi_jax.wdbx.errors import StorageError
from abi_jax.wdbx.storage.conditions import check_s3, signed
from tests.wdbx.storage.conftest import BUCKET, Place
from tests.wdbx.storage.object_server import Server

SERVICES = pytest.mark.parametrize("scheme", ["s3", "gs"])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    retries = {"max_retries": 2, "initial_delay": "5ms", "max_delay": "10ms"}
    monkeypatch.setattr("abi_jax.wdbx.storage.place.RETRIES", retries)


def test_a_bucket_that_is_not_there(server: Server) -> None:
    with pytest.raises(StorageError, match=r"s3://none/store/wdbx.json: NoSuchBucket.*expected a bucket that is there"):
        wdbx.open("s3://none/store")
    with pytest.raises(wdbx.WdbxError, match=r"gs://none/store"):
        wdbx.open("gs://none/store")
    assert set(server.objects) == {BUCKET}


@SERVICES
def test_denied(server: Server, scheme: str) -> None:
    url = f"{scheme}://{BUCKET}/store"
    server.fault = lambda method, key: "deny"
    for mode in ("a", "r"):
        with pytest.raises(StorageError, match=rf"{url}.*: access is denied \(AccessDenied.*expected credentials that"):
            wdbx.open(url, mode)
    server.fault = lambda method, key: ""
    with wdbx.open(url) as db:
        c = db.create_collection("c", 2)
        c.upsert(["a"], [[1, 1]])
        server.fault = lambda method, key: "deny" if method in ("PUT", "POST") and "/log/" in key else ""
        with pytest.raises(wdbx.WdbxError, match=r"access is denied .*; whether this was written is known when"):
            c.upsert(["b"], [[1, 1]])  # a repetition may be denied of what was written
        with pytest.raises(wdbx.WdbxError, match=r"nothing can be written: .*access is denied .*open the store again"):
            c.upsert(["b"], [[1, 1]])
        server.fault = lambda method, key: ""
    with wdbx.open(url) as db:
        c = db.collection("c")
        assert c.ids() == ["a"]
        c.upsert(["c"], [[1, 1]])
        assert c.ids() == ["a", "c"] and db.verify() == []


@SERVICES
def test_who_may_only_read(server: Server, scheme: str) -> None:
    url = f"{scheme}://{BUCKET}/store"
    with wdbx.open(url) as db:
        db.create_collection("c", 2).upsert(["a"], [[1, 1]])
    server.fault = lambda method, key: "" if method in ("GET", "HEAD") else "deny"
    with wdbx.open(url, "r") as db:
        assert db.collection("c").ids() == ["a"] and db.verify() == []
    with pytest.raises(StorageError, match="access is denied"):
        wdbx.open(url)


@SERVICES
@pytest.mark.parametrize("how", ["gone", "unavailable"])
def test_a_server_that_is_gone(server: Server, scheme: str, how: str) -> None:
    """Nothing is acknowledged, whether it was written is said to be unknown, and reopening finds what was."""
    place = Place(f"{scheme}://{BUCKET}/store")
    db = place.open()
    c = db.create_collection("c", 2)
    c.upsert(["a"], [[1, 1]])
    server.fault = lambda method, key: how
    with pytest.raises(StorageError, match=rf"{place.url}.*expected an object store that answers"):
        wdbx.open(place.url)
    with pytest.raises(wdbx.WdbxError, match="is known when the store is opened again"):
        c.upsert(["b"], [[1, 1]])
    with pytest.raises(wdbx.WdbxError, match="open the store again"):
        c.upsert(["c"], [[1, 1]])
    server.fault = lambda method, key: ""
    db.close()
    with place.open() as db:
        assert db.collection("c").ids() == ["a"] and db.verify() == []


@SERVICES
def test_an_answer_that_is_lost(server: Server, scheme: str) -> None:
    """The request is repeated, and what it finds it had written itself: each commit is one version."""
    place = Place(f"{scheme}://{BUCKET}/store")
    repeated: set[tuple[str, str]] = set()

    def fault(method: str, key: str) -> str:
        if method in ("PUT", "POST") and (method, key) not in repeated:
            repeated.add((method, key))
            return "lost"
        return ""

    server.fault = fault
    with place.open() as db:
        c = db.create_collection("c", 2)
        for n in range(3):
            assert c.upsert([f"{n}"], [[n, 1]]) == n + 2
        db.seal()
        assert db.verify() == []
    with place.open() as db:
        assert db.collection("c").ids() == ["0", "1", "2"]
    assert len(repeated) > 10


@SERVICES
def test_a_server_that_ignores_conditions(server: Server, scheme: str) -> None:
    """Two writers could both believe that a commit is theirs: it is not written to."""
    server.conditions = False
    with pytest.raises(
        wdbx.WdbxError, match=rf"{scheme}://bucket/store: .* answered 200 to a write on .* expected 412"
    ):
        wdbx.open(f"{scheme}://{BUCKET}/store")
    assert server.objects[BUCKET] == {}


def test_conditions_cannot_be_asked_about(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = Place(f"s3://{BUCKET}/store").storage().objects
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(wdbx.WdbxError, match=r"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; expected them to be set"):
        check_s3(objects, {"endpoint": server.address})
    assert server.objects[BUCKET] == {}


def test_a_signature() -> None:
    """That of Amazon's own example, "GET Bucket Lifecycle"."""
    secrets = {
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    }
    url = "https://examplebucket.s3.amazonaws.com/?lifecycle="
    made = signed("GET", url, "us-east-1", datetime(2013, 5, 24, tzinfo=UTC), secrets)["authorization"]
    assert made.endswith("Signature=fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543")


@SERVICES
def test_conditions_are_sent(server: Server, scheme: str) -> None:
    """The server, not only tensorstore before it asks, refuses what is there already."""
    objects = Place(f"{scheme}://{BUCKET}/store").storage().objects
    first = objects.create("key", b"first")
    assert first and objects.create("key", b"second") is None and objects.create("key", b"first") == first
    assert objects.replace("key", b"third", b"\x02") is None
    second = objects.replace("key", b"second", first)
    assert second and second != first and objects.replace("key", b"third", first) is None
    assert objects.get("key") == (b"second", second) and objects.is_still("key", second)
    assert not objects.is_still("key", first)


@SERVICES
def test_requests_of_a_commit(server: Server, scheme: str) -> None:
    """One object, and one question whether the store is still this writer's (S3: another, asked by tensorstore)."""
    hour = 3600.0  # so that no lease is renewed meanwhile
    with Place(f"{scheme}://{BUCKET}/store").open(term=hour) as db:
        c = db.create_collection("c", 2)
        server.requests.clear()
        c.upsert(["a"], [[1, 1]])
        asked = sorted(each.split()[0] for each in server.requests.elements())
        assert asked == (["GET", "HEAD", "PUT"] if scheme == "s3" else ["GET", "POST"])
        db.seal()
        with Place(f"{scheme}://{BUCKET}/store").open("r", term=hour) as reader:
            c.upsert(["b"], [[1, 1]])
            server.requests.clear()
            reader.refresh()
            assert reader.collection("c").ids() == ["a", "b"]
            assert sum(server.requests.values()) <= 20
            assert not any("segments/" in each for each in server.requests)
        server.requests.clear()
        db.seal(everything=True)
        read = [each for each in server.requests if each.startswith("GET") and "vectors/0.0" in each]
        assert len(read) == 1 and server.requests[read[0]] == 1
