"""Frames: what is encrypted opens in its own place, whole, and nowhere else."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax import wdbx
from abi_jax.wdbx.crypto.keyring import KEYS_FILE, Keyring
from abi_jax.wdbx.crypto.master import LocalKey
from abi_jax.wdbx.crypto.pages import ABOUT, PAGE, TAG, SealedArrays, StepKey, seal_arrays
from abi_jax.wdbx.crypto.records import RecordSeals, open_record
from abi_jax.wdbx.errors import DamagedError
from abi_jax.wdbx.log.commit import Draft
from abi_jax.wdbx.log.record import GENESIS, Head, Kind, Record
from abi_jax.wdbx.storage.local import LocalStorage

KEY = StepKey(bytes(range(32)), bytes(16), "segments/00000001")
DTYPES = st.sampled_from(["uint8", "int8", "uint32", "float32", "bfloat16", "float16", "int64"])
SHAPES = st.one_of(
    st.tuples(st.integers(0, 300)),
    st.tuples(st.integers(0, 30), st.integers(1, 8)),
    st.sampled_from([(PAGE,), (PAGE + 1,), (2 * PAGE - 1,), (3 * PAGE // 8, 8), (5 * PAGE // 4, 64)]),
)


@given(st.dictionaries(st.sampled_from(["vectors", "ids", "born", "metadata"]), st.tuples(DTYPES, SHAPES), min_size=1))
@settings(max_examples=40, deadline=None)
def test_arrays_come_back_as_they_were(wanted: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.integers(0, 256, (int(np.prod(shape)) * np.dtype(dtype).itemsize,), np.uint8)
        .view(np.dtype(dtype))
        .reshape(shape)
        for name, (dtype, shape) in wanted.items()
    }
    sealed = seal_arrays(KEY, arrays)
    assert set(sealed) == {*arrays, ABOUT}
    for name, array in arrays.items():
        pages, size = sealed[name].shape
        assert pages * (size - TAG) - array.nbytes < max(PAGE, 256)
    opened = SealedArrays(KEY, sealed)
    assert dict.fromkeys(opened) == dict.fromkeys(arrays)
    for name, array in arrays.items():
        assert opened.shape(name) == array.shape and opened[name].dtype == array.dtype
        assert opened[name].tobytes() == array.tobytes()


def sealed() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return seal_arrays(KEY, {name: rng.integers(0, 256, 3 * PAGE, np.uint8) for name in ("a", "b")})


def swap_pages(frames: dict[str, np.ndarray]) -> None:
    frames["a"][[0, 1]] = frames["a"][[1, 0]]


def swap_arrays(frames: dict[str, np.ndarray]) -> None:
    frames["a"], frames["b"] = frames["b"], frames["a"]


def cut_short(frames: dict[str, np.ndarray]) -> None:
    frames["a"] = frames["a"][:2]


def grow(frames: dict[str, np.ndarray]) -> None:
    frames["a"] = np.concatenate([frames["a"], frames["a"][:1]])


def leave_out(frames: dict[str, np.ndarray]) -> None:
    del frames["b"]


def put_in(frames: dict[str, np.ndarray]) -> None:
    frames["c"] = frames["b"]


@pytest.mark.parametrize("change", [swap_pages, swap_arrays, cut_short, grow, leave_out, put_in])
def test_pages_open_in_their_own_place_alone(change: Callable[[dict[str, np.ndarray]], None]) -> None:
    frames = sealed()
    assert len(SealedArrays(KEY, frames)["a"]) == 3 * PAGE
    change(frames)
    with pytest.raises(
        DamagedError, match=r"segments/00000001(/a: page \d of \d does not open| has the arrays)|/about"
    ):
        SealedArrays(KEY, frames)["a"]


@pytest.mark.parametrize(
    "other",
    [
        StepKey(bytes(range(32)), bytes(16), "segments/00000002"),
        StepKey(bytes(range(32)), bytes(15) + b"1", "segments/00000001"),
        StepKey(bytes(range(1, 33)), bytes(16), "segments/00000001"),
    ],
    ids=["step", "store", "key"],
)
def test_pages_of_another_step_store_or_key(other: StepKey) -> None:
    with pytest.raises(DamagedError, match="does not open: it was changed, or is of another place or store"):
        SealedArrays(other, sealed())


@given(at=st.integers(0, 3 * (PAGE + TAG) - 1), bit=st.integers(0, 7))
@settings(max_examples=30, deadline=None)
def test_every_bit_of_a_page_counts(at: int, bit: int) -> None:
    frames = sealed()
    flat = frames["a"].reshape(-1)
    flat[at] ^= 1 << bit
    with pytest.raises(DamagedError, match=f"page {at // (PAGE + TAG)} of 3 does not open"):
        SealedArrays(KEY, frames)["a"]


def test_salts_are_the_same_however_they_are_asked_for() -> None:
    whole = KEY.salts(100)
    assert whole.shape == (100, 16)
    assert (KEY.salts(60, 40) == whole[40:]).all()
    assert len({each.tobytes() for each in whole}) == 100


@pytest.fixture
def ring(tmp_path: Path) -> Keyring:
    storage = LocalStorage(tmp_path)
    storage.make()
    return Keyring.create(storage, bytes(16), LocalKey(bytes(32)))


HEAD = Head(Kind.UPSERT, 7, 1_000, 2, 3, 4, 0, bytes(32))


def test_a_payload_opens_under_its_own_head_alone(ring: Keyring) -> None:
    seals = RecordSeals(ring.store, ring, None, "log/x")
    head, stored = seals.seal(HEAD, Draft(Kind.UPSERT, 3, 4, b"the row"), GENESIS)
    record = Record(head, stored)
    assert b"the row" not in stored and len(stored) == head.length == len(b"the row") + TAG
    assert open_record(ring, record).payload == b"the row"
    changes: dict[str, Any] = {
        "kind": Kind.DELETE,
        "version": 8,
        "time": 1_001,
        "epoch": 3,
        "collection": 4,
        "rows": 5,
        "group": 1,
    }
    for name, value in changes.items():
        with pytest.raises(DamagedError, match="does not open"):
            open_record(ring, Record(replace(head, **{name: value}), stored))
    with pytest.raises(DamagedError, match="is not encrypted; expected it as its store is"):
        open_record(ring, Record(HEAD, b"the row"))
    with pytest.raises(DamagedError, match="is encrypted; expected it as its store is"):
        open_record(None, record)


def test_a_version_that_was_not_written_never_shares_a_key_with_the_one_that_was(ring: Keyring) -> None:
    """Two payloads under one key and nonce would give their difference away."""
    seals = RecordSeals(ring.store, ring, None, "log/x")
    first, _ = seals.seal(HEAD, Draft(Kind.UPSERT, 3, 4, b"one"), GENESIS)
    seals.failed()
    second, _ = seals.seal(HEAD, Draft(Kind.UPSERT, 3, 4, b"two"), GENESIS)
    third, _ = seals.seal(replace(HEAD, version=8), Draft(Kind.UPSERT, 3, 4, b"six"), GENESIS)
    assert first.data_key != second.data_key == third.data_key
    seals.begin("log/y")
    assert seals.seal(HEAD, Draft(Kind.UPSERT, 3, 4, b"ten"), GENESIS)[0].data_key not in (
        first.data_key,
        second.data_key,
    )
    tenant, _ = seals.seal(HEAD, Draft(Kind.UPSERT, 3, 4, b"ten", "tenant"), GENESIS)
    assert ring.entries[tenant.data_key].tenant == ring.token("tenant")


def test_steps_of_two_stores_cannot_be_exchanged(tmp_path: Path) -> None:
    """Whoever has the disk has all files of both stores, and rewrites hashes and chain as he likes."""
    for name in ("a", "b"):
        with wdbx.open(tmp_path / name, key=bytes(32)) as db:
            db.create_collection("c", 2, metric="l2").upsert([name], [[1, 2]])
            db.seal()
    for folder in ("segments/00000001", KEYS_FILE):
        copy = tmp_path / f"a-{Path(folder).name}"
        shutil.copytree(tmp_path / "a", copy)
        source, target = tmp_path / "b" / folder, copy / folder
        if source.is_dir():
            shutil.rmtree(target)
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        with pytest.raises(DamagedError, match=r"does not open|is of store"), wdbx.open(copy, key=bytes(32)) as db:
            db.collection("c").get("a")
