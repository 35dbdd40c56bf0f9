"""Products of int8 rows with int16 queries for the vector units of a CPU, as LLVM has them.

On x86 one instruction makes products and adds neighbours (`vpmaddwd`), or adds them to sums, too (`vpdpwssd`), which
LLVM does not find by itself where several rows and queries share what they load; elsewhere it is left to choose. Whole
numbers are not rounded: products are the same on every machine.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.extending import intrinsic

# what numba compiles for: this host, unless its variables say something else
SAID: str | None = config.CPU_FEATURES
FEATURES = (
    dict(binding.get_host_cpu_features())
    if SAID is None
    else {each[1:]: each[0] == "+" for each in SAID.split(",") if each}
)
HAS_MADD = bool(FEATURES.get("avx2"))
HAS_WIDE = bool(FEATURES.get("avx512bw"))
HAS_DOT = HAS_WIDE and bool(FEATURES.get("avx512vnni"))
WIDTH = 32 if HAS_WIDE else 16  # int8 that are loaded at once: rows are padded to a multiple of it
ROWS = 4  # that are multiplied together
BITS = 64  # scores that are compared at once
PICKED = 32  # lanes whose best scores are compared with each other
LANES = 4 if HAS_WIDE else 2  # queries that are multiplied together: what there are registers for
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
SUMS = ir.VectorType(I32, WIDTH // 2)


def _add_products(builder: Any, sums: Any, rows: Any, queries: Any) -> Any:
    """Adds products of int16 to sums, int32: those of two neighbours to one sum."""
    if HAS_DOT:
        kind = ir.FunctionType(SUMS, [SUMS] * 3)
        arguments = [sums, builder.bitcast(rows, SUMS), builder.bitcast(queries, SUMS)]
        return builder.call(function(builder.module, kind, "llvm.x86.avx512.vpdpwssd.512"), arguments)
    if HAS_MADD:
        kind = ir.FunctionType(SUMS, [rows.type, queries.type])
        name = "llvm.x86.avx512.pmaddw.d.512" if HAS_WIDE else "llvm.x86.avx2.pmadd.wd"
        return builder.add(sums, builder.call(function(builder.module, kind, name), [rows, queries]))
    wide = ir.VectorType(I32, WIDTH)
    products = builder.mul(builder.sext(rows, wide), builder.sext(queries, wide))
    for odd in (0, 1):
        sums = builder.add(sums, shuffled(builder, products, products, list(range(odd, WIDTH, 2))))
    return sums


def function(module: Any, kind: Any, name: str) -> Any:
    """The function of that name, declared once a module."""
    return module.globals.get(name) or ir.Function(module, kind, name)


def shuffled(builder: Any, a: Any, b: Any, places: list[int]) -> Any:
    """Numbers of two vectors, one behind the other, by their places there."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(places)), places))


def _totals(builder: Any, sums: list[Any]) -> Any:
    """Of the sums of four rows with a query, a vector that has what is left of row i at the places i, 4 + i, ..."""
    fours = range(0, sums[0].type.count, 4)

    def folded(a: Any, b: Any, low: list[int], high: list[int]) -> Any:
        """`low`, `high`: of every four numbers of `a` and, from 4 on, of `b`, which are added to each other."""
        count = a.type.count
        parts = [[at + i + (count - 4 if i >= 4 else 0) for at in fours for i in some] for some in (low, high)]
        return builder.add(*(shuffled(builder, a, b, part) for part in parts))

    pairs = [folded(sums[i], sums[i + 1], [0, 4, 1, 5], [2, 6, 3, 7]) for i in (0, 2)]
    return folded(pairs[0], pairs[1], [0, 1, 4, 5], [2, 3, 6, 7])


def _halved(builder: Any, a: Any, b: Any, half: int) -> Any:
    """Adds the second `half` numbers of every two halves to the first; of `a` and, behind it, of `b`."""
    low = [at + i for at in range(0, 2 * a.type.count, 2 * half) for i in range(half)]
    return builder.add(shuffled(builder, a, b, low), shuffled(builder, a, b, [each + half for each in low]))


