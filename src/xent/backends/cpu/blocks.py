"""The steps of the cross-entropy on one block of numbers in the first-level cache.

A block is a piece of one row (along_classes.py), or one class at many positions (across_positions.py). Each step is
one loop that becomes vector code; an option that is off costs one branch per block, so kernels are not compiled for
each option. Blocks are scratch of the computing type: a step reads and writes one array in place, because Numba cannot
tell the compiler that two arrays do not overlap, and the check for it at run time fails for the same array twice.

`z` are the softcapped logits, then their exponentials, then the gradient; `t` the target distribution;
`derivative` dz/dx. The equations are in xent/objective.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.backends.cpu.compilation import device, sequence
from xent.backends.cpu.formats import decode
from xent.backends.cpu.primitives import add_in_any_order, exp, fused_multiply_add, maximum, softcap_and_derivative


@device
def load(logits: Any, z: Any) -> Any:
    """z = logits in the computing type; returns their maximum, NaN if there is a NaN."""
    highest = z.dtype.type(-np.inf)
    for i in range(len(z)):
        x = decode(logits[i])
        z[i] = x
        highest = maximum(highest, x)
    return highest


@device
def transform(z: Any, derivative: Any, terms: Any) -> Any:
    """z = softcap * tanh(scale * z / softcap), or scale * z without a softcap (0); returns the maximum."""
    highest = z.dtype.type(-np.inf)
    factor, cap = z.dtype.type(terms.scale), z.dtype.type(terms.softcap)
    if terms.softcap == 0.0:
        for i in range(len(z)):
            z[i] = z[i] * factor
            highest = maximum(highest, z[i])
    else:
        for i in range(len(z)):
            z[i], derivative[i] = softcap_and_derivative(z[i], factor, cap)
            highest = maximum(highest, z[i])
    return highest


@sequence
def load_transformed(logits: Any, z: Any, derivative: Any, terms: Any) -> Any:
    """Load, and transform if an option needs it; returns the maximum of z."""
    highest = load(logits, z)
    if terms is not None and (terms.scale != 1.0 or terms.softcap != 0.0):
        highest = transform(z, derivative, terms)
    return highest


@device
def exponentials(z: Any, reference: Any) -> Any:
    """z = exp(z - reference); returns their sum."""
    total = z.dtype.type(0)
    for i in range(len(z)):
        z[i] = exp(z[i] - reference)
        total = add_in_any_order(total, z[i])
    return total


@device
def load_exponentials(logits: Any, z: Any) -> Any:
    """z = exp(logits); returns their sum."""
    total = z.dtype.type(0)
    for i in range(len(z)):
        z[i] = exp(decode(logits[i]))
        total = add_in_any_order(total, z[i])
    return total


@device
def sum_of_exponentials(logits: Any, zero: Any) -> Any:
    """Return sum(exp(logits)) in the type of `zero`, which is 0."""
    total = zero
    for i in range(len(logits)):
        total = add_in_any_order(total, exp(decode(logits[i])))
    return total


@device
def exponentials_and_slope(z: Any, reference: Any) -> Any:
    """z = exp(z - reference); returns their sum, and sum(exp(z - reference) * (z - reference)) for the entropy."""
    total, slope = z.dtype.type(0), z.dtype.type(0)
    for i in range(len(z)):
        shifted = z[i] - reference
        z[i] = exp(shifted)
        total = add_in_any_order(total, z[i])
        # A masked class adds 0, not 0 * -inf; the comparison is false for NaN.
        slope = add_in_any_order(slope, z[i] * (z.dtype.type(-1000) if shifted < -1000 else shifted))
    return np.float64(total), np.float64(slope)


@device
def target_distribution(t: Any, soft: Any, on: float, off: float) -> Any:
    """t = on * p + off, with class probabilities p in `soft` (empty: p is 0)."""
    on_, off_ = t.dtype.type(on), t.dtype.type(off)
    if len(soft):
        for i in range(len(t)):
            t[i] = fused_multiply_add(on_, soft[i], off_)
    else:
        for i in range(len(t)):
            t[i] = off_


@device
def weighted(t: Any, weight: Any) -> None:
    """t = t * weight."""
    for i in range(len(t)):
        t[i] = t[i] * weight[i]


@device
def target_terms(z: Any, t: Any, reference: Any) -> float:
    """Return sum(t * (reference - z)); where t is 0, 0 is added even if the class is masked (0 * inf)."""
    terms, above = 0.0, np.float64(reference)
    for i in range(len(z)):
        # In float64: the difference of two large float32 numbers may be none.
        term = np.float64(t[i]) * (above - np.float64(z[i]))
        terms = add_in_any_order(terms, term if t[i] != 0 else 0.0)
    return terms


@device
def target_mass(t: Any) -> float:
    """Return sum(t)."""
    total = 0.0
    for i in range(len(t)):
        total = add_in_any_order(total, np.float64(t[i]))
    return total


@device
def scaled(z: Any, factor: Any) -> None:
    """z = factor * z."""
    for i in range(len(z)):
        z[i] = factor * z[i]


@device
def scaled_less_target(z: Any, factor: Any, t: Any, target_factor: Any) -> None:
    """z = factor * z - target_factor * t."""
    for i in range(len(z)):
        z[i] = fused_multiply_add(factor, z[i], -(target_factor * t[i]))


@device
def multiply(z: Any, derivative: Any) -> None:
    """z = z * derivative: the chain rule through the softcap."""
    for i in range(len(z)):
        z[i] = z[i] * derivative[i]


@device
def count_above(z: Any, x: Any) -> int:
    """Count the numbers above x."""
    count = np.int32(0)
    for i in range(len(z)):
        count += np.int32(z[i] > x)
    return np.int64(count)


@device
def first_at(z: Any, x: Any) -> int:
    """Index of the first x (of the first NaN, if x is NaN)."""
    for i in range(len(z)):
        if z[i] == x or (z[i] != z[i] and x != x):
            return i
    return 0
