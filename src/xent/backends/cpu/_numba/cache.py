"""Numba's on-disk cache of one function, over the files of disk_cache.py.

| internal | why it is used |
|---|---|
| `FunctionCache`, `_index_key`, `_impl.filename_base` | machine code as bytes, and a folder, but other files |
| `FunctionCache._load_overload`, `rtsys` | `load_overload` imports all that compiling needs: 0.3 s in place of 0.05 |
| `dispatcher._cache` | `njit(cache=True)` takes no cache of another class |
| `dispatcher.compile` | the lock of a kernel is released when its compilation ends, also by an error |
| `llvmlite.__version__` | machine code depends on it |
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher
from numba.core.runtime.nrt import rtsys

from xent.backends.cpu import disk_cache

# What is overridden or called below has to be there: AttributeError now, in place of one later.
_ = (
    FunctionCache.load_overload,
    FunctionCache._load_overload,
    FunctionCache.save_overload,
    FunctionCache.cache_path,
    FunctionCache._index_key,
    FunctionCache._impl_class.filename_base,
    Dispatcher.compile,
    rtsys.initialize,
)

FOLDER = Path(__file__).parent


class KernelCache(FunctionCache):  # type: ignore[misc]
    """The compiled signatures of one function on disk. RuntimeError or OSError where no folder is writable.

    `internals` says which of Numba's internals the code was compiled with.
    """

    def __init__(self, function: Callable[..., Any], internals: str) -> None:
        super().__init__(function)
        sources = (Path(function.__code__.co_filename).parent, FOLDER, FOLDER.parent)
        compiler = f"{sys.version} {numba.__version__} {llvmlite.__version__} {internals}"
        self.files = disk_cache.KernelFiles(Path(self.cache_path), self._impl.filename_base, sources, compiler)
        self._cache_file = self.files
        disk_cache.make_private(Path(self.cache_path))
        self._thread = threading.local()

    def attach(self, dispatcher: Any) -> None:
        """Let a dispatcher load from this cache, and save to it."""
        compile_signature = dispatcher.compile

        def compile_once(signature: Any) -> Any:
            try:
                return compile_signature(signature)
            finally:
                self._release()

        dispatcher._cache = self
        dispatcher.compile = compile_once

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """Return the compiled signature; None if this process has to compile it, and then it holds the lock."""
        compiled = self._loaded(signature, target_context)
        if compiled is None:
            path = self.files.path(self._index_key(signature, target_context.codegen()))
            lock = disk_cache.FileLock(path.with_suffix(".lock"))
            if lock.acquire(disk_cache.PATIENCE):
                self._thread.lock = lock
                # Another process may have compiled it in the meantime.
                compiled = self._loaded(signature, target_context)
        return compiled

    def _loaded(self, signature: Any, target_context: Any) -> Any:
        """What is on disk, made into a function; None if it is not there, or is anything else."""
        with contextlib.suppress(Exception):  # Numba trusts what it reads, and fails in any way
            rtsys.initialize(target_context)  # what compiled code calls to allocate
            return self._load_overload(signature, target_context)
        return None

    def _release(self) -> None:
        lock = self._thread.__dict__.pop("lock", None)
        if lock is not None:
            lock.release()
