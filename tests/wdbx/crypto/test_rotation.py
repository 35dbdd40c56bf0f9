"""Changing the master key: whatever goes wrong, `keys.json` is wrapped with one master key, and has every data key."""

from pathlib import Path

import pytest

from abi_jax import wdbx
from abi_jax.wdbx.crypto.keyring import KEYS_FILE, Keyring
from abi_jax.wdbx.crypto.master import LocalKey
from abi_jax.wdbx.errors import FencedError, NoKeyError
from abi_jax.wdbx.storage.local import LocalStorage
from tests.wdbx.crashes import Killed, Operations

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
STORE = bytes(16)


def made(root: Path) -> tuple[Keyring, Operations]:
    operations = Operations(root)
    storage = LocalStorage(root, operations)
    storage.make()
    ring = Keyring.create(storage, STORE, LocalKey(KEY))
    ring.new([("log/a", "")])
    return ring, operations


def opened(root: Path) -> tuple[bytes, dict[int, bytes]]:
    """The one master key that opens what is stored, and all data keys."""
    found = {}
    for master in (KEY, OTHER):
        try:
            ring = Keyring.open(LocalStorage(root), STORE, LocalKey(master))
        except NoKeyError:
            continue
        found[master] = {number: ring.key(number) for number in ring.entries}
    assert len(found) == 1
    return found.popitem()


def operations_of_a_rotation(tmp_path: Path) -> range:
    ring, operations = made(tmp_path / "all")
    first = len(operations.done)
    ring.rotate(LocalKey(OTHER))
    return range(first, len(operations.done))


def test_an_operation_that_fails(tmp_path: Path) -> None:
    """What is written after it is wrapped with the same master key as all before it."""
    said = []
    for stop in operations_of_a_rotation(tmp_path):
        root = tmp_path / str(stop)
        ring, operations = made(root)
        operations.stop = stop
        with pytest.raises(wdbx.WdbxError) as caught:
            ring.rotate(LocalKey(OTHER))
        said.append(str(caught.value))
        ring.new([("log/b", "")])
        master, keys = opened(root)
        assert keys == {number: ring.key(number) for number in (1, 2, 3)}
        assert (master == KEY) == said[-1].startswith("nothing has changed")
        ring.rotate(LocalKey(OTHER))
        assert opened(root) == (OTHER, keys)
    assert "keep both keys" in said[-1] and said[0].startswith("nothing has changed")


@pytest.mark.parametrize("how", ["kill", "tear"])
def test_an_operation_at_which_the_process_dies(tmp_path: Path, how: str) -> None:
    for stop in operations_of_a_rotation(tmp_path):
        ring, operations = made(tmp_path / str(stop))
        keys = {number: ring.key(number) for number in (1, 2)}
        operations.stop, operations.how = stop, how
        with pytest.raises(Killed):
            ring.rotate(LocalKey(OTHER))
        assert opened(tmp_path / str(stop))[1] == keys


def test_keys_that_were_made_elsewhere_are_rotated_too(tmp_path: Path) -> None:
    ring, _ = made(tmp_path)
    other = Keyring.open(LocalStorage(tmp_path), STORE, LocalKey(KEY))
    (number,) = other.new([("log/b", "")])
    ring.rotate(LocalKey(OTHER))
    assert opened(tmp_path) == (OTHER, {n: other.key(n) for n in (1, 2, number)})


def test_who_has_the_former_key_writes_nothing(tmp_path: Path) -> None:
    ring, _ = made(tmp_path)
    late = Keyring.open(LocalStorage(tmp_path), STORE, LocalKey(KEY))
    ring.rotate(LocalKey(OTHER))
    before = (tmp_path / KEYS_FILE).read_bytes()
    for change in (
        lambda: late.new([("log/b", "")]),
        lambda: late.drop([2]),
        lambda: late.rotate(LocalKey(bytes(32))),
    ):
        with pytest.raises(wdbx.WdbxError, match="is wrapped with another master key than this process has"):
            change()
    assert (tmp_path / KEYS_FILE).read_bytes() == before


def test_a_reader_that_was_opened_before(tmp_path: Path) -> None:
    """It reads on what it has, and is told why it cannot read what came since."""
    path = tmp_path / "s"
    with wdbx.open(path, key=KEY) as db:
        c = db.create_collection("c", 2)
        c.upsert(["a"], [[1, 0]])
        with wdbx.open(path, "r", key=KEY) as reader:
            db.rotate(OTHER)
            c.upsert(["b"], [[1, 0]])
            db.seal()
            for _ in range(2):
                with pytest.raises(NoKeyError, match=r"s/keys\.json was wrapped with another .* \(rotated\): data key"):
                    reader.refresh()
                assert reader.collection("c").query([1, 0])[0].id == "a"
        with wdbx.open(path, "r", key=OTHER) as reader:
            assert reader.collection("c").ids() == ["a", "b"]


def test_a_writer_that_was_fenced_writes_no_keys(tmp_path: Path) -> None:
    with wdbx.open(tmp_path / "s", key=KEY) as db:
        db.create_collection("c", 2)
        ring, lock = db.storage.ring, tmp_path / "s" / "lock"
        assert ring is not None
        before = (tmp_path / "s" / KEYS_FILE).read_bytes()
        lock.rename(tmp_path / "lock")
        lock.write_text("")
        with pytest.raises(FencedError):
            ring.new([("segments/00000009", "")])
        assert (tmp_path / "s" / KEYS_FILE).read_bytes() == before