def _store_totals(builder: Any, every: list[Any], out: Any, places: list[Any]) -> None:
    """Stores the totals of four rows with each of some queries, four numbers to a place."""
    made = [_totals(builder, sums) for sums in every]
    if len(made) == 4 and made[0].type.count == 16:  # four queries in one vector
        halves = [_halved(builder, made[i], made[i + 1], 8) for i in (0, 2)]
        whole = _halved(builder, halves[0], halves[1], 4)
        made = [shuffled(builder, whole, whole, [*range(at, at + ROWS)]) for at in range(0, 16, ROWS)]
    for each, place in zip(made, places, strict=True):
        while (half := each.type.count // 2) >= ROWS:
            each = builder.add(*(shuffled(builder, each, each, [*range(at, at + half)]) for at in (0, half)))
        stored = builder.store(each, vector(builder, out, place, ir.VectorType(I32, ROWS)))
        stored.align = 4


def vector(builder: Any, base: Any, at: Any, kind: Any) -> Any:
    """Where a vector lies, as a pointer to its kind."""
    return builder.bitcast(builder.gep(base, [at]), kind.as_pointer())


def _load(builder: Any, base: Any, at: Any, element: Any) -> Any:
    loaded = builder.load(vector(builder, base, at, ir.VectorType(element, WIDTH)))
    loaded.align = element.width // 8
    return loaded


def _multiply(builder: Any, codes: Any, rows: list[Any], queries: Any, lanes: list[Any], dim: Any) -> list[list[Any]]:
    """Code that makes the sums of rows with queries, by query: a loop over dimensions."""
    entry, loop, done = builder.block, builder.append_basic_block("dims"), builder.append_basic_block("sums")
    builder.branch(loop)
    builder.position_at_end(loop)
    column = builder.phi(I64)
    column.add_incoming(ir.Constant(I64, 0), entry)
    sums = [[builder.phi(SUMS) for _ in rows] for _ in lanes]
    wide = ir.VectorType(I16, WIDTH)
    loaded = [builder.sext(_load(builder, codes, builder.add(each, column), I8), wide) for each in rows]
    made = []
    for lane, before in zip(lanes, sums, strict=True):
        query = _load(builder, queries, builder.add(lane, column), I16)
        made.append([_add_products(builder, old, row, query) for old, row in zip(before, loaded, strict=True)])
    following = builder.add(column, ir.Constant(I64, WIDTH))
    column.add_incoming(following, loop)
    for before, after in zip(sums, made, strict=True):
        for old, new in zip(before, after, strict=True):
            old.add_incoming(ir.Constant(SUMS, [0] * SUMS.count), entry)
            old.add_incoming(new, loop)
    builder.cbranch(builder.icmp_signed("<", following, dim), loop, done)
    builder.position_at_end(done)
    return made


def _generator(num_queries: int) -> Callable[..., Any]:
    """Makes the code: products of four rows with the first `num_queries` of four queries.

    That of query k and row i goes to `out[k * stride + at + i]`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes, four, queries, which, dim, out, at, stride = arguments
        rows = [builder.mul(builder.extract_value(four, i), dim) for i in range(ROWS)]
        lanes = [builder.mul(builder.extract_value(which, k), dim) for k in range(num_queries)]
        for first in range(0, num_queries, LANES):
            made = _multiply(builder, codes, rows, queries, lanes[first : first + LANES], dim)
            numbers = range(first, first + len(made))
            places = [builder.add(builder.mul(stride, ir.Constant(I64, k)), at) for k in numbers]
            _store_totals(builder, made, out, places)
        return context.get_dummy_value()

    return generate


SIGNATURE = types.void(
    types.CPointer(types.int8),
    types.UniTuple(types.intp, ROWS),
    types.CPointer(types.int16),
    types.UniTuple(types.intp, 4),
    types.intp,
    types.CPointer(types.int32),
    types.intp,
    types.intp,
)


@intrinsic
def dots_1(
    context: Any, codes: Any, rows: Any, queries: Any, which: Any, dim: Any, out: Any, at: Any, stride: Any
) -> Any:
    """Four rows by one query."""
    return SIGNATURE, _generator(1)


@intrinsic
def dots_2(
    context: Any, codes: Any, rows: Any, queries: Any, which: Any, dim: Any, out: Any, at: Any, stride: Any
) -> Any:
    """Four rows by two queries."""
    return SIGNATURE, _generator(2)


@intrinsic
def dots_4(
    context: Any, codes: Any, rows: Any, queries: Any, which: Any, dim: Any, out: Any, at: Any, stride: Any
) -> Any:
    """Four rows by four queries."""
    return SIGNATURE, _generator(4)


@intrinsic
def reaching(context: Any, scores: Any, at: Any, floor: Any) -> Any:
    """Which of 64 float32, from `scores[at]` on, are `floor` or more: the lowest bit tells of the first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, first, least = arguments
        many = ir.VectorType(ir.FloatType(), BITS)
        loaded = builder.load(vector(builder, base, first, many))
        loaded.align = 4
        one = builder.insert_element(ir.Constant(many, ir.Undefined), least, ir.Constant(I32, 0))
        every = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(I32, BITS), [0] * BITS))
        return builder.bitcast(builder.fcmp_ordered(">=", loaded, every), I64)

    return types.int64(types.CPointer(types.float32), types.intp, types.float32), generate


