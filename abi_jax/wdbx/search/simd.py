"""Products of int8 rows with int16 queries for the vector units of a CPU, as LLVM has them.

On x86 sixteen products and eight sums are one instruction (`vpmaddwd`), which LLVM does not find by itself where
several rows and queries share what they load; elsewhere it is left to choose. Whole numbers are not rounded: products
are the same on every machine.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

WIDTH = 16  # int8 that are loaded at once: rows are padded to a multiple of it
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HAS_MADD = bool(binding.get_host_cpu_features().get("avx2"))


def _products(builder: Any, rows: Any, queries: Any) -> Any:
    """Sixteen products of int16, as eight sums of neighbours, int32."""
    sums = ir.VectorType(I32, WIDTH // 2)
    if HAS_MADD:
        kind = ir.FunctionType(sums, [rows.type, queries.type])
        return builder.call(_function(builder.module, kind, "llvm.x86.avx2.pmadd.wd"), [rows, queries])
    wide = ir.VectorType(I32, WIDTH)
    products = builder.mul(builder.sext(rows, wide), builder.sext(queries, wide))
    halves = [
        builder.shuffle_vector(products, ir.Constant(wide, ir.Undefined), ir.Constant(sums, list(range(odd, WIDTH, 2))))
        for odd in (0, 1)
    ]
    return builder.add(*halves)


def _function(module: Any, kind: Any, name: str) -> Any:
    return module.globals.get(name) or ir.Function(module, kind, name)


def _load(builder: Any, base: Any, at: Any, element: Any) -> Any:
    pointer = builder.bitcast(builder.gep(base, [at]), ir.VectorType(element, WIDTH).as_pointer())
    loaded = builder.load(pointer)
    loaded.align = element.width // 8
    return loaded


SIGNATURE = types.void(
    types.CPointer(types.int8),
    *[types.intp] * 4,
    types.CPointer(types.int16),
    *[types.intp] * 2,
    types.CPointer(types.int32),
    *[types.intp] * 2,
)


def _generator(num_rows: int, num_queries: int) -> Callable[..., Any]:
    """Makes the code: products of the first `num_rows` of four rows with `num_queries` queries from `first` on.

    That of query k and row i goes to `out[k * stride + at + i]`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, *rest = arguments
        rows, (queries, first, dim, out, at, stride) = rest[:num_rows], rest[4:]
        zero, sums = ir.Constant(I64, 0), ir.VectorType(I32, WIDTH // 2)
        starts = [builder.mul(row, dim) for row in rows]
        lanes = [builder.mul(builder.add(first, ir.Constant(I64, k)), dim) for k in range(num_queries)]
        entry = builder.block
        loop, done = builder.append_basic_block("dims"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        column = builder.phi(I64)
        column.add_incoming(zero, entry)
        before = [[builder.phi(sums) for _ in lanes] for _ in starts]
        for total in (each for row in before for each in row):
            total.add_incoming(ir.Constant(sums, [0] * (WIDTH // 2)), entry)
        wide = ir.VectorType(I16, WIDTH)
        loaded = [builder.sext(_load(builder, codes, builder.add(each, column), I8), wide) for each in starts]
        after: list[list[Any]] = [[] for _ in starts]
        for k, lane in enumerate(lanes):
            query = _load(builder, queries, builder.add(lane, column), I16)
            for i, row in enumerate(loaded):
                after[i].append(builder.add(before[i][k], _products(builder, row, query)))
        following = builder.add(column, ir.Constant(I64, WIDTH))
        column.add_incoming(following, loop)
        for old, new in zip(before, after, strict=True):
            for total, value in zip(old, new, strict=True):
                total.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, dim), loop, done)
        builder.position_at_end(done)
        added = _function(builder.module, ir.FunctionType(I32, [sums]), f"llvm.vector.reduce.add.v{WIDTH // 2}i32")
        for i, row in enumerate(after):
            for k, value in enumerate(row):
                place = builder.add(builder.mul(stride, ir.Constant(I64, k)), builder.add(at, ir.Constant(I64, i)))
                builder.store(builder.call(added, [value]), builder.gep(out, [place]))
        return context.get_dummy_value()

    return generate


@intrinsic
def dots_4x1(
    context: Any,
    codes: Any,
    row0: Any,
    row1: Any,
    row2: Any,
    row3: Any,
    queries: Any,
    first: Any,
    dim: Any,
    out: Any,
    at: Any,
    stride: Any,
) -> Any:
    """Four rows by one query."""
    return SIGNATURE, _generator(4, 1)


@intrinsic
def dots_2x2(
    context: Any,
    codes: Any,
    row0: Any,
    row1: Any,
    row2: Any,
    row3: Any,
    queries: Any,
    first: Any,
    dim: Any,
    out: Any,
    at: Any,
    stride: Any,
) -> Any:
    """Two rows by two queries."""
    return SIGNATURE, _generator(2, 2)


@intrinsic
def dots_2x4(
    context: Any,
    codes: Any,
    row0: Any,
    row1: Any,
    row2: Any,
    row3: Any,
    queries: Any,
    first: Any,
    dim: Any,
    out: Any,
    at: Any,
    stride: Any,
) -> Any:
    """Two rows by four queries."""
    return SIGNATURE, _generator(2, 4)
