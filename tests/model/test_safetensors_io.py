"""Reading safetensors: any region, any shard, and every way a file can be broken."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from abi_jax.errors import InputError
from abi_jax.model import safetensors_io
from abi_jax.model.safetensors_format import DTYPES, Entry
from abi_jax.model.safetensors_io import Box, Transform, open_checkpoint
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


# --- regions -----------------------------------------------------------------------------------


@REUSED
@given(data=st.data())
def test_any_slice_equals_numpys(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    # small limits, so that small arrays take every path: whole, row by row, and window by window
    monkeypatch.setattr(safetensors_io, "_BLOCK", data.draw(st.sampled_from([8, 64, 8 << 20])))
    monkeypatch.setattr(safetensors_io, "_LONG_RUN", data.draw(st.sampled_from([1, 16, 32 << 10])))
    shape = data.draw(st.lists(st.integers(1, 7), max_size=4).map(tuple))
    array = values(shape, DTYPES[data.draw(st.sampled_from(["F32", "BF16", "U8", "I64"]))])
    folder = tmp_path_factory.mktemp("c")
    write_checkpoint(folder, [("pad", np.ones(3, np.uint8)), ("x", array)])
    bound = st.none() | st.integers(-9, 9)
    one = st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 3, -1, -2]))
    index = tuple(data.draw(st.lists(one, max_size=len(shape))))
    assert same(open_checkpoint(folder).read_slice("x", index), array[index])


def test_a_slice_holds_little_more_than_itself(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [("x", values((8192, 1024), np.dtype(np.float32)))])  # 32 MiB
    index = open_checkpoint(tmp_path)
    tracemalloc.start()
    index.read_slice("x", (slice(None), slice(0, 128)))  # 4 MiB, in runs of 512 bytes
    index.read_slice("x", (slice(4096, 5120),))  # 4 MiB, contiguous
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 13 << 20


def test_too_many_slices_are_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL.items())
    with pytest.raises(InputError, match=r"'a.weight' of shape \(4, 6\) has no 3 dimensions"):
        open_checkpoint(tmp_path).read_slice("a.weight", (slice(0, 1),) * 3)


# --- shards ------------------------------------------------------------------------------------


def mesh_of(*sizes: int) -> jax.sharding.Mesh:
    devices = np.array(jax.devices()[: int(np.prod(sizes))]).reshape(sizes)
    if devices.size < np.prod(sizes):
        pytest.skip("needs 8 simulated devices (XLA_FLAGS=--xla_force_host_platform_device_count=8)")
    return jax.sharding.Mesh(devices, ("a", "b")[: len(sizes)], axis_types=(AxisType.Auto,) * len(sizes))


@pytest.mark.parametrize("spec", [(), ("a",), (None, "b"), ("a", "b"), ("b", "a"), (("a", "b"),), (None, ("b", "a"))])
@pytest.mark.parametrize("transpose", [False, True])
def test_sharded_load_equals_the_whole_tensor(tmp_path: Path, spec: tuple, transpose: bool) -> None:
    array = values((24, 16), np.dtype(ml_dtypes.bfloat16))
    write_checkpoint(tmp_path, [("x", array)])
    how = Transform(part=(slice(8, 24),), transpose=transpose, apply=lambda v: v + 1)
    expected = array[8:24].T if transpose else array[8:24]
    sharding = NamedSharding(mesh_of(2, 4), PartitionSpec(*spec))
    loaded = open_checkpoint(tmp_path).load_sharded("x", sharding, np.float32, how, shape=expected.shape)
    assert loaded.sharding == sharding
    np.testing.assert_array_equal(loaded, expected.astype(np.float32) + 1)


def test_each_region_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path, [("x", values((16, 16), np.dtype(np.float32)))])
    reads: list[Box] = []
    real = safetensors_io._read_box

    def read_box(name: str, entry: Entry, box: Box, *rest: Any) -> np.ndarray:
        reads.append(box)
        return real(name, entry, box, *rest)

    monkeypatch.setattr(safetensors_io, "_read_box", read_box)
    open_checkpoint(tmp_path).load_sharded("x", NamedSharding(mesh_of(2, 4), PartitionSpec("a")))
    assert sorted(reads) == [((0, 8), (0, 16)), ((8, 16), (0, 16))]


def test_a_single_device_and_a_scalar_load(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL.items())
    index, here = open_checkpoint(tmp_path), SingleDeviceSharding(jax.devices()[0])
    for name in ("a.weight", "c.bias", "d.scale", "e.empty", "f.mask"):
        np.testing.assert_array_equal(index.load_sharded(name, here), SMALL[name])


def test_a_shape_the_model_does_not_expect_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, SMALL.items())
    index, here = open_checkpoint(tmp_path), SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(InputError, match=r"model\.safetensors: 'a\.weight' gives shape \(4, 6\).*expected \(4, 8\)"):
        index.load_sharded("a.weight", here, shape=(4, 8))
    with pytest.raises(InputError, match=r"'c\.bias' of shape \(7,\) has no part"):
        index.load_sharded("c.bias", here, transform=Transform(part=(slice(0, 1), slice(0, 1))))
    with pytest.raises(ValueError, match="has a step"):
        Transform(part=(slice(0, 4, 2),))


# --- broken files ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("good")
    write_checkpoint(folder, SMALL.items())
    return (folder / "model.safetensors").read_bytes()


@REUSED
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, good: bytes, data: st.DataObject) -> None:
    header = 8 + int.from_bytes(good[:8], "little")
    places = st.sampled_from([0, 1, 7, 8, 9, header - 1, header, header + 1, len(good) - 1])
    cut = data.draw(places | st.integers(0, len(good) - 1))
    (tmp_path / "model.safetensors").write_bytes(good[:cut])
    with pytest.raises(InputError, match=r"model\.safetensors: (corrupt|truncated)"):
        open_checkpoint(tmp_path)


@REUSED
@given(data=st.data())
def test_a_damaged_header_never_raises_anything_else(tmp_path: Path, good: bytes, data: st.DataObject) -> None:
    header = 8 + int.from_bytes(good[:8], "little")
    broken = bytearray(good)
    for at in data.draw(st.lists(st.integers(0, header - 1), min_size=1, max_size=4)):
        broken[at] = data.draw(st.integers(0, 255))
    (tmp_path / "model.safetensors").write_bytes(bytes(broken))
    try:
        index = open_checkpoint(tmp_path)
    except InputError as error:
        assert "model.safetensors" in str(error)
    else:  # a name or a dtype of the same width was hit: whatever it says now must be readable
        for name in index.names():
            index.read(name)


def with_header(header: object, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((1 << 40).to_bytes(8, "little") + b"{}", "cannot hold its header of 1099511627776 bytes"),
        (with_header(b"{nope"), "corrupt JSON"),
        (with_header(b"\xff\xfe{}"), "corrupt JSON"),
        (with_header(b"[" * 100_000), "corrupt JSON"),
        (with_header([1]), "expected an object, got list"),
        (with_header(b'{"x": 1, "x": 1}'), "a key occurs twice"),
        (with_header({"x": 1}), "'x' has no whole"),
        (with_header({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), "'x' has no whole"),
        (with_header({"x": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234"), "'x' has no whole"),
        (with_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"), "'x' needs 2 data_offsets"),
        (with_header({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"1"), "'x' has dtype 'F4'; known"),
        (with_header({"x": {"dtype": [], "shape": [2], "data_offsets": [0, 1]}}, b"1"), r"'x' has dtype \[\]; known"),
        (with_header({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 3]}}, b"123"), r"takes 2"),
        (with_header({"x": {"dtype": "U8", "shape": [1 << 60], "data_offsets": [0, 1 << 60]}}), "truncated.*'x' ends"),
        (with_header({"x": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"123"), "'x' starts at 1"),
        (with_header({"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"123"), "accounts for"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_a_bad_header_is_explained(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_overlapping_tensors_are_refused(tmp_path: Path) -> None:
    span = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    (tmp_path / "model.safetensors").write_bytes(with_header({"x": span, "y": span}, b"1234"))
    with pytest.raises(InputError, match="'y' starts at 0, expected 4"):
        open_checkpoint(tmp_path)


def test_a_file_that_shrinks_after_opening_is_named(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(good)
    index = open_checkpoint(tmp_path)
    path.write_bytes(good[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors: cannot read tensor 'f\.mask'"):
        index.read("f.mask")
    path.unlink()
    with pytest.raises(InputError, match=r"cannot read tensor 'a\.weight'"):
        index.read("a.weight")


def test_missing_tensors_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no checkpoint here; expected model\.safetensors or"):
        open_checkpoint(tmp_path)
    write_checkpoint(tmp_path, [("layer.0", np.ones(4)), ("layer.1", np.ones(4))], max_shard_bytes=32)
    with pytest.raises(InputError, match=r"tensor 'layer\.2' is missing.*nearest: layer\.[01]"):
        open_checkpoint(tmp_path).read("layer.2")
    path = tmp_path / "model.safetensors.index.json"
    original = json.loads(path.read_text())

    def broken(weight_map: object) -> InputError:
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(InputError, match=r"index\.json") as caught:
            open_checkpoint(tmp_path)
        return caught.value

    first = original["weight_map"]["layer.0"]
    assert "'layer.7' is missing" in str(broken({"layer.7": first}))
    assert "'gone.safetensors', which is missing" in str(broken({"layer.0": "gone.safetensors"}))
    assert "a file in the same folder" in str(broken({"layer.0": "../model.safetensors"}))
    assert "a file in the same folder" in str(broken({"layer.0": 3}))
    assert "no object 'weight_map'" in str(broken([1]))
    (tmp_path / first).unlink()
    assert "which is missing" in str(broken(original["weight_map"]))
