"""`kernel` and `device`: how the functions of this folder are compiled, and where compiled code is kept on disk.

A `device` function is inlined into the kernels that call it. A `kernel` is called from Python: it releases the GIL,
is compiled at its first call for each dtype, and is kept on disk, so that a later process only loads it.

Why not `njit(cache=True)` as it is (Numba 0.68):

- Its entries go stale unnoticed: they depend on the file of the kernel, not on the files it takes functions from.
  Here the name of an entry is a hash of the sources of this folder and of the kernel's, the signature, the processor
  and the versions.
- Two processes that compile two dtypes of one kernel at once can both take the same file number, after which one
  loads the machine code of the other. Here every signature has a file of its own, written aside and then renamed.
- It refuses to import when no folder is writable, or fails at the call when the disk is full. Here the code is then
  compiled for this process alone.

Where: `NUMBA_CACHE_DIR` if it is set, else `__pycache__` next to this file, else the user's cache folder
(`~/.cache/numba`), whichever is writable first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import sys
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite
import numba
from numba.core.caching import FunctionCache

from xent.backends.cpu.compiler import EntryCompiler, LinkedCompiler, PartCompiler

Function = TypeVar("Function", bound=Callable[..., Any])


# `numpy`: a division by zero gives inf or NaN; the check for it would keep loops from being vectorised.
# No fast-math flags: -inf is a legal logit and NaN has to come through.
OPTIONS = {"nogil": True, "error_model": "numpy"}
ENTRY = {**OPTIONS, "pipeline_class": EntryCompiler}
# What only compiled code calls needs no entry from Python or C.
LINKED = {**OPTIONS, "pipeline_class": LinkedCompiler, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
PART = {**LINKED, "pipeline_class": PartCompiler}


def device(function: Function) -> Function:
    """Compile a function that kernels call; it is compiled into them. It can allocate nothing.

    `_nrt=False` spares the reference count of every slice, which took 0.15 of 0.28 us for a row of 1000 classes and
    40 % of the time at 50257. What a device function returns must therefore hold no array if a kernel calls it.
    """
    return cast(Function, numba.njit(**LINKED, _nrt=False, forceinline=True)(function))


def routine(function: Function) -> Function:
    """Compile a function that kernels call, too long to be compiled into each of them; it can allocate nothing."""
    return cast(Function, numba.njit(**LINKED, _nrt=False)(function))


def allocator(function: Function) -> Function:
    """Compile a function that kernels call for their scratch."""
    return cast(Function, numba.njit(**LINKED)(function))


def kernel(function: Function) -> Function:
    """Compile a function that Python calls, without the GIL, and keep the machine code on disk."""
    return cast(Function, cached_on_disk(function, function))


def cached_on_disk(entry: Callable[..., Any], function: Callable[..., Any]) -> Any:
    """Compile `entry`, which is `function` or calls it, and keep the machine code on disk as that of the function."""
    dispatcher = numba.njit(**ENTRY)(entry)
    # Without a writable folder: compiled again by every process, and nothing else changes.
    with contextlib.suppress(RuntimeError, OSError):
        dispatcher._cache = KernelCache(function)
    return dispatcher


@cache
def version(folder: Path) -> bytes:
    """Hash what the machine code of a kernel depends on beside signature and processor.

    That is the compiler, and the sources of this folder and of the kernel's own.
    """
    digest = hashlib.sha256(f"{sys.version} {numba.__version__} {llvmlite.__version__}".encode())
    for source in sorted({*Path(__file__).parent.glob("*.py"), *folder.glob("*.py")}):
        digest.update(source.read_bytes())
    return digest.digest()


class KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's on-disk cache of one function, over `KernelFiles`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        sources = Path(function.__code__.co_filename).parent
        self._cache_file = KernelFiles(Path(self.cache_path), self._impl.filename_base, sources)


class KernelFiles:
    """One file for each compiled signature, found by name; reading and writing may fail, which costs a compilation."""

    def __init__(self, folder: Path, prefix: str, sources: Path) -> None:
        self.folder = folder
        self.prefix = prefix
        self.sources = sources

    def path(self, key: object) -> Path:
        """Name the file of an entry after all that its content depends on."""
        digest = hashlib.sha256(version(self.sources) + repr(key).encode()).hexdigest()[:20]
        return self.folder / f"{self.prefix}.{digest}.nbc"

    def load(self, key: object) -> Any:
        """Return the entry, or None when there is none that can be read."""
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
            return pickle.loads(self.path(key).read_bytes())
        return None

    def save(self, key: object, data: object) -> None:
        """Write the entry under a temporary name, then rename it: readers see all of it or nothing."""
        path = self.path(key)
        part = path.with_suffix(f".{uuid.uuid4().hex[:16]}")
        try:
            part.write_bytes(pickle.dumps(data))
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)

    def flush(self) -> None:
        """Delete the entries of this kernel."""
        for path in self.folder.glob(f"{self.prefix}.*.nbc"):
            path.unlink(missing_ok=True)


def cache_folder() -> Path | None:
    """Where compiled code is kept on disk; None where no folder is writable."""
    with contextlib.suppress(RuntimeError, OSError):
        return KernelCache(cache_folder)._cache_file.folder  # type: ignore[attr-defined]
    return None
