"""Functions that kernels call and that are one LLVM instruction or a few, which Numba does not offer by itself.

plain.py has all of them a second time, in Python.

| internal | why it is used |
|---|---|
| `llvmlite.ir` | the instructions themselves: `intrinsic` is public, but what it generates is llvmlite's |
| `numba.core.cgutils.get_or_insert_function` | declaring LLVM's functions in a module once |
| `numba.np.arrayobj.make_array` | the address of an array's first number |
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from xent.backends.cpu._numba.plain import LINE, VECTOR

BITS = {types.float32: types.int32, types.float64: types.int64}
LLVM = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
FLAG, NUMBER, BYTES = ir.IntType(1), ir.IntType(32), ir.IntType(8).as_pointer()
SECOND_LEVEL = 2  # the cache to read into: the first would have to give up what is being worked on

# What is called while kernels are compiled has to be there: AttributeError now, in place of one later.
_ = cgutils.get_or_insert_function, arrayobj.make_array, ir.IRBuilder.fence, ir.IRBuilder.shuffle_vector


# --------------------------------------------------------------------------------------------------- of one number


def _instruction(name: str, operands: int, flags: tuple[str, ...] = ()) -> Any:
    """Make a function of `operands` floats that is one LLVM instruction."""

    def typing(*numbers: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            number = LLVM[signature.return_type]
            suffix = "f32" if signature.return_type == types.float32 else "f64"
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(number, [number] * operands), f"llvm.{name}.{suffix}"
            )
            return builder.call(function, values, fastmath=flags)

        return numbers[0](*[numbers[0]] * operands), generate

    if operands == 2:
        return intrinsic(lambda context, x, y: typing(x, y))
    return intrinsic(lambda context, x, y, z: typing(x, y, z))


# x * y + z with one rounding.
fused_multiply_add = _instruction("fma", 3)

# The larger number, NaN if there is one. As a reduction over a loop this is the only form that becomes vector code
# without promising the absence of NaN (a comparison runs at 8 GB/s, this at 84 out of the second-level cache).
# nsz: -0 and +0 count as equal.
maximum = _instruction("maximum", 2, ("nsz",))


@intrinsic
def float_bits(typingctx: Any, number: Any) -> Any:
    """Reinterpret a float as the integer of the same bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], context.get_value_type(signature.return_type))

    return BITS[number](number), generate


@intrinsic
def bits_float(typingctx: Any, bits: Any) -> Any:
    """Reinterpret an integer as the float of the same bits."""
    number = types.float32 if bits.bitwidth == 32 else types.float64

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(values[0], LLVM[number])

    return number(bits), generate


@intrinsic
def half_to_float(typingctx: Any, half: Any) -> Any:
    """Widen the bits of a float16, an int16."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


@intrinsic
def float_to_half(typingctx: Any, number: Any) -> Any:
    """Round to float16, to nearest even; the bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), generate


# --------------------------------------------------------------------------------------------------------- of memory


@intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Request the cache line of array[index], which may lie behind the end."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = arrayobj.make_array(array)(context, builder, values[0]).data
        what = ir.FunctionType(ir.VoidType(), [BYTES, NUMBER, NUMBER, NUMBER])
        function = cgutils.get_or_insert_function(builder.module, what, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(data, [values[1]]), BYTES)
        builder.call(function, [place, NUMBER(0), NUMBER(SECOND_LEVEL), NUMBER(1)])  # 0: to read; 1: data
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


@intrinsic
def copy_line(typingctx: Any, target: Any, source: Any, index: Any) -> Any:
    """Copy one line from source[index:] to target[index:], which is aligned to a line, past the caches."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        line = ir.VectorType(context.get_value_type(target.dtype), LINE // (target.dtype.bitwidth // 8))

        def at(array_type: Any, array: Any) -> Any:
            data = arrayobj.make_array(array_type)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [values[2]]), line.as_pointer())

        load = builder.load(at(source, values[1]))
        load.align = target.dtype.bitwidth // 8
        store = builder.store(load, at(target, values[0]), align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(NUMBER, 1)]))
        return context.get_dummy_value()

    return types.none(target, source, types.intp), generate


@intrinsic
def fence(typingctx: Any) -> Any:
    """Make lines that were copied past the caches visible to other threads before anything that is stored later."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


