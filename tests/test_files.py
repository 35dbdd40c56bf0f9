"""A file is written whole, and its name with it, or what was there stays."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from abi_jax.errors import InputError
from abi_jax.files import write_atomically
from abi_jax.lineage_receipt import new_key as new_signing_key
from abi_jax.wdbx.crypto.master import new_master


@pytest.fixture
def synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Names of what was brought to disk, in order, and what was in the folder then."""
    made: list[tuple[str, list[str]]] = []
    fsync, mine = os.fsync, threading.get_ident()

    def noted(number: int) -> None:
        if threading.get_ident() == mine:
            made.append((Path(os.readlink(f"/proc/self/fd/{number}")).name, sorted(os.listdir(tmp_path))))
        fsync(number)

    monkeypatch.setattr("os.fsync", noted)
    return made


def test_the_file_then_its_name_reach_the_disk(tmp_path: Path, synced: list[tuple[str, list[str]]]) -> None:
    write_atomically(tmp_path / "a.json", "ä")
    assert synced == [("a.json.partial", ["a.json.partial"]), (tmp_path.name, ["a.json"])]
    assert (tmp_path / "a.json").read_bytes() == "ä".encode()


@pytest.mark.parametrize("new_key", [new_signing_key, new_master], ids=["to sign with", "to encrypt with"])
def test_a_key_is_on_disk_before_anybody_uses_it(
    tmp_path: Path, synced: list[tuple[str, list[str]]], new_key: Callable[[Path], object]
) -> None:
    new_key(tmp_path / "key")
    assert synced == [("key", ["key"]), (tmp_path.name, ["key"])]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_file_system_that_syncs_no_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refusing(number: int) -> None:
        if Path(f"/proc/self/fd/{number}").is_dir():
            raise OSError(22, "Invalid argument")
        fsync(number)

    monkeypatch.setattr("os.fsync", refusing)
    write_atomically(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new"


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match=r"a.json cannot be written: "):
        write_atomically(tmp_path / "a.json", "new")
    with pytest.raises(InputError, match="No such file or directory"):
        write_atomically(tmp_path / "none" / "a.json", "new")
    assert os.listdir(tmp_path) == ["a.json"]
