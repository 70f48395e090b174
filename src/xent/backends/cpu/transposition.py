"""Transposing a matrix of a few columns in registers, a square of one vector's length after the other.

Gathering one number from each of 16 rows takes the processor as many accesses as there are numbers: 0.5 ns per logit of
10 classes. Here 16 rows are loaded as they lie and exchange halves, quarters, eighths and sixteenths with each other.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numba.np import arrayobj

from xent.backends.cpu.compilation import OPTIONS, routine

VECTOR = 512  # bits
NUMBER = ir.IntType(32)
FLAG = ir.IntType(1)


@routine
def transpose(source: Any, rows: int, columns: int, source_stride: int, target: Any, target_stride: int) -> None:
    """target[c * target_stride + r] = source[r * source_stride + c]; nothing else is read or written."""
    lanes = _lanes(source)
    for r in range(0, rows, lanes):
        for c in range(0, columns, lanes):
            _transpose_square(
                source[r * source_stride + c :],
                source_stride,
                min(lanes, rows - r),
                min(lanes, columns - c),
                target[c * target_stride + r :],
                target_stride,
            )


def _lanes(array: Any) -> int:
    """How many of its numbers a vector holds."""
    raise NotImplementedError("for compiled code")


@overload(_lanes, jit_options=OPTIONS, strict=False)
def _(array: Any) -> Any:
    lanes = VECTOR // array.dtype.bitwidth
    return lambda array: lanes


@intrinsic
def _transpose_square(
    typingctx: Any, source: Any, source_stride: Any, rows: Any, columns: Any, target: Any, target_stride: Any
) -> Any:
    """`transpose` for at most as many rows and columns as a vector has numbers."""
    lanes = VECTOR // source.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.VectorType(context.get_value_type(source.dtype), lanes)
        given_rows, given_columns = (builder.trunc(value, NUMBER) for value in (values[2], values[3]))
        none = ir.Constant(kind, None)

        row_lanes, column_lanes = (_lanes_below(builder, lanes, given) for given in (given_rows, given_columns))

        def place(array_type: Any, array: Any, stride: Any, i: int, given: Any) -> Any:
            """Of the i-th vector; of the last one for those that are not part of the matrix."""
            data = arrayobj.make_array(array_type)(context, builder, array).data
            last = builder.sub(builder.sext(given, stride.type), stride.type(1))
            inside = builder.icmp_signed("<", stride.type(i), last)
            offset = builder.mul(stride, builder.select(inside, stride.type(i), last))
            return builder.bitcast(builder.gep(data, [offset]), kind.as_pointer())

        load, store = _masked(builder, "load", kind), _masked(builder, "store", kind)
        vectors = [load(place(source, values[0], values[1], i, given_rows), column_lanes, none) for i in range(lanes)]
        # Backwards, so that in the last column its own vector is what remains.
        for i, vector in reversed(list(enumerate(_exchanged(builder, vectors)))):
            store(vector, place(target, values[4], values[5], i, given_columns), row_lanes)
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


def _lanes_below(builder: Any, lanes: int, given: Any) -> Any:
    """The flags of so many lanes."""
    number = ir.VectorType(NUMBER, lanes)
    one = builder.insert_element(ir.Constant(number, ir.Undefined), given, NUMBER(0))
    everywhere = builder.shuffle_vector(one, one, ir.Constant(number, [0] * lanes))
    return builder.icmp_signed("<", ir.Constant(number, list(range(lanes))), everywhere)


def _masked(builder: Any, what: str, kind: Any) -> Any:
    """LLVM's load or store of some lanes of a vector: of no others is the memory touched."""
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
