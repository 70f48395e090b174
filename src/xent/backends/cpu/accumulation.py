"""Sums of many partial results that are rounded once, and conversions of format around a matrix product.

A 16-bit gradient that is summed over chunks in 16 bits loses a digit every few chunks. Here the sum is a float32
whose upper 16 bits lie in the memory of the gradient itself and whose lower 16 bits in a second array of that size:

    sum    = float32(upper << 16 | lower)
    sum   += partial
    result = round_to_16_bits(sum)                              once, at the end, in place

So a float32 sum costs as much extra memory as the gradient itself, and not twice as much. Every function below is a
`row_kernel` over a range (first, last) of its arrays, for `threads.over_rows`. 16-bit numbers are the integers of their
bits, as in formats.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.backends.cpu.compilation import allocator, device
from xent.backends.cpu.formats import decode, encode, scratch
from xent.backends.cpu.primitives import bits_float, float_bits
from xent.backends.cpu.team import row_kernel
from xent.backends.cpu.tile import BLOCK

LOW = np.uint32(0xFFFF)
HALF = np.uint32(16)


@allocator
def _block() -> Any:
    return np.empty(BLOCK, np.float32)


@device
def join(upper: Any, lower: Any, z: Any) -> None:
    """z = the float32 of these halves."""
    for i in range(len(z)):
        z[i] = bits_float(np.int32((np.uint32(upper[i]) << HALF) | np.uint32(lower[i])))


@device
def split(z: Any, upper: Any, lower: Any) -> None:
    """upper, lower = the halves of z."""
    for i in range(len(z)):
        bits = np.uint32(float_bits(z[i]))
        upper[i] = np.uint16(bits >> HALF)
        lower[i] = np.uint16(bits & LOW)


@device
def _add(z: Any, partial: Any) -> None:
    for i in range(len(z)):
        z[i] = z[i] + decode(partial[i])


@device
def _get(z: Any, stored: Any) -> None:
    for i in range(len(z)):
        z[i] = decode(stored[i])


@device
def put(target: Any, z: Any) -> None:
    """target = z, rounded to target's type."""
    for i in range(len(z)):
        target[i] = encode(z[i], target)


@row_kernel
def add_to_halves(partial: Any, upper: Any, lower: Any, fresh: bool, first: int, last: int) -> None:
    """sum += partial, or sum = partial if the sum is `fresh`; all arrays are one-dimensional."""
    z = _block()
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        own = z[: stop - start]
        if fresh:
            own[:] = np.float32(0.0)
        else:
            join(upper[start:stop], lower[start:stop], own)
        _add(own, partial[start:stop])
        split(own, upper[start:stop], lower[start:stop])


@row_kernel
def round_halves(upper: Any, lower: Any, result: Any, first: int, last: int) -> None:
    """result = the sum in its own format. `result` and `upper` are the same memory under two types."""
    z = _block()
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        own = z[: stop - start]
        join(upper[start:stop], lower[start:stop], own)
        put(result[start:stop], own)


@row_kernel
def add(partial: Any, total: Any, fresh: bool, first: int, last: int) -> None:
    """total += partial in the format of the total, float32 or float64; total = partial if it is `fresh`."""
    if fresh:
        for i in range(first, last):
            total[i] = decode(partial[i])
    else:
        _add(total[first:last], partial[first:last])


@row_kernel
def convert(stored: Any, target: Any, first: int, last: int) -> None:
    """target = stored: 16 bits to float32 exactly, float32 to 16 bits rounded to nearest even."""
    z = scratch(stored, BLOCK)
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        own = z[: stop - start]
        _get(own, stored[start:stop])
        put(target[start:stop], own)


@row_kernel
def add_bias(logits: Any, bias: Any, first: int, last: int) -> None:
    """Each of the rows from first to last of logits (rows * classes) += bias (classes)."""
    classes = len(bias)
    for r in range(first, last):
        row = logits[r * classes : (r + 1) * classes]
        for j in range(classes):
            row[j] = row[j] + bias[j]


@row_kernel
def add_column_sums(values: Any, classes: int, sums: Any, fresh: bool, first: int, last: int) -> None:
    """sums (classes, float64) += the sums over rows of values (rows * classes), for the classes from first to last."""
    if fresh:
        sums[first:last] = 0.0
    for start in range(first, last, BLOCK):
        stop = min(start + BLOCK, last)
        own = sums[start:stop]
        for r in range(len(values) // classes):
            row = values[r * classes + start : r * classes + stop]
            for j in range(stop - start):
                own[j] = own[j] + np.float64(decode(row[j]))
