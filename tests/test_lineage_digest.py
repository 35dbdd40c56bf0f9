"""A tensor has one digest, however it is laid out, and another for any change."""

import hashlib
import itertools
import json
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from abi_jax import lineage_digest
from abi_jax.lineage_digest import (
    CHUNK_BYTES,
    Snapshot,
    chunk_shape,
    content_root,
    digest_tree,
    grid,
    merkle_root,
)


def naive(path: str, x: np.ndarray) -> str:
    """The definition, written out without numpy's help."""
    chunk = chunk_shape(x.shape, x.dtype.itemsize)
    leaves = []
    starts = [range(0, size, step) if step else () for size, step in zip(x.shape, chunk, strict=True)]
    for at in itertools.product(*starts):
        inside = x[tuple(slice(a, a + step) for a, step in zip(at, chunk, strict=True))]
        leaves.append(hashlib.sha256(b"abi-jax/chunk\0" + inside.tobytes()).digest())
    while len(leaves) > 1:
        pairs = [leaves[i : i + 2] for i in range(0, len(leaves), 2)]
        leaves = [hashlib.sha256(b"abi-jax/node\0" + b"".join(p)).digest() if len(p) == 2 else p[0] for p in pairs]
    root = leaves[0] if leaves else hashlib.sha256(b"abi-jax/empty\0").digest()
    about = {"chunk": chunk, "dtype": x.dtype.name, "path": path, "shape": x.shape}
    text = json.dumps(about, separators=(",", ":")).encode()
    return hashlib.sha256(b"abi-jax/tensor\0" + text + b"\0" + root).hexdigest()


ARRAYS: dict[str, Any] = {
    "scalar": np.float32(3.5),
    "empty": np.zeros((0, 4), np.float32),
    "vector": np.arange(5000, dtype=np.int32),
    "matrix": np.random.default_rng(0).normal(size=(512, 384)).astype(np.float32),
    "uneven": np.random.default_rng(1).normal(size=(257, 3, 129)).astype(np.float64),
    "bf16": np.asarray(jnp.arange(70_000, dtype=jnp.bfloat16)),
    "bool": np.arange(100) % 3 == 0,
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_digest_is_what_its_definition_says(name: str) -> None:
    x = np.asarray(ARRAYS[name])
    made = digest_tree({name: x})[name]
    assert (made.dtype, made.shape, made.digest) == (x.dtype.name, x.shape, naive(name, x))


def test_path_dtype_and_shape_count() -> None:
    x = np.zeros((8, 8), np.float32)
    same = {digest_tree({"a": x})["a"].digest, digest_tree({"a": x.copy(order="F")})["a"].digest}
    assert len(same) == 1
    others: list[dict[str, np.ndarray]] = [{"b": x}, {"a": x.reshape(4, 16)}, {"a": x.view(np.int32)}, {"a": -x}]
    assert len(same | {digest for other in others for digest in (d.digest for d in digest_tree(other).values())}) == 5


LAYOUTS = [
    ((8,), ("x",), PartitionSpec()),
    ((8,), ("x",), PartitionSpec("x")),
    ((8,), ("x",), PartitionSpec(None, "x")),
    ((2, 4), ("x", "y"), PartitionSpec("x", "y")),
    ((2, 4), ("x", "y"), PartitionSpec("y", "x")),
    ((2, 4), ("x", "y"), PartitionSpec(("x", "y"))),
    ((2, 4), ("x", "y"), PartitionSpec("x")),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(512, 384), (8, 16), (1024, 1032)], ids=str)
def test_every_layout_has_the_same_digest(
    layout: tuple[tuple[int, ...], tuple[str, ...], PartitionSpec], shape: tuple[int, int]
) -> None:
    sizes, names, spec = layout
    mesh = jax.make_mesh(sizes, names, axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))
    x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    placed = jax.device_put(x, NamedSharding(mesh, spec))
    assert digest_tree({"w": placed}) == digest_tree({"w": x})


def test_a_snapshot_outlives_its_arrays() -> None:
    x = jax.device_put(np.arange(100_000, dtype=np.float32))
    expected = digest_tree({"w": np.asarray(x)})
    taken = Snapshot({"w": x})
    x.delete()
    assert taken.digests([taken.leaves()]) == expected


def test_processes_hash_their_own_chunks_and_put_them_together() -> None:
    x = np.random.default_rng(3).normal(size=(512, 384)).astype(np.float32)
    taken = Snapshot({"w": x})
    leaves = np.random.default_rng(4).permutation(taken.leaves()["w"])
    assert len(leaves) > 8 and leaves.nbytes == 40 * len(leaves)
    assert taken.digests([{"w": leaves[::2]}, {}, {"w": leaves[1::2]}]) == digest_tree({"w": x})
    with pytest.raises(RuntimeError, match=rf"w: no process hashed 1 of its {len(leaves)} chunks"):
        taken.digests([{"w": leaves[1:]}])


