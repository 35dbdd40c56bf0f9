"""SHA-256 of many short messages in one call, without the interpreter, for x86 with the SHA extensions.

FIPS 180-4; the order of words in registers is that of Intel's "New Instructions Supporting the Secure Hash Algorithm"
(2013). hashlib is as fast a byte, but takes about a microsecond more a message, as long as 2 KiB take. What comes of
one of these instructions is there later than the next one could begin: two messages are hashed at once, each in the
pauses of the other. The code is given to LLVM as it is: that takes a twentieth of a second of every process that
needs it, while numba takes more than one to begin.
"""

import ctypes
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from llvmlite import binding, ir

from abi_jax.wdbx.search.threads import shares

HASH, BLOCK = 32, 64  # bytes
MOST = 64 * 1024  # bytes of a message, padded: of longer ones hashlib's call costs nothing
PAD = 0x80
I8, I32, I64 = (ir.IntType(bits) for bits in (8, 32, 64))
WORDS, BYTES = ir.VectorType(I32, 4), ir.VectorType(I8, 16)
VOID = ir.VoidType()


def _roots(power: int, count: int) -> list[int]:
    """First 32 bits behind the point of the square or cube roots of the first primes (FIPS 180-4, 4.2.2, 5.3.3)."""
    primes: list[int] = []
    number = 2
    while len(primes) < count:
        if all(number % prime for prime in primes):
            primes.append(number)
        number += 1
    found = []
    for prime in primes:
        low, high = 0, prime << 32
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if middle**power <= prime << 32 * power else (low, middle)
        found.append(low & 0xFFFFFFFF)
    return found


ROUND = _roots(3, 64)
A, B, C, D, E, F, G, H = _roots(2, 8)
FIRST = (F, E, B, A), (H, G, D, C)  # of two registers, the lowest word first


def there() -> bool:
    """Whether this host has the instructions."""
    return bool(binding.get_host_cpu_features().get("sha"))


def _number(value: int) -> Any:
    return ir.Constant(I64, value)


def _call(builder: Any, name: str, result: Any, *given: Any) -> Any:
    kind = ir.FunctionType(result, [each.type for each in given])
    return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), given)


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _read(builder: Any, address: Any, kind: Any = I64, align: int = 8) -> Any:
    loaded = builder.load(_pointer(builder, address, kind))
    loaded.align = align
    return loaded


def _element(builder: Any, table: Any, at: Any) -> Any:
    """Of int64 at an address, that at a place."""
    return _read(builder, builder.add(table, builder.mul(at, _number(8))))


def _shuffled(builder: Any, a: Any, b: Any, order: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), list(order)))


def _swapped(builder: Any, words: Any) -> Any:
    """Four words with their bytes the other way round, as 16 bytes or from them."""
    data = builder.bitcast(words, BYTES)
    return builder.bitcast(_shuffled(builder, data, data, [i ^ 3 for i in range(16)]), WORDS)


@contextmanager
def _each(builder: Any, first: Any, last: Any, step: int) -> Iterator[Any]:
    """Repeats what is built inside, for numbers from `first` on that are below `last`."""
    entry = builder.block
    test, body, done = (builder.append_basic_block(name) for name in ("test", "body", "done"))
    builder.branch(test)
    builder.position_at_end(test)
    at = builder.phi(I64)
    at.add_incoming(first, entry)
    builder.cbranch(builder.icmp_signed("<", at, last), body, done)
    builder.position_at_end(body)
    yield at
    at.add_incoming(builder.add(at, _number(step)), builder.block)
    builder.branch(test)
    builder.position_at_end(done)


