"""Errors of the functions of one number that the CPU kernels are built from, in units in the last place.

The truth is NumPy's function in the next longer format: float64 for float32, and the processor's long double (80 bits
on x86) for float64, where it is longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import internals
from benchmarks.internals import Array

SAMPLES = 2**20


class Primitive(NamedTuple):
    """A function and where it is measured: between `low` and `high`, or with `logarithmic` from 2**low to 2**high."""

    name: str
    exact: Callable[[Array], Array]
    dtype: type
    low: float
    high: float
    logarithmic: bool = False


def _sech_squared(x: Array) -> Array:
    return 1 / np.cosh(x) ** 2


PRIMITIVES = (
    Primitive("exp", np.exp, np.float32, -87.3, 88.3),
    Primitive("exp", np.exp, np.float64, -708.3, 709.4),
    Primitive("log", np.log, np.float64, -1022, 1023, logarithmic=True),
    Primitive("tanh", np.tanh, np.float32, -44, 44),
    Primitive("tanh", np.tanh, np.float64, -355, 355),
    Primitive("1 - tanh**2", _sech_squared, np.float32, -43, 43),
    Primitive("1 - tanh**2", _sech_squared, np.float64, -353, 353),
)


def measure_primitives(samples: int = SAMPLES, seed: int = 0) -> list[dict[str, Any]]:
    """The greatest error of each primitive over random arguments, half of them near 0 (near 1 for the logarithm)."""
    functions = internals.primitives()
    measured = [primitive for primitive in PRIMITIVES if _has_longer_format(primitive.dtype)]
    return [_measure(primitive, functions[primitive.name], samples, seed) for primitive in measured]


def _has_longer_format(dtype: type) -> bool:
    return dtype is np.float32 or np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant


def _measure(primitive: Primitive, function: Callable[[Array], Array], samples: int, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    wide, close = random.uniform(primitive.low, primitive.high, samples // 2), random.normal(0, 1, samples // 2)
    arguments = np.concatenate([wide, close])
    arguments = (np.exp2(arguments) if primitive.logarithmic else arguments).astype(primitive.dtype)
    longer = np.float64 if primitive.dtype is np.float32 else np.longdouble
    exact = primitive.exact(arguments.astype(longer))
    units = np.spacing(np.abs(exact).astype(primitive.dtype)).astype(longer)
    error = np.abs(function(arguments).astype(longer) - exact) / units
    worst = int(error.argmax())
    domain = [f"2**{bound}" if primitive.logarithmic else bound for bound in (primitive.low, primitive.high)]
    return {
        "name": primitive.name,
        "dtype": np.dtype(primitive.dtype).name,
        "from": domain[0],
        "to": domain[1],
        "samples": samples,
        "units_in_the_last_place": float(error[worst]),
        "at": float(arguments[worst]),
    }
