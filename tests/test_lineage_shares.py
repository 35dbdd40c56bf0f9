"""Processes hand in what they hashed, and nobody waits for one that cannot."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax.errors import InputError
from abi_jax.lineage_digest import LEAF
from abi_jax.lineage_shares import Shares


@pytest.fixture
def become(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Three processes, of which this is the first."""
    monkeypatch.setattr("jax.process_count", lambda: 3)
    monkeypatch.setattr("jax.process_index", lambda: 0)
    return monkeypatch


def hand_in(folder: Path, become: pytest.MonkeyPatch, *processes: int) -> None:
    for process in processes:
        become.setattr("jax.process_index", lambda p=process: p)
        Shares(folder).put({"params/w": np.full(process + 1, process, LEAF)})


def test_shares_come_one_at_a_time_and_are_removed(tmp_path: Path, become: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "shares-5"
    hand_in(folder, become, 0, 1)
    coming = Shares(folder).get()
    assert [len(next(coming)["params/w"]) for _ in range(2)] == [1, 2]
    late = threading.Timer(0.1, hand_in, (folder, become, 2))
    late.start()
    assert next(coming)["params/w"]["at"].tolist() == [2, 2, 2]
    Shares(folder).remove()
    assert not folder.exists()


def test_a_process_that_failed_is_named_with_its_reason(tmp_path: Path, become: pytest.MonkeyPatch) -> None:
    """Whoever finds that it failed finds why, at any moment."""
    write, early = Path.write_text, list[Path]()

    def watched(path: Path, *args: Any, **names: Any) -> int:
        early.extend(tmp_path.glob("*.failed"))
        return write(path, *args, **names)

    hand_in(tmp_path, become, 0, 1)
    become.setattr("jax.process_index", lambda: 2)
    become.setattr(Path, "write_text", watched)
    Shares(tmp_path).fail("No space left on device")
    assert early == []
    with pytest.raises(InputError, match="process 2 could not hand in its digests: No space left on device"):
        list(Shares(tmp_path).get())


def test_a_process_with_no_room_for_its_reason(tmp_path: Path, become: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    become.setattr(Path, "write_text", full)
    become.setattr("jax.process_index", lambda: 1)
    Shares(tmp_path).fail("anything")
    with pytest.raises(InputError, match="process 1 could not hand in its digests: its disk may be full"):
        list(Shares(tmp_path).get())


def test_a_process_that_does_not_come_is_not_waited_for_in_vain(tmp_path: Path, become: pytest.MonkeyPatch) -> None:
    hand_in(tmp_path, become, 0)
    with pytest.raises(InputError, match=r"process 1 handed in no digests within 0.1 s; expected .*1.npz"):
        list(Shares(tmp_path, patience=0.1).get())
