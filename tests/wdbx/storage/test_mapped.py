"""A mapped file is memory that goes with its last array, holds no descriptor, and never reaches the file."""

import contextlib
import errno
import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from abi_jax import wdbx
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.storage.mapped import mapped


def maps_of(path: Path) -> int:
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc tells what is mapped")
def test_a_mapping_goes_with_its_last_array(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(200)))
    whole = mapped(path, 200)
    part = whole[40:80].view(np.uint32).reshape(2, 5)
    assert whole.tolist() == list(range(200)) and maps_of(path) == 1
    part[:] = 0
    assert path.read_bytes() == bytes(range(200)) and not whole[40:80].any()
    del whole
    gc.collect()
    assert maps_of(path) == 1 and not part.any()
    del part
    gc.collect()
    assert maps_of(path) == 0


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileNotFoundError, match="file"):
        mapped(path, 3)
    path.write_bytes(b"four")
    for nbytes in (3, 5):
        with pytest.raises(ValueError, match="has 4 bytes"):
            mapped(path, nbytes)
    with pytest.raises(OSError, match=str(tmp_path)):
        mapped(tmp_path, os.stat(tmp_path).st_size)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc tells what is open")
def test_segments_hold_no_descriptors(tmp_path: Path) -> None:
    def open_segments() -> list[str]:
        files = []
        for descriptor in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed since
                files.append(os.readlink(descriptor))
        return [file for file in files if file.startswith(str(tmp_path / "store" / "segments"))]

    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 4, schema={"lang": str})
        for i in range(4):
            c.import_({"id": [str(i)], "vector": np.ones((1, 4), np.float32), "lang": ["en"]})
            assert len(c.query([1, 1, 1, 1], top_k=9, where={"lang": "en"})) == i + 1
            assert not open_segments()


def test_what_the_process_lacks_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with wdbx.open(tmp_path / "store") as db:
        c = db.create_collection("c", 4, ids="int")
        c.import_({"id": np.arange(3), "vector": np.ones((3, 4), np.float32)})
    real = os.open

    def too_many(path: str | Path, *rest: Any) -> int:
        if Path(path).parent.name == "vectors":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", too_many)
        with pytest.raises(OSError, match="Too many open files"):
            wdbx.open(tmp_path / "store", "r")
    vectors = next((tmp_path / "store" / "segments").glob("*/vectors/0.0"))
    vectors.write_bytes(vectors.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"vectors/0\.0 has 47 bytes; expected \(3, 4\) of float32"):
        wdbx.open(tmp_path / "store", "r")
