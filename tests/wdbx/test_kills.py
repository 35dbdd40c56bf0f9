"""Real kills of a process that writes, a few of the thousand of `benchmarks/wdbx_kills.py`; a disk that is full."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.database import Database
from abi_jax.wdbx.storage.local import LocalStorage
from benchmarks.wdbx_kills import measure


@pytest.mark.slow
def test_kills(tmp_path: Path) -> None:
    found = measure(tmp_path, kills=4, seed=7)
    assert found["kills"] == 4 and found["acknowledged"] >= 2  # two are killed some time after their first write
    assert found["wrong"] == [] and found["torn"] == found["acknowledged and lost"] == found["failed to open"] == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "abi", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, left: int) -> Path:
    """Leaves so many bytes."""
    there = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(there.f_bavail * there.f_frsize - left, 0)))
    return filler


@pytest.mark.parametrize("left", [0, 8192, 200_000])
def test_a_full_disk(disk: Path, left: int) -> None:
    """What does not fit is refused and is no version; what was acknowledged stays, and later there is room again."""
    held: dict[str, list[float]] = {}
    with Database(LocalStorage(disk / "store"), background=False) as db:
        c = db.create_collection("c", 64, "l2")
        filler = fill(disk, left)
        refused = 0
        for n in range(60):
            ids = [f"{n % 7}-{i}" for i in range(40)]
            version = db.version
            try:
                c.upsert(ids, np.full((40, 64), n))
                held |= {each: [n] * 64 for each in ids}
            except wdbx.WdbxError as error:
                assert "No space left on device" in str(error) and db.version == version
                refused += 1
            if n % 20 == 19:
                try:
                    db.seal()
                except (OSError, wdbx.WdbxError) as error:
                    assert "No space left on device" in str(error)
        assert refused
        filler.unlink()
        c.upsert(["after"], np.ones((1, 64)))
        held["after"] = [1] * 64
        db.seal()
        assert {row.id: row.vector.tolist() for row in c.get(list(held)) if row is not None} == held
    with wdbx.open(disk / "store") as db:
        assert {row.id: row.vector.tolist() for row in db.collection("c").get(list(held)) if row is not None} == held
        assert len(db.collection("c")) == len(held)
        assert db.verify() == []
