"""Matrix products on the CPU, by one rule: `xent.torch` multiplies with torch, `xent.numpy` with NumPy.

There is one exception: on AMD's processors, for which torch's MKL has no kernels of their own, `xent.torch` makes the
logits with NumPy's OpenBLAS, if it may use all processors (NumPy has no call for the number of threads).

So results depend neither on a measurement nor on what else a process has imported. docs/performance.md has what the
rule costs.

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
from xent.backends.cpu.threads import available_processors

Array = NDArray[Any]
Library = Literal["numpy", "torch"]

BFLOAT16 = np.dtype(np.uint16)


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


def library_of_logits(library: Library, threads: int) -> Library:
    """Return the library that multiplies input @ weight.T."""
    return "numpy" if threads >= available_processors() and _is_amd() else library


@cache
def _is_amd() -> bool:
    return has_any_instruction_set("sse4a")  # only AMD's processors have it


@cache
def _has_bfloat16_instructions() -> bool:
    return has_any_instruction_set("avx512bf16", "amx-bf16", "bf16")


def multiply_and_add(a: Array, b: Array, bias: Array, out: Array) -> None:
    """Write a @ b + bias to out, by torch: in 16 bits it is rounded once."""
    torch = sys.modules["torch"]
    with _plainly(torch):
        torch.addmm(_tensor(bias), _tensor(a), _tensor(b), out=_tensor(out))


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
