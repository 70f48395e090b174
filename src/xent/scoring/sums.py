"""Compensated sums, as pairs (high, low) along the last axis, and arrays as JSON."""

from __future__ import annotations

import base64
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def zeros(*shape: int) -> Array:
    """Return sums of no terms."""
    return np.zeros((*shape, 2))


def merged(a: Array, b: Array) -> Array:
    """Add the sums of two parts: the high words by Knuth's two-sum, whose rounding error goes into the low words.

    >>> part = np.array([1.0, 0.0]), np.array([2.0**-60, 0.0])
    >>> merged(merged(*part), np.array([-1.0, 0.0])).sum() == 2.0**-60
    np.True_
    """
    high = a[..., 0] + b[..., 0]
    back = high - a[..., 0]
    error = (a[..., 0] - (high - back)) + (b[..., 0] - back)
    return np.stack([high, a[..., 1] + b[..., 1] + error], axis=-1)


def values(pairs: Array) -> Array:
    """Return the sums as float64."""
    return np.asarray(pairs[..., 0] + pairs[..., 1])


def exactly(pair: Array) -> Fraction:
    """Return one sum exactly, for differences in which nearly all digits cancel."""
    return Fraction(float(pair[0])) + Fraction(float(pair[1]))


def to_json(array: Array) -> Any:
    """Write an array as JSON, exact to the bit: objects as a list, numbers in base64; stored.py reads it."""
    if array.dtype == object:
        return {"shape": list(array.shape), "list": array.reshape(-1).tolist()}
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return {
        "dtype": little.dtype.str,
        "shape": list(array.shape),
        "base64": base64.b64encode(little.tobytes()).decode("ascii"),
    }
