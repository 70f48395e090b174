"""Matrix products on the CPU, by one rule: `xent.torch` multiplies with torch, `xent.numpy` with NumPy.

So results depend neither on a measurement nor on what else a process has imported. Both at once would be slow: after a
product of NumPy's the threads of its OpenBLAS wait in a loop for the next one, on the processors that torch's need.

On AMD's processors, for which torch's MKL has no kernels of their own, it multiplies by the transpose of a large matrix
at two thirds of its speed, and of a small one at all of it: there logits are made for a few classes at a time.
docs/performance.md has what that gives.

16-bit products are torch's, on processors with instructions for them. Otherwise 16-bit numbers are widened to float32,
a few classes at a time (linear_steps.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu._numba import has_any_instruction_set

Array = NDArray[Any]
Library = Literal["numpy", "torch"]

BFLOAT16 = np.dtype(np.uint16)
FEW_CLASSES = 512
"""Whose logits are made at once on AMD's processors."""


def multiply(library: Library, a: Array, b: Array, out: Array, *, add: bool = False) -> None:
    """Write a @ b to out, or add it to what is there (torch only). uint16 stands for bfloat16 (torch only)."""
    if library == "numpy":
        # Infinities and NaN are results like others, which make their own row NaN.
        with np.errstate(over="ignore", invalid="ignore"):
            np.matmul(a, b, out=out)
        return
    torch = sys.modules["torch"]
    with _plainly(torch):
        tensors = _tensor(a), _tensor(b), _tensor(out)
        if add:
            torch.addmm(tensors[2], *tensors[:2], out=tensors[2])
        else:
            torch.mm(*tensors[:2], out=tensors[2])


def side_by_side(array: Array) -> Array:
    """A matrix as BLAS takes it: copied unless its rows or its columns lie side by side, one behind the other."""
    (rows, columns), (down, across), item = array.shape, array.strides, array.itemsize
    fits = (across == item and down >= columns * item) or (down == item and across >= rows * item)
    return array if fits and array.flags.aligned else np.ascontiguousarray(array)


def adds(library: Library) -> bool:
    """Whether `multiply` can add to what is in `out`."""
    return library == "torch"


def multiplies_bfloat16(library: Library) -> bool:
    """Whether bfloat16 products are made as they are: by torch, on a processor with instructions for them.

    oneDNN multiplies bfloat16 without such instructions too, and takes longer than widening to float32 first.
    """
    return library == "torch" and _has_bfloat16_instructions()


@cache
def _is_amd() -> bool:
    return has_any_instruction_set("sse4a")  # only AMD's processors have it


@cache
def _has_bfloat16_instructions() -> bool:
    return has_any_instruction_set("avx512bf16", "amx-bf16", "bf16")


def multiply_transposed(library: Library, a: Array, b: Array, out: Array, bias: Array | None = None) -> None:
    """Write a @ b.T to out; of torch with a bias added, so that 16-bit numbers are rounded once."""
    if library == "numpy":
        multiply(library, a, b.T, out)
        return
    torch, classes = sys.modules["torch"], len(b)
    step = FEW_CLASSES if a.dtype.itemsize > 2 and _is_amd() else max(classes, 1)
    with _plainly(torch):
        x, w, z = _tensor(a), _tensor(b), _tensor(out)
        for start in range(0, classes, step):
            part = slice(start, min(start + step, classes))
            if bias is None:
                torch.mm(x, w[part].t(), out=z[:, part])
            else:
                torch.addmm(_tensor(bias[part]), x, w[part].t(), out=z[:, part])


class _Writable:
    """The memory of an array without its mark that it is read-only, about which torch would warn."""

    def __init__(self, array: Array) -> None:
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _tensor(array: Array) -> Any:
    torch = sys.modules["torch"]
    tensor = torch.from_numpy(array if array.flags.writeable else np.asarray(_Writable(array)))
    return tensor.view(torch.bfloat16) if array.dtype == BFLOAT16 else tensor


def _plainly(torch: Any) -> contextlib.AbstractContextManager[Any]:
    """Without autocast, which would round float32 products to 16 bits."""
    if torch.is_autocast_enabled("cpu"):
        off: contextlib.AbstractContextManager[Any] = torch.autocast("cpu", enabled=False)
        return off
    return contextlib.nullcontext()


_forked = False


def library_of_torch() -> Library:
    """Return torch; in a forked process NumPy, since torch's threads do not survive a fork."""
    return "numpy" if _forked else "torch"


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