def test_a_chunk_that_hashes_to_zeros_is_not_a_missing_one() -> None:
    taken = Snapshot({"w": np.zeros(3, np.int8)})
    (leaf,) = taken.leaves()["w"]
    leaf["hash"] = 0
    assert taken.digests([{"w": np.array([leaf])}]).keys() == {"w"}


@dataclass(frozen=True)
class FakeDevice:
    id: int
    process_index: int
    platform: str = "tpu"


class FakeArray:
    """What a process sees of an array split by `regions` ways along the first axis, a copy in every `replicas`."""

    def __init__(self, rows: int, regions: int, replicas: int) -> None:
        self.shape, self.dtype, self.nbytes = (rows, 1024), np.dtype(np.float32), rows * 4096
        step = rows // regions
        places = [(r, slice(i * step, (i + 1) * step)) for r in range(replicas) for i in range(regions)]
        places = [(r, slice(None)) for r in range(replicas)] if regions == 1 else places
        self.sharding = SimpleNamespace(
            devices_indices_map=lambda shape: {
                FakeDevice(n, r): (rows_of, slice(None)) for n, (r, rows_of) in enumerate(places)
            }
        )
        self.addressable_shards: list[Any] = []


@pytest.mark.parametrize("regions", [1, 4])
def test_replicas_share_the_hashing(regions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 tensors that each of four processes has whole."""
    monkeypatch.setattr("abi_jax.lineage_digest.jax.Array", FakeArray)
    monkeypatch.setattr("jax.process_index", lambda: 99)
    loads = [0, 0, 0, 0]
    for size in [512, 128, 1024, 128] * 16:
        x = FakeArray(size, regions, replicas=4)
        assert lineage_digest._share(x, chunk_shape(x.shape, 4), loads) == []
    assert sum(loads) == 4096 * 1792 * 16 and max(loads) - min(loads) <= 4096 * 1024


def test_a_tree_is_copied_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    copy = lineage_digest._host_copy
    tensors = {f"{i}": jnp.full((333, 77), i) for i in range(6)}
    alive: list[weakref.ref[np.ndarray]] = []

    def kept(x: Any) -> np.ndarray:
        assert not any(made() is not None for made in alive), "an earlier tensor's copy is still held"
        made = copy(x)
        alive.append(weakref.ref(made))
        return made

    monkeypatch.setattr(lineage_digest, "_host_copy", kept)
    assert len(digest_tree(tensors)) == len(alive) == 6


@pytest.mark.parametrize(
    ("shape", "itemsize", "axis", "ways"),
    [
        ((151936, 1024), 4, 0, 128),  # Qwen's vocabulary: 2^7 * 1187
        ((151936, 4096), 2, 0, 128),
        ((128256, 4096), 4, 0, 256),  # Llama 3's: 2^8 * 501
        ((128256, 8192), 2, 1, 128),
        ((32000, 4096), 4, 0, 128),
        ((50257, 768), 4, 1, 8),  # GPT-2's is odd: nothing splits it evenly
        ((14336, 4096), 4, 0, 64),
        ((11008, 4096), 2, 1, 32),
    ],
)
def test_shards_are_whole_chunks(shape: tuple[int, int], itemsize: int, axis: int, ways: int) -> None:
    """Split by any power of two up to `ways`."""
    chunk = chunk_shape(shape, itemsize)
    assert CHUNK_BYTES / 4 < itemsize * int(np.prod(chunk)) <= CHUNK_BYTES
    assert (shape[axis] // ways) % chunk[axis] == 0


def test_random_keys_are_their_data() -> None:
    key = jax.random.key(7)
    assert digest_tree({"key": key}) == digest_tree({"key": np.asarray(jax.random.key_data(key))})


@given(st.lists(st.integers(0, 5000), min_size=0, max_size=4), st.sampled_from([1, 2, 4, 8]))
def test_chunks_are_small_and_cover_the_array(shape: list[int], itemsize: int) -> None:
    chunk = chunk_shape(shape, itemsize)
    assert itemsize * int(np.prod(chunk)) <= CHUNK_BYTES
    for size, step, pieces in zip(shape, chunk, grid(shape, chunk), strict=True):
        assert (pieces - 1) * step < size <= pieces * step if size else pieces == 0


@given(st.data())
def test_any_changed_bit_changes_the_root(data: st.DataObject) -> None:
    tensors: dict[str, np.ndarray] = {"a": np.arange(300, dtype=np.int16), "b": np.zeros((20, 20), np.float32)}
    before = content_root(digest_tree(tensors))
    name = data.draw(st.sampled_from(sorted(tensors)))
    flat = tensors[name].reshape(-1).view(np.uint8)
    flat[data.draw(st.integers(0, flat.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert content_root(digest_tree(tensors)) != before


def test_a_merkle_root_depends_on_order_and_number() -> None:
    a, b, c = (bytes([i]) * 32 for i in range(3))
    assert len({merkle_root(x) for x in ([], [a], [a, b], [b, a], [a, b, c], [a, b, c, c])}) == 6
