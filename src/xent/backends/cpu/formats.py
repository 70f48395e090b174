"""Formats of numbers in memory: bfloat16 and float16 to float32 and back.

NumPy has no bfloat16 and Numba no float16 on a CPU, so 16-bit logits are passed to kernels as the integers of their
bits, and the integer's type says which format it is: `uint16` bfloat16, `int16` float16.

| in memory | computed in |
|---|---|
| float32, bfloat16 (uint16), float16 (int16) | float32 |
| float64 | float64 |
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from xent.backends.cpu._numba import bits_float, float_bits, float_to_half, half_to_float
from xent.backends.cpu.compilation import OPTIONS, device

Array = NDArray[Any]

BFLOAT16, FLOAT16 = types.uint16, types.int16

HALF_MANTISSA = np.uint32(16)
BFLOAT16_ROUND = np.uint32(0x7FFF)
BFLOAT16_NAN = np.uint32(0x7FC0)
ONE = np.uint32(1)


def bits(stored: Array) -> Array:
    """Return float16 as the integers of its bits, and any other array unchanged."""
    return stored.view(np.int16) if stored.dtype == np.float16 else stored


def flat(logits: Array) -> tuple[Array, int]:
    """View logits (rows, ...) as the bits of one dimension, with the distance from one row to the next."""
    shape = logits.shape
    row_stride = math.prod(shape[1:])
    if not logits.flags.c_contiguous:
        stride, item = logits.strides[0], logits.itemsize
        # Rows of a slice of the classes: no copy.
        if len(shape) == 2 and logits.strides[1] == item and stride >= 0 and stride % item == 0 and shape[0]:
            row_stride = stride // item
            size = (shape[0] - 1) * row_stride + shape[1]
            return as_kernel_array(bits(as_strided(logits, (size,), (item,)))), row_stride
    return as_kernel_array(bits(logits.reshape(-1))), row_stride


def as_kernel_array(array: Array) -> Array:
    """Return a one-dimensional input as kernels expect it: contiguous, and writable though they never write to it.

    Numba would compile a kernel once more for a strided array or for a read-only one.
    """
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    return array if array.flags.writeable else np.asarray(_Writable(array))


class _Writable:
    """The memory of a read-only array."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}


@device
def _float_to_bfloat16(x: Any) -> Any:
    """Round to bfloat16, to nearest even; the bits. NaN stays NaN: rounding its mantissa up could make it infinite."""
    bits = np.uint32(float_bits(x))
    rounded = np.uint32(np.uint32(bits + BFLOAT16_ROUND) + np.uint32((bits >> HALF_MANTISSA) & ONE)) >> HALF_MANTISSA
    return np.uint16(rounded if x == x else BFLOAT16_NAN)


def decode(stored: Any) -> Any:
    """Return a stored number in the type that kernels compute in."""
    raise NotImplementedError("for compiled code")


@overload(decode, jit_options=OPTIONS, strict=False)
def _(stored: Any) -> Any:
    if stored == BFLOAT16:
        return lambda stored: bits_float(np.int32(np.uint32(stored) << HALF_MANTISSA))
    if stored == FLOAT16:
        return lambda stored: half_to_float(stored)
    return lambda stored: stored


def encode(number: Any, like: Any) -> Any:
    """Return a computed number rounded to the type in which the array `like` stores it."""
    raise NotImplementedError("for compiled code")


@overload(encode, jit_options=OPTIONS, strict=False)
def _(number: Any, like: Any) -> Any:
    if like.dtype == BFLOAT16:
        return lambda number, like: _float_to_bfloat16(number)
    if like.dtype == FLOAT16:
        return lambda number, like: float_to_half(number)
    return lambda number, like: number


def scratch(stored: Any, size: int) -> Any:
    """Return an uninitialised array of the type in which kernels compute with the numbers of `stored`."""
    raise NotImplementedError("for compiled code")


@overload(scratch, strict=False)
def _(stored: Any, size: int) -> Any:
    computed = np.float64 if stored.dtype == types.float64 else np.float32
    return lambda stored, size: np.empty(size, computed)


@device
def store(target: Any, z: Any, factor: Any, at: int, less: Any, after: float) -> None:
    """target = after * (factor * z, less `less` at the index `at` (-1: nowhere)), rounded to target's type."""
    last = z.dtype.type(after)
    for i in range(len(z)):
        target[i] = encode(last * (factor * z[i]), target)
    if at >= 0:
        target[at] = encode(last * (factor * z[at] - less), target)
