"""`kernel` and `device`: how the functions of this folder are compiled, and where compiled code is kept on disk.

A `device` function is inlined into the kernels that call it. A `kernel` is called from Python: it releases the GIL,
is compiled at its first call for each dtype, and is kept on disk, so that a later process only loads it.

Why not `njit(cache=True)` as it is (Numba 0.68):

- Its entries go stale unnoticed: they depend on the file of the kernel, not on the files it takes functions from.
  Here the name of an entry is a hash of the sources of this folder and of the kernel's, the signature, the processor
  and the versions.
- Two processes that compile two dtypes of one kernel at once can both take the same file number, after which one
  loads the machine code of the other. Here every signature has a file of its own (disk_cache.py).
- Two processes that need the same kernel both compile it. Here the second waits for the first.
- It refuses to import when no folder is writable, or fails at the call when the disk is full. Here the code is then
  compiled for this process alone.

Where: `NUMBA_CACHE_DIR` if it is set, else `__pycache__` next to this file, else the user's cache folder
(`~/.cache/numba`), whichever is writable first.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from xent.backends.cpu import _numba

Function = TypeVar("Function", bound=Callable[..., Any])


# `numpy`: a division by zero gives inf or NaN; the check for it would keep loops from being vectorised.
# No fast-math flags: -inf is a legal logit and NaN has to come through.
OPTIONS = {"nogil": True, "error_model": "numpy"}


def device(function: Function) -> Function:
    """Compile a function that kernels call; it is compiled into them. It can allocate nothing.

    It is compiled without reference counts, so what it returns must hold no array if a kernel calls it. And a loop that
    cuts an array shared by threads belongs in one: where a kernel cuts it itself, the threads wait for each other's
    count of its references, a tenth of a microsecond at each cut, unless the compiler sees that nobody needs it.
    """
    return cast(Function, numba.njit(**OPTIONS, **_numba.LINKED, **_numba.NO_ALLOCATION, forceinline=True)(function))


def sequence(function: Function) -> Function:
    """Compile a function that has no loop over numbers, only calls of those that do; it can allocate nothing.

    It is optimised where it ends up, in the kernel, and not by itself before that: that took a third of the time that a
    kernel takes to compile.
    """
    return cast(Function, numba.njit(**OPTIONS, **_numba.PART, **_numba.NO_ALLOCATION, forceinline=True)(function))


def routine(function: Function) -> Function:
    """Compile a function that kernels call, too long to be compiled into each of them; it can allocate nothing."""
    return cast(Function, numba.njit(**OPTIONS, **_numba.LINKED, **_numba.NO_ALLOCATION)(function))


def allocator(function: Function) -> Function:
    """Compile a function that kernels call for their scratch."""
    return cast(Function, numba.njit(**OPTIONS, **_numba.LINKED)(function))


def part(function: Function) -> Function:
    """Compile a function that is a whole kernel except for its entry, which is the only function that calls it."""
    return cast(Function, numba.njit(**OPTIONS, **_numba.PART)(function))


def kernel(function: Function) -> Function:
    """Compile a function that Python calls, without the GIL, and keep the machine code on disk."""
    return cast(Function, cached_on_disk(function, function))


def cached_on_disk(entry: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Compile `entry`, which is `function` or calls it, and keep the machine code on disk as that of the function."""
    dispatcher = numba.njit(**OPTIONS, **_numba.ENTRY)(entry)
    cache = _cache_of(function)
    if cache is not None and hasattr(dispatcher, "compile"):  # not with NUMBA_DISABLE_JIT
        cache.attach(dispatcher)
    return dispatcher


def _cache_of(function: Callable[..., Any]) -> Any:
    """Return the cache of a function; None where every process compiles for itself."""
    if _numba.KernelCache is not None:
        with contextlib.suppress(RuntimeError, OSError):  # no folder is writable
            return _numba.KernelCache(function, internals=" ".join(_numba.FAILURES))
    return None


def cache_folder() -> Path | None:
    """Return the folder of compiled kernels; None where they are not kept."""
    cache = _cache_of(cache_folder)
    return None if cache is None else Path(cache.cache_path)
