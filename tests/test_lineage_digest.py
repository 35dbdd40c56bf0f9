"""A tensor has one digest, however it is laid out, and another for any change."""

import hashlib
import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

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
    leaves = taken.leaves()["w"]
    mine = np.arange(len(leaves))[:, None] % 2 == 0
    shares = [{"w": np.where(mine, leaves, 0)}, {"w": np.where(mine, 0, leaves)}]
    assert taken.digests(shares) == digest_tree({"w": x})


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
