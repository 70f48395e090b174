"""`out += a @ b` by the OpenBLAS that NumPy brings: NumPy itself can only overwrite.

NumPy's wheels carry OpenBLAS under names of their own (`scipy_cblas_sgemm64_`), which its extension module is linked
to, so the loader finds them by way of that module. Where there are none (a NumPy that was built against something
else), `adds` says so, and the caller adds up slab by slab. That costs a barrier of all threads for each slab: on two
cores that other programs used too, the gradient of a weight of 50257 x 768 took more than twice as long.
"""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ROW_MAJOR, AS_IT_IS, TRANSPOSED = 101, 111, 112
REAL = {np.dtype(np.float32): ("s", ctypes.c_float), np.dtype(np.float64): ("d", ctypes.c_double)}


def adds(dtype: np.dtype[Any]) -> bool:
    """Whether `add_product` works for arrays of this dtype."""
    return dtype in REAL and _gemm(dtype) is not None


def add_product(a: Array, b: Array, out: Array) -> None:
    """Add a (M, K) @ b (K, N) to out (M, N), whose rows are side by side; so are rows or columns of a and b."""
    rows, inner = a.shape
    columns = b.shape[1]
    if not (rows and inner and columns):
        return
    gemm = _gemm(out.dtype)
    assert gemm is not None
    (how_a, lead_a), (how_b, lead_b) = _laid_out(a), _laid_out(b)
    lead = max(out.strides[0] // out.itemsize, columns)
    pointers = a.ctypes.data, b.ctypes.data, out.ctypes.data
    gemm(
        ROW_MAJOR, how_a, how_b, rows, columns, inner, 1.0, pointers[0], lead_a, pointers[1], lead_b, 1.0,
        pointers[2], lead
    )  # fmt: skip


def _laid_out(array: Array) -> tuple[int, int]:
    """Whether BLAS sees the array or its transpose, and how far apart its rows (or columns) are."""
    item = array.itemsize
    if array.strides[1] == item or array.shape[1] == 1:
        return AS_IT_IS, max(array.strides[0] // item, array.shape[1])
    assert array.strides[0] == item or array.shape[0] == 1, "rows or columns must be side by side"
    return TRANSPOSED, max(array.strides[1] // item, array.shape[0])


@cache
def _gemm(dtype: np.dtype[Any]) -> Any:
    letter, number = REAL[dtype]
    try:
        extension = importlib.import_module("numpy._core._multiarray_umath")
        function = getattr(ctypes.CDLL(extension.__file__), f"scipy_cblas_{letter}gemm64_")
    except (ImportError, OSError, AttributeError):
        return None
    kind, size, pointer = ctypes.c_int, ctypes.c_int64, ctypes.c_void_p
    function.restype = None
    function.argtypes = [
        kind,
        kind,
        kind,
        size,
        size,
        size,
        number,
        pointer,
        size,
        pointer,
        size,
        number,
        pointer,
        size,
    ]
    return function