def _rounds(builder: Any, states: list[tuple[Any, Any]], data: list[Any]) -> list[tuple[Any, Any]]:
    """The states after a block each, which begin at addresses `data`."""
    now = list(states)
    words = [
        [_swapped(builder, _read(builder, builder.add(at, _number(16 * i)), WORDS, 1)) for i in range(4)] for at in data
    ]
    for i in range(16):
        constant = ir.Constant(WORDS, ROUND[4 * i : 4 * i + 4])
        for lane, (first, second) in enumerate(now):
            added = builder.add(words[lane][i], constant)
            second = _call(builder, "llvm.x86.sha256rnds2", WORDS, second, first, added)
            behind = _shuffled(builder, added, added, [2, 3, 0, 0])
            first = _call(builder, "llvm.x86.sha256rnds2", WORDS, first, second, behind)
            now[lane] = first, second
        for each in words if i < 12 else []:
            mixed = _call(builder, "llvm.x86.sha256msg1", WORDS, each[i], each[i + 1])
            mixed = builder.add(mixed, _shuffled(builder, each[i + 2], each[i + 3], [1, 2, 3, 4]))
            each.append(_call(builder, "llvm.x86.sha256msg2", WORDS, mixed, each[i + 3]))
    return [(builder.add(a, c), builder.add(b, d)) for (a, b), (c, d) in zip(states, now, strict=True)]


def _compressed(builder: Any, data: list[Any], blocks: Any) -> list[tuple[Any, Any]]:
    """The states after `blocks` blocks each, at least one."""
    entry = builder.block
    loop, done = builder.append_basic_block("block"), builder.append_basic_block("hashed")
    builder.branch(loop)
    builder.position_at_end(loop)
    at = builder.phi(I64)
    at.add_incoming(_number(0), entry)
    before = [(builder.phi(WORDS), builder.phi(WORDS)) for _ in data]
    after = _rounds(builder, before, [builder.add(each, builder.mul(at, _number(BLOCK))) for each in data])
    following = builder.add(at, _number(1))
    at.add_incoming(following, loop)
    for old, new in zip(before, after, strict=True):
        for half in (0, 1):
            old[half].add_incoming(ir.Constant(WORDS, list(FIRST[half])), entry)
            old[half].add_incoming(new[half], loop)
    builder.cbranch(builder.icmp_signed("<", following, blocks), loop, done)
    builder.position_at_end(done)
    return after


def _lay_out(module: Any) -> Any:
    """Makes the function that writes the message of a row to an address, padded (FIPS 180-4, 5.1.1)."""
    lay = ir.Function(module, ir.FunctionType(VOID, [I64] * 8), "lay")
    parts, num_parts, tails, num_tails, row, size, room, buffer = lay.args
    builder = ir.IRBuilder(lay.append_basic_block("entry"))
    place = builder.alloca(I64)
    builder.store(buffer, place)

    def put(source: Any, count: Any) -> None:
        at = builder.load(place)
        pointers = [_pointer(builder, each, I8) for each in (at, source)]
        _call(builder, "memcpy", I8.as_pointer(), *pointers, count)
        builder.store(builder.add(at, count), place)

    with _each(builder, _number(0), builder.mul(num_parts, _number(3)), 3) as part:
        start, stride, width = (_element(builder, parts, builder.add(part, _number(i))) for i in range(3))
        put(builder.add(start, builder.mul(row, stride)), width)
    with _each(builder, _number(0), builder.mul(num_tails, _number(2)), 2) as tail:
        start, ends = (_element(builder, tails, builder.add(tail, _number(i))) for i in range(2))
        begin, end = (_element(builder, ends, builder.add(row, _number(i))) for i in range(2))
        put(builder.add(start, begin), builder.sub(end, begin))
    behind = _pointer(builder, builder.add(buffer, size), I8)
    _call(builder, "memset", I8.as_pointer(), behind, ir.Constant(I32, 0), builder.sub(room, size))
    builder.store(ir.Constant(I8, PAD), behind)
    bits = builder.bswap(builder.mul(size, _number(8)))
    builder.store(bits, _pointer(builder, builder.sub(builder.add(buffer, room), _number(8)), I64))
    builder.ret_void()
    return lay


