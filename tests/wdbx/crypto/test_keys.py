"""Master keys from anywhere, and data keys that are wrapped, rotated and taken away."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st

from abi_jax import wdbx
from abi_jax.errors import InputError
from abi_jax.wdbx.crypto.keyring import KEYS_FILE, Keyring
from abi_jax.wdbx.crypto.master import LocalKey, read_master
from abi_jax.wdbx.errors import DamagedError, NoKeyError
from abi_jax.wdbx.storage.local import LocalStorage

KEY = bytes(range(32))
STORE = bytes(16)
KEYS = st.binary(min_size=32, max_size=32)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    made = LocalStorage(tmp_path)
    made.make()
    return made


def test_key_wrap_is_that_of_the_standard() -> None:
    """RFC 3394, 4.6: 256 bits of key data with a 256-bit key."""
    master = LocalKey(bytes.fromhex("000102030405060708090A0B0C0D0E0F101112131415161718191A1B1C1D1E1F"))
    data = bytes.fromhex("00112233445566778899AABBCCDDEEFF000102030405060708090A0B0C0D0E0F")
    wrapped = "28C9F404C4B810F4CBCCB35CFB87F8263F5786E2D80ED326CBC7F0E71A99F43BFB988B9B7A02DD21"
    assert master.wrap(data).hex().upper() == wrapped
    assert master.unwrap(bytes.fromhex(wrapped)) == data


@given(key=KEYS)
def test_a_key_reads_the_same_wherever_it_is_kept(key: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("keys") / "key"
    forms = [key, key.hex().encode() + b"\n", base64.b64encode(key), base64.urlsafe_b64encode(key)]
    for form in forms:
        path.write_bytes(form)
        assert read_master(path) == read_master(str(path)) == LocalKey(key)
    with pytest.MonkeyPatch.context() as patch:
        for form in forms[1:]:
            patch.setenv("WDBX_TEST_KEY", form.decode())
            assert read_master("env:WDBX_TEST_KEY") == LocalKey(key)
    assert key.hex() not in repr(read_master(key))


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (b"short", "the key given holds 5 bytes; expected a key of 32"),
        ("env:NO_SUCH_KEY", "environment variable 'NO_SUCH_KEY' is not set"),
        ("nowhere.key", r"nowhere\.key: No such file or directory; expected a file that holds a key"),
        ("\0", "expected a file that holds a key"),
        (7, "key of type int: expected 32 bytes, the path of a file"),
    ],
)
def test_what_is_no_key(key: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_master(key)  # type: ignore[arg-type]


def test_a_new_key_is_its_owners_alone_and_never_written_over(tmp_path: Path) -> None:
    made = wdbx.new_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_master(tmp_path / "key") == made
    with pytest.raises(InputError, match="File exists; expected a new file"):
        wdbx.new_key(tmp_path / "key")
    assert read_master(tmp_path / "key") == made


def test_data_keys_are_read_back_and_numbered_once(storage: LocalStorage) -> None:
    ring = Keyring.create(storage, STORE, LocalKey(KEY))
    a, b = ring.new([("log/a", ""), ("segments/b", ring.token("tenant"))])
    again = Keyring.open(storage, STORE, LocalKey(KEY))
    assert [again.key(a), again.key(b)] == [ring.key(a), ring.key(b)]
    assert again.key(a) != again.key(b)
    assert again.number("segments/b") == b
    assert again.token("tenant") == ring.token("tenant") != ring.token("tenant2")
    assert again.of_tenant(ring.token("tenant")) == [b]
    assert 'tenant"' not in (storage.read(KEYS_FILE) or b"").decode().replace('"tenant":', "")
    again.drop([b])
    assert again.new([("log/c", "")]) == [b + 1]
    with pytest.raises(DamagedError, match=f"has no data key {b}; what it encrypted cannot be read"):
        Keyring.open(storage, STORE, LocalKey(KEY)).key(b)
    with pytest.raises(NoKeyError, match="under another key than the one given"):
        Keyring.open(storage, STORE, LocalKey(bytes(32)))
    with pytest.raises(DamagedError, match="is of store"):
        Keyring.open(storage, bytes(15) + b"1", LocalKey(KEY))


def test_two_that_write_do_not_undo_each_other(storage: LocalStorage) -> None:
    """As a writer does that was fenced and has not noticed."""
    first, second = Keyring.create(storage, STORE, LocalKey(KEY)), Keyring.open(storage, STORE, LocalKey(KEY))
    numbers = [ring.new([("log/x", "")])[0] for ring in (first, second, first, second)]
    first.drop(numbers[:1])
    assert len(set(numbers)) == 4
    again = Keyring.open(storage, STORE, LocalKey(KEY))
    assert [again.key(number) for number in numbers[1:]] == [
        ring.key(number) for ring, number in zip((second, first, second), numbers[1:], strict=True)
    ]


def test_a_key_that_does_not_unwrap_what_it_wraps_is_refused(storage: LocalStorage) -> None:
    ring = Keyring.create(storage, STORE, LocalKey(KEY))
    before = storage.read(KEYS_FILE)
    broken = wdbx.KeyService(lambda key: aes_key_wrap(KEY, key), lambda wrapped: bytes(32))
    with pytest.raises(wdbx.WdbxError, match="does not unwrap what it wrapped; nothing has changed"):
        ring.rotate(broken)
    assert storage.read(KEYS_FILE) == before


def test_a_key_service_is_all_a_store_needs(tmp_path: Path) -> None:
    calls: list[str] = []
    inner = LocalKey(KEY)

    def wrap(key: bytes) -> bytes:
        calls.append("wrap")
        return b"v1:" + inner.wrap(key)

    def unwrap(wrapped: bytes) -> bytes:
        calls.append("unwrap")
        if not wrapped.startswith(b"v1:"):
            raise PermissionError("key version is disabled")
        return inner.unwrap(wrapped[3:])

    service = wdbx.KeyService(wrap, unwrap)
    with wdbx.open(tmp_path / "s", key=service) as db:
        db.create_collection("c", 2, metric="l2").upsert(["a"], [[1, 2]])
        db.seal()
    calls.clear()
    with wdbx.open(tmp_path / "s", mode="r", key=service) as db:
        row = db.collection("c").get("a")[0]
        assert row is not None and row.vector.tolist() == [1, 2]
    assert set(calls) == {"unwrap"}
    said = json.loads((tmp_path / "s" / KEYS_FILE).read_bytes())
    assert all(bytes.fromhex(each["wrapped"]).startswith(b"v1:") for each in said["keys"].values())

    def refuse(wrapped: bytes) -> bytes:
        raise PermissionError("not allowed to use key alias/wdbx")

    with pytest.raises(NoKeyError, match="did not unwrap a data key: not allowed to use key alias/wdbx"):
        wdbx.open(tmp_path / "s", key=wdbx.KeyService(wrap, refuse))
    with pytest.raises(NoKeyError, match="unwrapped 3 bytes; expected a data key of 32"):
        wdbx.open(tmp_path / "s", key=wdbx.KeyService(wrap, lambda wrapped: b"abc"))
