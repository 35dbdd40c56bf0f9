"""Sums of product codes for the vector units of a CPU, as LLVM has them.

Thirty-two rows are looked up in a table of sixteen bytes by one instruction of x86 (`vpshufb`) for each half of their
4-bit codes (Andre, Kermarrec, Le Scouarnec, Cache Locality Is Not Enough, VLDB 2015); elsewhere one by one. Sums are
whole numbers, below 2^16: they are the same on every machine.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from abi_jax.wdbx.search.kernels.compile import part
from abi_jax.wdbx.search.kernels.simd import FEATURES, I8, I32, I64, function, shuffled, vector

BLOCK = 32  # rows whose codes lie together: 16 bytes for each sub-space, the low halves of which are of the first rows
HALF = BLOCK // 2
TOGETHER = 4  # sub-spaces are padded to a multiple of so many, the same on every machine
I16 = ir.IntType(16)
SHUFFLES = {4: "llvm.x86.avx512.pshuf.b.512", 2: "llvm.x86.avx2.pshuf.b", 1: "llvm.x86.ssse3.pshuf.b.128"}
NEEDED = {4: "avx512bw", 2: "avx2", 1: "ssse3"}
LANES = next((lanes for lanes, feature in NEEDED.items() if FEATURES.get(feature)), 0)  # sub-spaces at once


@intrinsic
def _shuffled_sums(context: Any, codes: Any, at: Any, tables: Any, table: Any, size: Any, least: Any, out: Any) -> Any:
    """Sums of one block, `HALF * size` bytes from `codes[at]` on; which of them are `least` or more, a bit a row."""
    bytes_, words = ir.VectorType(I8, HALF * LANES), ir.VectorType(I16, HALF * LANES // 2)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, first, looked_up, begin, count, floor, sums = arguments
        shuffle = function(builder.module, ir.FunctionType(bytes_, [bytes_, bytes_]), SHUFFLES[LANES])
        entry, loop, done = builder.block, builder.append_basic_block("spaces"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        place = builder.phi(I64)
        place.add_incoming(ir.Constant(I64, 0), entry)
        every = [builder.phi(words) for _ in range(4)]
        loaded = []
        for pointer, start in ((base, first), (looked_up, begin)):
            each = builder.load(vector(builder, pointer, builder.add(start, place), bytes_))
            each.align = 1
            loaded.append(each)
        code, entries = loaded
        low = builder.and_(code, ir.Constant(bytes_, [15] * bytes_.count))
        high = builder.lshr(code, ir.Constant(bytes_, [4] * bytes_.count))
        eight, made = ir.Constant(words, [8] * words.count), []
        for half, (whole, odd) in zip((low, high), (every[:2], every[2:]), strict=True):
            found = builder.bitcast(builder.call(shuffle, [entries, half]), words)
            made += [builder.add(whole, found), builder.add(odd, builder.lshr(found, eight))]
        following = builder.add(place, ir.Constant(I64, bytes_.count))
        place.add_incoming(following, loop)
        for old, new in zip(every, made, strict=True):
            old.add_incoming(ir.Constant(words, [0] * words.count), entry)
            old.add_incoming(new, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        builder.position_at_end(done)
        halves = []
        for whole, odd in (made[:2], made[2:]):
            even = builder.sub(whole, builder.shl(odd, eight))
            halves.append(_alternating(builder, _folded(builder, even), _folded(builder, odd)))
        both = shuffled(builder, halves[0], halves[1], [*range(BLOCK)])
        stored = builder.store(both, vector(builder, sums, ir.Constant(I64, 0), both.type))
        stored.align = 2
        one = builder.insert_element(
            ir.Constant(both.type, ir.Undefined), builder.trunc(floor, I16), ir.Constant(I32, 0)
        )
        floors = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, BLOCK), [0] * BLOCK))
        return builder.zext(builder.bitcast(builder.icmp_unsigned(">=", both, floors), I32), I64)

    kind = types.int64(
        types.CPointer(types.uint8),
        types.intp,
        types.CPointer(types.uint8),
        types.intp,
        types.intp,
        types.int64,
        types.CPointer(types.uint16),
    )
    return kind, generate


def _folded(builder: Any, sums: Any) -> Any:
    """Adds up the lanes of eight numbers of a vector."""
    while sums.type.count > HALF // 2:
        half = sums.type.count // 2
        sums = builder.add(*(shuffled(builder, sums, sums, [*range(at, at + half)]) for at in (0, half)))
    return sums


def _alternating(builder: Any, even: Any, odd: Any) -> Any:
    return shuffled(builder, even, odd, [i // 2 + i % 2 * (HALF // 2) for i in range(HALF)])


@part()
def _sums_by_vectors(codes, block, tables, query, least, out):  # type: ignore[no-untyped-def]
    size = np.int64(codes.shape[1] * HALF)
    at, table = np.int64(block) * size, np.int64(query) * size
    return _shuffled_sums(codes.ctypes, at, tables.ctypes, table, size, np.int64(least), out.ctypes)


@part()
def _sums_one_by_one(codes, block, tables, query, least, out):  # type: ignore[no-untyped-def]
    out[:] = 0
    for m in range(codes.shape[1]):
        for i in range(HALF):
            code = codes[block, m, i]
            out[i] += tables[query, m, code & 15]
            out[HALF + i] += tables[query, m, code >> 4]
    bits = 0
    for i in range(BLOCK):
        if out[i] >= least:
            bits |= 1 << i
    return bits


# Sums of a block of codes, uint8 `[blocks, M, 16]`, by the tables of a query, uint8 `[B, M, 16]`: uint16 `[32]`; which
# of them are `least`, below 2^16, or more, as bits.
block_sums = _sums_by_vectors if LANES else _sums_one_by_one
