"""Products and sums of codes are the same whole numbers on every kind of processor."""

import errno
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

numba = pytest.importorskip("numba", reason="numba is not installed")

from abi_jax.wdbx.search.codes import make_query_codes  # noqa: E402
from abi_jax.wdbx.search.ivf import Lists  # noqa: E402
from abi_jax.wdbx.search.kernels.compile import kernel  # noqa: E402

# What numba is told to compile for; this processor where nothing is said.
PROCESSORS = {
    "other": {"NUMBA_CPU_NAME": "generic"},
    "ssse3": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+ssse3"},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+avx,+sse4.2,+ssse3"},
    "this one": {},
}
PROGRAM = """
import sys
import numpy as np
from numba import njit
from abi_jax.wdbx.search.kernels.arrays import AT_ONCE, GROUP
from abi_jax.wdbx.search.kernels.multiply import multiply
from abi_jax.wdbx.search.kernels.shuffle import LANES, block_sums
from abi_jax.wdbx.search.kernels.simd import PICKED, floor_of

assert LANES == {"ssse3": 1, "avx2": 2, "other": 0}.get(sys.argv[-1], LANES)

@njit
def sums(codes, block, tables, query, least, out):
    return block_sums(codes, block, tables, query, least, out)

@njit
def products(codes, rows, first, last, queries, order, query, count, out):
    multiply(codes, rows, first, last, queries, order, query, count, out)

@njit
def floor(scores, at, count, wanted):
    return floor_of(scores.ctypes, at, count, wanted)

rng = np.random.default_rng(0)
for count in (32, 33, 63, 64, 100, 512):
    for values in (rng.normal(size=512), -rng.random(512), rng.integers(-2, 2, 512), np.zeros(512)):
        scores = values.astype(np.float32)
        for at in (0, 512 - count):
            best = scores[at : at + count // PICKED * PICKED].reshape(-1, PICKED).max(axis=0)
            for wanted in (1, 2, 10, 31, 32):
                assert floor(scores, at, count, wanted) == np.sort(best)[-wanted], (at, count, wanted)

for dim in (32, 96):
    codes = rng.integers(-128, 128, (200, dim)).astype(np.int8)
    queries = rng.integers(-3000, 3000, (7, dim)).astype(np.int16)
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    for count in (1, 2, 3, 4):
        for rows in (np.zeros(0, np.int32), rng.permutation(200).astype(np.int32)):
            for first, last in ((0, 128), (128, 199), (5, 6), (7, 18)):
                out = np.zeros((GROUP, AT_ONCE), np.int32)
                products(codes, rows, first, last, queries, order, 2, count, out)
                some = codes[rows[first:last]] if len(rows) else codes[first:last]
                expected = queries[order[2 : 2 + count]].astype(np.int64) @ some.astype(np.int64).T
                assert (out[:count, : last - first] == expected).all(), (dim, count, first, last)

for spaces in (4, 12, 256):
    codes = rng.integers(0, 256, (3, spaces, 16)).astype(np.uint8)
    tables = rng.integers(0, 256, (2, spaces, 16)).astype(np.uint8)
    tables[1], codes[2] = 255, 255
    for block in range(3):
        each = np.concatenate([codes[block] & 15, codes[block] >> 4], axis=1)
        for query in range(2):
            expected = np.take_along_axis(tables[query], each, axis=1).astype(np.int64).sum(axis=0)
            for least in (0, int(np.median(expected)), 65535):
                out = np.zeros(32, np.uint16)
                bits = sums(codes, block, tables, query, least, out)
                assert (out == expected).all(), (spaces, block, query)
                assert bits == sum(1 << i for i in range(32) if expected[i] >= least), (spaces, least)
"""


@pytest.mark.parametrize("name", PROCESSORS)
def test_products_and_sums(name: str) -> None:
    subprocess.run(
        [sys.executable, "-c", PROGRAM, name], env={**os.environ, **PROCESSORS[name]}, check=True, timeout=600
    )


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A small kernel, made anew with every call, that is kept in a folder of its own."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "small_kernel.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "small_kernel", raising=False)
    return lambda: kernel()(importlib.import_module("small_kernel").double)


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_what_was_kept_and_is_damaged_is_made_again(kept: Callable[[], Any], tmp_path: Path, ending: str) -> None:
    assert kept()(3) == 6
    (file,) = (tmp_path / "cache").rglob(f"*.{ending}")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert kept()(4) == 8
    again = kept()
    assert again(5) == 10 and sum(again.stats.cache_hits.values()) == 1


def test_without_room_for_what_was_compiled_it_runs(kept: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(numba.core.caching.IndexDataCacheFile, "save", full)
    assert kept()(3) == 6


def test_what_is_kept_of_a_kernel_is_of_all_files() -> None:
    from abi_jax.wdbx.search.kernels import compile, scan

    kept = scan.scan_tiles._cache._cache_file
    assert kept._source_stamp == compile.STAMP
    assert {name for name, *_ in compile.STAMP} >= {"scan.py", "heap.py", "simd.py"}


def test_of_lists_that_score_the_same_none_is_taken_for_a_better_one() -> None:
    centroids = np.eye(3, 32, dtype=np.float32)
    lists = Lists("cosine", centroids, np.zeros(0, np.int32), np.zeros(4, np.int64), {})
    query = make_query_codes("cosine", centroids[2:] * 100)
    assert lists.nearest(query, 2).tolist() == [[2, 0]]
