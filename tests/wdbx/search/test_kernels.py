"""Products of codes are the same whole numbers on every kind of processor."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("numba", reason="numba is not installed")

# A processor with less than this machine's may have: what LLVM is told of it, and what `simd` is.
PROCESSORS = {
    "without vector units": ("x86-64", "", []),
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
"""


@pytest.mark.parametrize("name", PROCESSORS)
def test_products(name: str) -> None:
    kind, features, there = PROCESSORS[name]
    of = {} if kind is None else {"NUMBA_CPU_NAME": kind, "NUMBA_CPU_FEATURES": features}
    told = ["host" if kind is None else "other", *there]
    subprocess.run([sys.executable, "-c", PROGRAM, *told], env={**os.environ, **of}, check=True, timeout=120)


def test_what_is_kept_of_a_kernel_is_of_all_files() -> None:
    from abi_jax.wdbx.search.kernels import compile, scan

    kept = scan.scan_tiles._cache._cache_file
    assert kept._source_stamp == compile.STAMP
    assert {name for name, *_ in compile.STAMP} >= {"scan.py", "heap.py", "simd.py"}
