"""The functions of instructions.py and processor.py in Python, for a Numba with other internals than theirs.

They give the same numbers, apart from the payload of a NaN and, in float64, from the last digit of
`fused_multiply_add`. Numba compiles them by its public `njit` and `overload`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.extending import overload

LINE = 64  # bytes of a line of the caches
VECTOR = 512  # bits of the widest vector register

Function = TypeVar("Function", bound=Callable[..., Any])

OPTIONS = {"error_model": "numpy"}

# Multiplied by this, a float64 leaves its upper 26 bits behind (Dekker, 1971).
SPLITTER = 2.0**27 + 1

SIGN, MAGNITUDE, HALF_INFINITY = 0x8000, 0x7FFF, 0x7C00  # of a float16
INFINITY = 0x7F800000  # of a float32
REBIAS = np.float32(2.0**112)  # 127 - 15, the difference of the exponents' biases
HALF_OVERFLOW = (127 + 16) << 23  # the first float32 whose exponent a float16 does not have
HALF_NORMAL = (127 - 14) << 23  # the smallest float32 that is a normal float16
SUBNORMAL = np.float32(0.5)  # its last digit is that of a subnormal float16: adding it rounds


def compiled(function: Function) -> Function:
    """Compile a function by plain njit."""
    return cast(Function, njit(**OPTIONS)(function))


def fused_multiply_add(x: Any, y: Any, z: Any) -> Any:
    """x * y + z, with one rounding in float32, and with an error of little more than that in float64."""
    raise NotImplementedError("for compiled code")


@overload(fused_multiply_add, jit_options=OPTIONS, strict=False)
def _(x: Any, y: Any, z: Any) -> Any:
    if x == types.float32:
        return lambda x, y, z: np.float32(np.float64(x) * np.float64(y) + np.float64(z))

    def fused(x: Any, y: Any, z: Any) -> Any:
        product = x * y
        x_upper, y_upper = SPLITTER * x - (SPLITTER * x - x), SPLITTER * y - (SPLITTER * y - y)
        x_lower, y_lower = x - x_upper, y - y_upper
        product_error = ((x_upper * y_upper - product) + x_upper * y_lower + x_lower * y_upper) + x_lower * y_lower
        total = product + z
        back = total - product
        total_error = (product - (total - back)) + (z - back)
        corrected = total + (total_error + product_error)
        # Infinities and NaN, and numbers so large that splitting them overflows.
        return corrected if abs(corrected) < np.inf else total

    return fused


@compiled
def maximum(x: Any, y: Any) -> Any:
    """Return the larger number, NaN if there is one."""
    return x if x > y or x != x else y


def float_bits(number: Any) -> Any:
    """Reinterpret a float as the integer of the same bits."""
    raise NotImplementedError("for compiled code")


@overload(float_bits, jit_options=OPTIONS, strict=False)
def _(number: Any) -> Any:
    if number == types.float32:
        return lambda number: np.float32(number).view(np.int32)
    return lambda number: np.float64(number).view(np.int64)


def bits_float(bits: Any) -> Any:
    """Reinterpret an integer as the float of the same bits."""
    raise NotImplementedError("for compiled code")


@overload(bits_float, jit_options=OPTIONS, strict=False)
def _(bits: Any) -> Any:
    if bits.bitwidth == 32:
        return lambda bits: np.int32(bits).view(np.float32)
    return lambda bits: np.int64(bits).view(np.float64)


@compiled
def half_to_float(half: int) -> float:
    """Widen the bits of a float16."""
    bits = np.int64(half)
    magnitude = (bits & MAGNITUDE) << 13
    if bits & HALF_INFINITY == HALF_INFINITY:
        number = bits_float(np.int32(magnitude | INFINITY))
    else:
        number = bits_float(np.int32(magnitude)) * REBIAS
    return -number if bits & SIGN else number


@compiled
def float_to_half(number: float) -> int:
    """Round to float16, to nearest even; the bits."""
    bits = np.int64(float_bits(abs(number)))
    if bits > INFINITY:
        half = np.int64(HALF_INFINITY | 0x0200)
    elif bits >= HALF_OVERFLOW:
        half = np.int64(HALF_INFINITY)
    elif bits < HALF_NORMAL:
        half = np.int64(float_bits(abs(number) + SUBNORMAL)) - np.int64(float_bits(SUBNORMAL))
    else:
        half = (bits - ((127 - 15) << 23) + 0x0FFF + ((bits >> 13) & 1)) >> 13
    return np.int16(half | SIGN if float_bits(number) < 0 else half)


@compiled
def prefetch(array: Any, index: int) -> None:
    """Read nothing ahead: without this the results are the same."""


@compiled
def copy_line(target: Any, source: Any, index: int) -> None:
    """Copy one line from source[index:] to target[index:]."""
    for i in range(index, index + LINE // source.itemsize):
        target[i] = source[i]


@compiled
def fence() -> None:
    """Do nothing: plain stores are in order as they are."""


@compiled
def transpose_square(source: Any, source_stride: int, rows: int, columns: int, target: Any, target_stride: int) -> None:
    """target[c * target_stride + r] = source[r * source_stride + c]."""
    for c in range(columns):
        for r in range(rows):
            target[c * target_stride + r] = source[r * source_stride + c]


def has_any_instruction_set(*names: str) -> bool:
    """Return False: it is not known."""
    return False


def compiles_for(instructions: str) -> bool:
    """Return False: it is not known."""
    return False


def converts_float16() -> bool:
    """Return False: it is not known."""
    return False