@intrinsic
def floor_of(context: Any, scores: Any, at: Any, count: Any, wanted: Any) -> Any:
    """A number that `wanted` of `count` float32, from `scores[at]` on, reach, each of another of 32 lanes.

    Of the best of every lane, it is that many from the top: near to the true one, and found without a branch that
    nothing foretells. count: 32 or more, of which what is behind a multiple of 32 is not looked at. wanted: up to 32.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base, begin, rows, least = arguments
        lanes, whole = ir.VectorType(ir.FloatType(), PICKED), ir.Constant(I64, PICKED)

        entry, loop, done = builder.block, builder.append_basic_block("lanes"), builder.append_basic_block("picked")
        builder.branch(loop)
        builder.position_at_end(loop)
        at, best = builder.phi(I64), builder.phi(lanes)
        one_more = builder.load(vector(builder, base, builder.add(begin, at), lanes))
        one_more.align = 4
        greater = builder.select(builder.fcmp_ordered(">", one_more, best), one_more, best)
        following = builder.add(at, whole)
        at.add_incoming(ir.Constant(I64, 0), entry)
        at.add_incoming(following, loop)
        best.add_incoming(ir.Constant(lanes, [float("-inf")] * PICKED), entry)
        best.add_incoming(greater, loop)
        builder.cbranch(builder.icmp_signed("<=", builder.add(following, whole), rows), loop, done)
        builder.position_at_end(done)
        floor = ir.Constant(ir.FloatType(), float("-inf"))
        ones = ir.FunctionType(I32, [I32])
        for i in range(PICKED):
            lane = builder.extract_element(greater, ir.Constant(I32, i))
            every = shuffled(builder, greater, greater, [i] * PICKED)
            bits = builder.bitcast(builder.fcmp_ordered(">=", greater, every), I32)
            reached = builder.sext(builder.call(function(builder.module, ones, "llvm.ctpop.i32"), [bits]), I64)
            chosen = builder.and_(builder.icmp_signed(">=", reached, least), builder.fcmp_ordered(">", lane, floor))
            floor = builder.select(chosen, lane, floor)
        return floor

    return types.float32(types.CPointer(types.float32), types.intp, types.intp, types.intp), generate


@intrinsic
def first_bit(context: Any, bits: Any) -> Any:
    """The place of the lowest bit that is 1; `bits` has one."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), True))

    return types.int64(types.int64), generate


@intrinsic
def fetch(context: Any, base: Any, at: Any) -> Any:
    """Has the cache line of `base[at]`, float32, brought near."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [line.type, I32, I32, I32])
        to_read = [ir.Constant(I32, each) for each in (0, 3, 1)]
        builder.call(function(builder.module, kind, "llvm.prefetch.p0i8"), [line, *to_read])
        return context.get_dummy_value()

    return types.void(types.CPointer(types.float32), types.intp), generate