def _module() -> Any:
    """Makes the code: digests of `rows[first:last]`, whose messages are of `blocks` blocks."""
    module = ir.Module("sha256")
    module.triple = binding.get_default_triple()
    lay = _lay_out(module)
    function = ir.Function(module, ir.FunctionType(VOID, [I64] * 11), "hash")
    *table, sizes, rows, first, last, blocks, buffer, digests = function.args
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    room = builder.mul(blocks, _number(BLOCK))
    buffers = [buffer, builder.add(buffer, room)]
    with _each(builder, first, last, 2) as at:
        following = builder.add(at, _number(1))
        other = builder.select(builder.icmp_signed("<", following, last), following, at)  # the last one with itself
        pair = [_element(builder, rows, each) for each in (at, other)]
        for row, to in zip(pair, buffers, strict=True):
            builder.call(lay, [*table, row, _element(builder, sizes, row), room, to])
        for row, (low, high) in zip(pair, _compressed(builder, buffers, blocks), strict=True):
            to = builder.add(digests, builder.mul(row, _number(HASH)))
            for half, order in enumerate(([3, 2, 7, 6], [1, 0, 5, 4])):  # A to D, E to H
                words = _swapped(builder, _shuffled(builder, low, high, order))
                place = _pointer(builder, builder.add(to, _number(16 * half)), WORDS)
                builder.store(words, place).align = 1
    builder.ret_void()
    return module


@cache
def _compiled() -> tuple[Callable[..., None], Any]:
    """The code, which does not hold the interpreter, and what keeps it in memory."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    features = binding.get_host_cpu_features().flatten()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(str(_module())), machine)
    engine.finalize_object()
    kind = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 11)
    return kind(engine.get_function_address("hash")), engine


def hash_rows(parts: Sequence[np.ndarray], tails: Sequence[pa.Array], count: int) -> np.ndarray:
    """SHA-256 of `count` messages, uint8 `[n, 32]`. Only where `there()`.

    parts: uint8 `[n, w]`, what each message begins with, in this order; the bytes of a row must lie one behind the
    other. tails: large binary `[n]` without nulls, which follow.
    """
    if not count:
        return np.zeros((0, HASH), np.uint8)
    for each in parts:
        if len(each) != count or each.dtype != np.uint8 or (each.shape[1] > 1 and each.strides[1] != 1):
            raise ValueError(f"part {each.dtype} {each.shape} with strides {each.strides}: expected {count} of bytes")
    ends = [np.ascontiguousarray(tail_ends(each)) for each in tails]
    if any(len(each) != count + 1 for each in ends):
        raise ValueError(f"tails of {[len(each) for each in tails]} rows: expected {count}")
    starts = np.array([(each.ctypes.data, each.strides[0], each.shape[1]) for each in parts], np.int64).reshape(-1, 3)
    behind = np.array(
        [
            (0 if (data := each.buffers()[2]) is None else data.address, of.ctypes.data)
            for each, of in zip(tails, ends, strict=True)
        ],
        np.int64,
    )
    sizes = np.full(count, starts[:, 2].sum(), np.int64)
    for each in ends:
        sizes += np.diff(each)
    blocks = (sizes + 8) // BLOCK + 1
    short = blocks <= MOST // BLOCK
    rows = np.arange(count)
    if blocks.min() != blocks.max():  # those of as many blocks together
        rows = np.argsort(np.minimum(blocks, MOST // BLOCK + 1).astype(np.uint16), kind="stable")
    in_order = blocks[rows[: short.sum()]]
    digests = np.empty((count, HASH), np.uint8)
    call, _ = _compiled()
    table = starts.ctypes.data, len(parts), behind.ctypes.data, len(tails), sizes.ctypes.data, rows.ctypes.data

    def work(first: int, last: int) -> None:
        buffer = np.empty(2 * BLOCK * int(in_order[last - 1]) if last > first else 0, np.uint8)
        while first < last:
            same = int(in_order[first])
            until = min(last, int(np.searchsorted(in_order, same, "right")))
            call(*table, first, until, same, buffer.ctypes.data, digests.ctypes.data)
            first = until

    shares(len(in_order), work)
    for row in np.flatnonzero(~short).tolist():
        made = hashlib.sha256(b"".join(part[row].tobytes() for part in parts))
        for tail in tails:
            made.update(tail[row].as_buffer())
        digests[row] = np.frombuffer(made.digest(), np.uint8)
    return digests


def tail_ends(column: pa.Array) -> np.ndarray:
    """Where each value of a large binary array begins in its data, and where the last one ends, int64 `[n + 1]`."""
    return np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