# --------------------------------------------------------------------------------------------------------- of a square


@intrinsic
def transpose_square(
    typingctx: Any, source: Any, source_stride: Any, rows: Any, columns: Any, target: Any, target_stride: Any
) -> Any:
    """target[c * target_stride + r] = source[r * source_stride + c], for at most as many of each as a vector holds."""
    lanes = VECTOR // source.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.VectorType(context.get_value_type(source.dtype), lanes)
        row_count, column_count = (builder.trunc(value, NUMBER) for value in (values[2], values[3]))
        none = ir.Constant(kind, None)

        row_lanes, column_lanes = (_lanes_below(builder, lanes, count) for count in (row_count, column_count))

        def place(array_type: Any, array: Any, stride: Any, i: int, count: Any) -> Any:
            """Address of the i-th of `count` vectors, and of the last one for those beyond."""
            data = arrayobj.make_array(array_type)(context, builder, array).data
            last = builder.sub(builder.sext(count, stride.type), stride.type(1))
            inside = builder.icmp_signed("<", stride.type(i), last)
            offset = builder.mul(stride, builder.select(inside, stride.type(i), last))
            return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())

        load, store = _masked(builder, "load", kind), _masked(builder, "store", kind)
        vectors = [load(place(source, values[0], values[1], i, row_count), column_lanes, none) for i in range(lanes)]
        # Backwards, so that in the last column its own vector is what remains.
        for i, vector in reversed(list(enumerate(_exchanged(builder, vectors)))):
            store(vector, place(target, values[4], values[5], i, column_count), row_lanes)
        return context.get_dummy_value()

    return types.none(source, source_stride, rows, columns, target, target_stride), generate


def _exchanged(builder: Any, vectors: list[Any]) -> list[Any]:
    """The transposed square: in step after step, vectors that are `distance` apart exchange blocks of that length."""
    lanes, distance = len(vectors), len(vectors) // 2
    vectors = list(vectors)
    while distance:
        keep = [i if not i & distance else i - distance + lanes for i in range(lanes)]
        swap = [i + distance if not i & distance else i + lanes for i in range(lanes)]
        for i in range(lanes):
            if not i & distance:
                upper, lower = vectors[i], vectors[i + distance]
                vectors[i], vectors[i + distance] = (
                    builder.shuffle_vector(upper, lower, ir.Constant(ir.VectorType(NUMBER, lanes), picked))
                    for picked in (keep, swap)
                )
        distance //= 2
    return vectors


def _lanes_below(builder: Any, lanes: int, count: Any) -> Any:
    """Flags that are set in the first `count` lanes."""
    number = ir.VectorType(NUMBER, lanes)
    one = builder.insert_element(ir.Constant(number, ir.Undefined), count, NUMBER(0))
    everywhere = builder.shuffle_vector(one, one, ir.Constant(number, [0] * lanes))
    return builder.icmp_signed("<", ir.Constant(number, list(range(lanes))), everywhere)


def _masked(builder: Any, what: str, kind: Any) -> Any:
    """LLVM's load or store of some lanes of a vector; the memory of the other lanes is not touched."""
    flags, pointer = ir.VectorType(FLAG, kind.count), kind.as_pointer()
    name = f"llvm.masked.{what}.v{kind.count}{'f32' if kind.element == ir.FloatType() else 'f64'}.p0"
    align = NUMBER(4 if kind.element == ir.FloatType() else 8)
    if what == "load":
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(kind, [pointer, NUMBER, flags, kind]), name
        )
        return lambda place, mask, other: builder.call(function, [place, align, mask, other])
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(ir.VoidType(), [kind, pointer, NUMBER, flags]), name
    )
    return lambda value, place, mask: builder.call(function, [value, place, align, mask])
