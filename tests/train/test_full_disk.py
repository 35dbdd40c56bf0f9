"""A disk that is full, for real: a small file system in memory. What was saved stays, and the run goes on from it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from abi_jax.cli import main
from abi_jax.config import dump_yaml
from abi_jax.model.directory import ModelDirectory
from abi_jax.model.provenance import Provenance
from abi_jax.model.verify import verify
from tests.train.tiny import MESHES, config

pytestmark = [
    pytest.mark.slow,
    # of tensorstore's: futures that nobody waits for any more
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MB: room for about ten checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "abi", folder], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def run(disk: Path) -> Path:
    """A run on it, with checkpoints of steps 2 and 4, and its configuration."""
    file = disk.parent / "train.yaml"
    file.write_text(dump_yaml(config(out=disk / "run", steps=4, checkpoint_every=2, mesh=MESHES["data"])))
    assert main(["train", str(file)]) == 0
    return file


def fill(disk: Path, left: int) -> Path:
    """Leaves so many bytes."""
    there = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(bytes(max(there.f_bavail * there.f_frsize - left, 0)))
    return filler


@pytest.mark.parametrize("left", [0, 100_000, 700_000])
def test_a_checkpoint_that_does_not_fit(left: int, run: Path, disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not even a line of metrics, or parts of the checkpoint."""
    filler = fill(disk, left)
    assert main(["train", str(run), "--set", "steps=8"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.startswith(f"abi: error: {disk}/run") and "No space left on device" in said
    assert ("the same command goes on from the one before it" in said) == (left > 0)
    assert ModelDirectory(disk / "run").steps() == [2, 4] and verify(disk / "run").findings == ()
    filler.unlink()
    goes_on(run, disk)


def test_a_link_that_does_not_fit(
    run: Path, disk: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Provenance.add

    def full(*args: Any, **names: Any) -> Any:
        fill(disk, 0)
        return add(*args, **names)

    monkeypatch.setattr(Provenance, "add", full)
    assert main(["train", str(run), "--set", "steps=8"]) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert "No space left on device; step 6 is saved, but not linked; the same command links it" in said
    assert Provenance(disk / "run").steps() == {2: 1, 4: 2} and Provenance(disk / "run").unlinked() == [6]
    monkeypatch.undo()
    (disk / "filler").unlink()
    goes_on(run, disk)


def goes_on(run: Path, disk: Path) -> None:
    assert main(["train", str(run), "--set", "steps=8"]) == 0
    assert ModelDirectory(disk / "run").steps() == [4, 6, 8] and verify(disk / "run").findings == ()
    assert sorted(p.name for p in (disk / "run" / "checkpoints").iterdir()) == ["4", "6", "8"]
