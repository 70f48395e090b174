"""Numbers as they lie in memory: bfloat16 and float16 to float32 and back, and stores that bypass the cache.

Neither NumPy's bfloat16 (there is none) nor Numba's float16 (none on a CPU) can be computed with, so 16-bit logits come
as the integers of their bits, and the integer's type says which format it is: `uint16` bfloat16, `int16` float16.

| in memory | computed in |
|---|---|
| float32, bfloat16 (uint16), float16 (int16) | float32 |
| float64 | float64 |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload
from numba.np import arrayobj

from xent.cpu.compilation import OPTIONS, device
from xent.cpu.primitives import bits_float, float_bits

BFLOAT16, FLOAT16 = types.uint16, types.int16
LINE = 64  # bytes of a cache line

HALF_MANTISSA = np.uint32(16)
BFLOAT16_ROUND = np.uint32(0x7FFF)
BFLOAT16_NAN = np.uint32(0x7FC0)
ONE = np.uint32(1)


@intrinsic
def _half_to_float(typingctx: Any, half: Any) -> Any:
    """Widen the bits of a float16."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(FLOAT16), generate


@intrinsic
def _float_to_half(typingctx: Any, number: Any) -> Any:
    """Round to float16, to nearest even; the bits."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.bitcast(builder.fptrunc(values[0], ir.HalfType()), ir.IntType(16))

    return FLOAT16(types.float32), generate


@device
def _float_to_bfloat16(x: Any) -> Any:
    """Round to bfloat16, to nearest even; the bits. NaN stays NaN: rounding its mantissa up could make it infinite."""
    bits = np.uint32(float_bits(x))
    rounded = np.uint32(np.uint32(bits + BFLOAT16_ROUND) + np.uint32((bits >> HALF_MANTISSA) & ONE)) >> HALF_MANTISSA
    return np.uint16(rounded if x == x else BFLOAT16_NAN)


def decode(stored: Any) -> Any:
    """Return a stored number in the type that it is computed in."""
    raise NotImplementedError("for compiled code")


@overload(decode, jit_options=OPTIONS, strict=False)
def _(stored: Any) -> Any:
    if stored == BFLOAT16:
        return lambda stored: bits_float(np.int32(np.uint32(stored) << HALF_MANTISSA))
    if stored == FLOAT16:
        return lambda stored: _half_to_float(stored)
    return lambda stored: stored


def encode(number: Any, like: Any) -> Any:
    """Return a computed number rounded to the type in which the array `like` stores it."""
    raise NotImplementedError("for compiled code")


@overload(encode, jit_options=OPTIONS, strict=False)
def _(number: Any, like: Any) -> Any:
    if like.dtype == BFLOAT16:
        return lambda number, like: _float_to_bfloat16(number)
    if like.dtype == FLOAT16:
        return lambda number, like: _float_to_half(number)
    return lambda number, like: number


def scratch(stored: Any, size: int) -> Any:
    """Return an empty array of the type that numbers of the array `stored` are computed in."""
    raise NotImplementedError("for compiled code")


@overload(scratch, strict=False)
def _(stored: Any, size: int) -> Any:
    computed = np.float64 if stored.dtype == types.float64 else np.float32
    return lambda stored, size: np.empty(size, computed)


@intrinsic
def _stream_line(typingctx: Any, target: Any, source: Any, index: Any) -> Any:
    """Copy one line from source[index:] to target[index:], which is aligned to a line, past the caches."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        item = context.get_value_type(target.dtype)
        line = ir.VectorType(item, LINE // (target.dtype.bitwidth // 8))

        def at(array_type: Any, array: Any) -> Any:
            data = arrayobj.make_array(array_type)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [values[2]]), line.as_pointer())

        load = builder.load(at(source, values[1]))
        load.align = target.dtype.bitwidth // 8
        store = builder.store(load, at(target, values[0]), align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.none(target, source, types.intp), generate


@intrinsic
def streams_done(typingctx: Any) -> Any:
    """Make streamed stores visible to other threads before anything that is stored later."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


@device
def stream(target: Any, source: Any) -> None:
    """Copy source to target, of the same type and length, without reading target's lines into the cache first."""
    size = len(source)
    items = LINE // source.itemsize
    head = min(size, (-target.ctypes.data % LINE) // source.itemsize)
    lines = (size - head) // items
    for i in range(head):
        target[i] = source[i]
    for line in range(lines):
        _stream_line(target[head:], source[head:], line * items)
    for i in range(head + lines * items, size):
        target[i] = source[i]


@device
def store(target: Any, z: Any, factor: Any, staging: Any, streaming: bool, at: int, less: Any) -> None:
    """target = factor * z, less `less` at the index `at` (-1: nowhere), rounded to target's type.

    `staging` is scratch of that type: streams leave from there in whole lines.
    """
    ready = staging[: len(z)] if streaming else target
    for i in range(len(z)):
        ready[i] = encode(factor * z[i], target)
    if at >= 0:
        ready[at] = encode(factor * z[at] - less, target)
    if streaming:
        stream(target, ready)
