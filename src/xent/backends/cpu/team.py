"""Kernels over rows that several threads share: whichever thread is free takes the next piece.

A `row_kernel` is written for one thread: it ends in the arguments (first, last), the rows to work on. Called from
Python it is

    kernel(team, threads, work, rows, piece, arguments)

and runs `function(*arguments, first, last)` for one piece of rows after the other until work[0], the row at which the
next piece begins, has reached `rows`. Every thread calling it with the same `work` joins, without the GIL.

With `team`, the address of an OpenMP runtime's GOMP_parallel, the kernel itself has that many threads of the runtime
join. This entry is what compilers call for `#pragma omp parallel`; GCC's, LLVM's and Intel's runtimes have it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from xent.backends.cpu import _numba
from xent.backends.cpu._numba import atomic_add, failed_in_team
from xent.backends.cpu.compilation import cached_on_disk, kernel, part

RowKernel = Callable[..., None]

ENTERS_OPENMP = "openmp" not in _numba.FAILURES
"""Whether a row kernel can be called with a team."""


def row_kernel(function: Callable[..., None]) -> RowKernel:
    """Compile a function of (..., first, last) as a kernel that threads share, and keep the machine code on disk."""
    return _shared_in_compiled_code(function) if ENTERS_OPENMP else _shared_in_python(function)


def _shared_in_compiled_code(function: Callable[..., None]) -> RowKernel:
    rows_of = part(function)

    @part
    def take_part(work: Any, rows: int, piece: int, arguments: Any) -> None:
        first: int = atomic_add(work, piece)
        while first < rows:
            rows_of(*arguments, first, min(first + piece, rows))
            first = atomic_add(work, piece)

    def share(team: int, threads: int, work: Any, rows: int, piece: int, arguments: Any) -> None:
        if team == 0:
            take_part(work, rows, piece, arguments)
        elif failed_in_team(team, threads, take_part, (work, rows, piece, arguments)):
            # On this thread it can be raised. Should it not happen again (memory has become free), the rows may not be
            # trusted: logits may have been overwritten by their gradient the first time.
            work[0] = 0
            take_part(work, rows, piece, arguments)
            raise MemoryError("a thread of xent had no memory for its scratch")

    return cast(RowKernel, cached_on_disk(share, function))


_taking = threading.Lock()


def _shared_in_python(function: Callable[..., None]) -> RowKernel:
    """The same without a team, and with a call from Python for each piece."""
    rows_of = kernel(function)

    def share(team: int, threads: int, work: Any, rows: int, piece: int, arguments: Any) -> None:
        while True:
            with _taking:
                first = int(work[0])
                work[0] = first + piece
            if first >= rows:
                return
            rows_of(*arguments, first, min(first + piece, rows))

    return share
