"""The instructions that scoring's loops need, for when they run as Python (NUMBA_DISABLE_JIT)."""

from __future__ import annotations

from typing import Any

import numpy as np


def float_bits(number: Any) -> Any:
    """Reinterpret a float as the integer of the same bits."""
    return number.view(np.int32) if isinstance(number, np.float32) else np.float64(number).view(np.int64)


def bits_float(bits: Any) -> Any:
    """Reinterpret an integer as the float of the same bits."""
    return bits.view(np.float32) if isinstance(bits, np.int32) else np.int64(bits).view(np.float64)


def maximum(x: Any, y: Any) -> Any:
    """Return the larger number, NaN if there is one."""
    return x if x > y or x != x else y
