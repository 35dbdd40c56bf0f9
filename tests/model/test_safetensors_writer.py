"""Writing safetensors: what is written is what is read, and a failure leaves nothing."""

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from abi_jax.errors import InputError
from abi_jax.model.safetensors_format import DTYPES
from abi_jax.model.safetensors_io import open_checkpoint
from abi_jax.model.safetensors_writer import write_checkpoint

REUSED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
SMALL: dict[str, np.ndarray] = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "b.weight": np.arange(30, dtype=np.int64).reshape(2, 3, 5),
    "c.bias": np.arange(7).astype(ml_dtypes.bfloat16),
    "d.scale": np.array(3.5, np.float16),
    "e.empty": np.zeros((0, 4), np.float32),
    "f.mask": np.array([True, False, True]),
}


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def values(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    raw = np.random.default_rng(seed).integers(0, 100, shape)
    return raw.astype(dtype)


# --- what is written is what is read ---------------------------------------------------------


@REUSED
@given(data=st.data())
def test_round_trip_of_any_tensors_and_shard_size(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("c")
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    names = data.draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), unique=True, max_size=6))
    codes = st.sampled_from(sorted(DTYPES))
    tensors = {n: values(data.draw(shapes), DTYPES[data.draw(codes)], i) for i, n in enumerate(names)}
    files = write_checkpoint(folder, tensors.items(), data.draw(st.integers(1, 400)))
    index = open_checkpoint(folder)
    assert set(index.names()) == set(tensors)
    for name, array in tensors.items():
        assert same(index.read(name), array)
        assert index.shape(name) == array.shape
        assert index.dtype(name) == array.dtype
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".safetensors") == sorted(p.name for p in files)


def test_the_reference_library_agrees_in_both_directions(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy", reason="the reference safetensors package is not installed")
    plain = {k: v for k, v in SMALL.items() if v.dtype != ml_dtypes.bfloat16}
    write_checkpoint(tmp_path / "ours", plain.items())
    theirs = reference.load_file(tmp_path / "ours" / "model.safetensors")
    assert all(same(theirs[k], v) for k, v in plain.items())
    (tmp_path / "theirs").mkdir()
    reference.save_file(plain, tmp_path / "theirs" / "model.safetensors")
    index = open_checkpoint(tmp_path / "theirs")
    assert all(same(index.read(k), v) for k, v in plain.items())


def test_several_files_are_indexed_as_hugging_face_does(tmp_path: Path) -> None:
    tensors = {f"layer.{i}": np.full((10, 10), i, np.float32) for i in range(5)}
    files = write_checkpoint(tmp_path, tensors.items(), max_shard_bytes=900)
    assert [f.name for f in files] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 2000}
    assert index["weight_map"]["layer.4"] == "model-00003-of-00003.safetensors"
    assert all(f.stat().st_size < 900 + 400 for f in files)
    assert b'"__metadata__":{"format":"pt"}' in files[0].read_bytes()


def test_big_endian_and_strided_arrays_are_stored_in_file_order(tmp_path: Path) -> None:
    big = np.arange(6, dtype=">f4").reshape(2, 3)
    write_checkpoint(tmp_path, [("big", big), ("strided", np.arange(12.0).reshape(3, 4).T)])
    index = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(index.read("big"), big)
    np.testing.assert_array_equal(index.read("strided"), np.arange(12.0).reshape(3, 4).T)


# --- failed writes -----------------------------------------------------------------------------


def failing(after: int) -> Iterator[tuple[str, np.ndarray]]:
    for i in range(after):
        yield f"x{i}", np.ones(4, np.float32)
    raise RuntimeError("the source broke")


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_source_that_breaks_leaves_nothing(tmp_path: Path, after: int) -> None:
    with pytest.raises(RuntimeError, match="the source broke"):
        write_checkpoint(tmp_path / "new" / "out", failing(after), max_shard_bytes=16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failure", range(4))
def test_a_failed_rename_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int) -> None:
    (tmp_path / "config.json").write_text("{}")
    real, calls = os.replace, iter(range(9))

    def replace(source: Path, target: Path) -> None:
        if next(calls) == failure:
            raise OSError("disk full")
        real(source, target)

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, ((f"x{i}", np.ones(4, np.float32)) for i in range(3)), max_shard_bytes=16)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


def test_no_more_than_one_file_is_held(tmp_path: Path) -> None:
    tracemalloc.start()
    write_checkpoint(tmp_path, ((f"x{i}", np.zeros(1 << 18, np.float32)) for i in range(16)), max_shard_bytes=4 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6.5 * (1 << 20)  # one file of 4 MiB, and the next tensor


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'x' occurs twice"):
        write_checkpoint(tmp_path / "a", [("x", np.ones(1)), ("x", np.ones(1))])
    with pytest.raises(InputError, match="'x' has dtype complex128"):
        write_checkpoint(tmp_path / "a", [("x", np.ones(1, complex))])
    with pytest.raises(InputError, match="max_shard_bytes is 0"):
        write_checkpoint(tmp_path / "a", [], 0)
    write_checkpoint(tmp_path / "b", SMALL.items())
    with pytest.raises(InputError, match=r"model\.safetensors exists"):
        write_checkpoint(tmp_path / "b", SMALL.items())
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        write_checkpoint(tmp_path / "file", SMALL.items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "file"]
