"""Many messages hashed in one call: the same as hashlib, for every length, and for rows however they are stored."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from abi_jax.wdbx import digest
from abi_jax.wdbx.digest import FANOUT, Messages, row_digests, row_messages, tree_levels
from abi_jax.wdbx.rows import make_metadata
from abi_jax.wdbx.spec import CollectionSpec

sha256 = pytest.importorskip("abi_jax.wdbx.sha256", reason="needs llvmlite")
fast = pytest.mark.skipif(not sha256.there(), reason="needs a CPU with the SHA extensions")

EDGES = [0, 1, 55, 56, 63, 64, 119, 120, 127, 128]  # around where padding takes one block more
KINDS = ("str", "int", "float", "bool", "bytes", "time", "list[int]", "list[str]")


def random_bytes(rows: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, width), np.uint8)


def tail(values: Sequence[bytes]) -> pa.Array:
    return pa.array(values, pa.large_binary())


def expected(parts: Sequence[np.ndarray], tails: Sequence[pa.Array], count: int) -> list[bytes]:
    made = []
    for row in range(count):
        message = b"".join(each[row].tobytes() for each in parts) + b"".join(each[row].as_py() for each in tails)
        made.append(hashlib.sha256(message).digest())
    return made


def found(parts: Sequence[np.ndarray], tails: Sequence[pa.Array], count: int) -> list[bytes]:
    return [each.tobytes() for each in sha256.hash_rows(parts, tails, count)]


@pytest.mark.parametrize("rows", [0, 1, 2, 63, 64, 65, 4096, 4097, 128 * 64 + 5])
def test_a_tree_of_any_size(rows: int) -> None:
    """Nodes that are hashed at once are those that are hashed one by one."""
    levels = tree_levels(random_bytes(rows, 32))
    assert len(levels[-1]) == min(rows, 1)
    for below, above in pairwise(levels):
        nodes = [below[at : at + FANOUT].tobytes() for at in range(0, len(below), FANOUT)]
        assert [each.tobytes() for each in above] == [
            hashlib.sha256(b"abi-jax/wdbx node\0" + node).digest() for node in nodes
        ]


@fast
@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_rows_of_every_length_up_to_300(rows: int) -> None:
    for width in range(301):
        parts = [random_bytes(rows, width, width)]
        assert found(parts, [], rows) == expected(parts, [], rows), width


@fast
@settings(deadline=None, max_examples=150)
@given(st.lists(st.integers(0, 300) | st.sampled_from(EDGES), max_size=40), st.lists(st.integers(0, 70), max_size=4))
def test_rows_of_all_lengths_together(lengths: list[int], widths: list[int]) -> None:
    rows = len(lengths)
    parts = [random_bytes(rows, width, seed) for seed, width in enumerate(widths)]
    whole = random_bytes(1, sum(lengths), 99).tobytes()
    texts = [whole[a:b] for a, b in pairwise(np.cumsum([0, *lengths]))]
    tails = [tail(texts), tail(texts[::-1])]
    assert found(parts, tails, rows) == expected(parts, tails, rows)
    assert found(parts, tails[:1], rows) == expected(parts, tails[:1], rows)


@fast
def test_no_rows_and_no_parts() -> None:
    assert sha256.hash_rows([], [], 0).shape == (0, 32)
    assert found([], [], 2) == [hashlib.sha256().digest()] * 2


@fast
def test_parts_that_are_slices_or_one_row_for_all() -> None:
    wide = random_bytes(50, 40)
    parts = [wide[5:25, 3:20], np.broadcast_to(wide[0], (20, 40)), wide[::2][:20]]
    tails = [tail([b"x" * i for i in range(50)]).slice(9, 20)]
    assert found(parts, tails, 20) == expected(parts, tails, 20)


@fast
def test_messages_that_are_very_long_are_hashed_too() -> None:
    lengths = [0, sha256.MOST, 10, sha256.MOST - 5 - 9, sha256.MOST - 5 - 8, 3 * sha256.MOST + 1, 7]
    parts, tails = [random_bytes(len(lengths), 5)], [tail([b"a" * length for length in lengths])]
    assert found(parts, tails, len(lengths)) == expected(parts, tails, len(lengths))


@fast
def test_so_many_rows_that_threads_share_them() -> None:
    rows = 4 * 4096 + 3
    lengths = np.random.default_rng(1).integers(0, 200, rows)
    parts, tails = [random_bytes(rows, 21)], [tail([b"b" * length for length in lengths.tolist()])]
    assert found(parts, tails, rows) == expected(parts, tails, rows)


@fast
def test_parts_that_are_not_rows_of_bytes_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 of bytes"):
        sha256.hash_rows([np.zeros((3, 2), np.int32)], [], 3)
    with pytest.raises(ValueError, match="expected 3 of bytes"):
        sha256.hash_rows([np.zeros((2, 3), np.uint8).T], [], 3)
    with pytest.raises(ValueError, match=r"tails of \[1\] rows: expected 3"):
        sha256.hash_rows([], [tail([b""])], 3)


def rows_messages(rows: int, ids: str, salted: bool) -> Messages:
    """Messages of rows with a column of every kind, some of them null."""
    spec = CollectionSpec("rows", 3, ids=ids, schema=tuple((f"a {kind}", kind) for kind in KINDS))
    some: list[dict[str, object]] = [
        {"a str": "é" * (i % 90), "a int": i - 5, "a float": i / 3, "a bool": i % 2 == 0, "a bytes": b"\0" * (i % 7)}
        | {"a time": datetime(2020, 1, 1 + i % 9, tzinfo=UTC), "a list[int]": list(range(i % 4))}
        | {"a list[str]": ["x" * (i % 5)] * (i % 3)}
        for i in range(rows)
    ]
    mixed = [{name: value for k, (name, value) in enumerate(row.items()) if (i + k) % 4} for i, row in enumerate(some)]
    metadata = pa.Table.from_batches([make_metadata(spec, mixed, rows)])
    named = np.arange(rows) * 3 if ids == "int" else pa.array([f"id {i}" for i in range(rows)], pa.large_string())
    vectors = np.random.default_rng(2).standard_normal((rows, 3), np.float32)
    salts = random_bytes(rows, 16) if salted else None
    return row_messages(spec, named, np.arange(rows) // 2, vectors, metadata, salts)


@pytest.mark.parametrize("salted", [False, True])
@pytest.mark.parametrize("ids", ["int", "str"])
def test_digests_of_rows_are_those_of_their_messages(ids: str, salted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = rows_messages(digest.FEW_ROWS + 5, ids, salted)
    wanted = [hashlib.sha256(each).digest() for each in messages.joined()]
    assert [each.tobytes() for each in row_digests(messages)] == wanted
    monkeypatch.setattr(digest, "_many", lambda: None)
    assert [each.tobytes() for each in row_digests(messages)] == wanted


def test_few_rows_do_not_wait_for_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("compiled for a few rows")

    monkeypatch.setattr(digest, "_many", refuse)
    assert row_digests(rows_messages(10, "int", False)).shape == (10, 32)
