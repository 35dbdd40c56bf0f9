"""Products and sums of codes are the same whole numbers on every kind of processor."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba", reason="numba is not installed")

# A processor with less than this machine's may have: what LLVM is told of it, and what `simd` is.
PROCESSORS = {
    "without vector units": ("x86-64", "", []),
    "128 bits": ("x86-64", "+ssse3", ["ssse3"]),
    "256 bits": ("haswell", "+avx2,+avx,+sse4.2", ["avx2"]),
    "this one": (None, "", []),
}
PROGRAM = """
import sys
from llvmlite import binding
if sys.argv[1] != "host":
    there = dict.fromkeys(sys.argv[2:], True)
    binding.get_host_cpu_features = lambda: there
import numpy as np
from numba import njit
from abi_jax.wdbx.search.kernels.arrays import GROUP, TILE
from abi_jax.wdbx.search.kernels.multiply import multiply
from abi_jax.wdbx.search.kernels.shuffle import LANES, block_sums

assert LANES == {"ssse3": 1, "avx2": 2, "other": 0}.get(sys.argv[-1], LANES)

@njit
def sums(codes, block, tables, query, least, out):
    return block_sums(codes, block, tables, query, least, out)

@njit
def products(codes, rows, first, last, queries, order, query, count, out):
    multiply(codes, rows, first, last, queries, order, query, count, out)

rng = np.random.default_rng(0)
for dim in (32, 96):
    codes = rng.integers(-128, 128, (200, dim)).astype(np.int8)
    queries = rng.integers(-3000, 3000, (7, dim)).astype(np.int16)
    order = np.array([3, 1, 6, 0, 2, 5, 4])
    for count in (1, 2, 3, 4):
        for rows in (np.zeros(0, np.int32), rng.permutation(200).astype(np.int32)):
            for first, last in ((0, 128), (128, 199), (5, 6), (7, 18)):
                out = np.zeros((GROUP, TILE), np.int32)
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
    kind, features, there = PROCESSORS[name]
    of = {} if kind is None else {"NUMBA_CPU_NAME": kind, "NUMBA_CPU_FEATURES": features}
    told = ["host" if kind is None else "other", *there]
    subprocess.run([sys.executable, "-c", PROGRAM, *told], env={**os.environ, **of}, check=True, timeout=120)


def test_what_is_kept_of_a_kernel_is_of_all_files() -> None:
    from abi_jax.wdbx.search.kernels import compile, scan

    kept = scan.scan_tiles._cache._cache_file
    assert kept._source_stamp == compile.STAMP
    assert {name for name, *_ in compile.STAMP} >= {"scan.py", "heap.py", "simd.py"}
