"""Row ranges over the cores.

The calling thread always works too; workers take the remaining pieces. Rows are dealt out in pieces, and a row's
result does not depend on the piece, so results are the same for any number of threads.

In a process with torch the workers are the threads of torch's OpenMP runtime. They wait in a busy loop for some
milliseconds after any operation of torch and start at once; a second set of threads has to be woken up and then
competes with them for the cores (docs/performance.md). Without torch the workers are plain threads of a pool.

Why not Numba's own parallel loops: their "workqueue" layer must not be entered by two threads at once, the OpenMP layer
brings a runtime of its own beside torch's, and TBB is a package of its own.

Safe in these situations:

- Many callers at once: OpenMP has a team for each of them. Of the pool, a caller finishes its rows alone if the workers
  are busy elsewhere.
- Calls from inside a worker: the same.
- os.fork, also after first use: the child forgets the parent's threads, OpenMP's too, which do not survive a fork, and
  starts a pool of its own when it needs one.
- Interpreter exit: workers are daemons that hold nothing between calls.

The number of threads is that of `set_num_threads`, else of XENT_NUM_THREADS, else of the processors that this process
may use.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

from xent.environment import setting
from xent.errors import ArgumentError, message

PIECES_PER_THREAD = 8

NO_TEAM = 0
_openmp: int | None = None
"""The address of GOMP_parallel in torch's OpenMP runtime; NO_TEAM to use none; None until it has been looked for."""


def openmp_entry(library: str) -> int:
    """Return the address of GOMP_parallel in the OpenMP runtime of a loaded library; NO_TEAM if it has none."""
    try:
        entry = ctypes.CDLL(library).GOMP_parallel
    except (OSError, AttributeError):
        return NO_TEAM
    return ctypes.cast(entry, ctypes.c_void_p).value or NO_TEAM


def _team() -> int:
    """Return the entry of the runtime to use, which is looked for at the first call after torch was imported."""
    global _openmp
    torch = sys.modules.get("torch._C")  # the library that is linked to torch's OpenMP runtime, wherever that lies
    if _openmp is None and torch is not None:
        from xent.backends.cpu.team import ENTERS_OPENMP

        _openmp = openmp_entry(torch.__file__ or "") if ENTERS_OPENMP else NO_TEAM
    return _openmp or NO_TEAM


def uses_openmp() -> bool:
    """Whether calls share their work with the threads of an OpenMP runtime."""
    return _team() != NO_TEAM


@contextlib.contextmanager
def without_openmp() -> Iterator[None]:
    """Share work with the pool, although there is an OpenMP runtime: to compare the two."""
    global _openmp
    before, _openmp = _openmp, NO_TEAM
    try:
        yield
    finally:
        _openmp = before


def _processor_number() -> Callable[[], int] | None:
    """Return the function that gives the processor on which the calling thread runs, where there is one."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_current_processor = _processor_number()


class _Call:
    """The rows of one call, and who is working on them."""

    def __init__(self, kernel: Callable[..., None], *arguments: Any) -> None:
        self.kernel = kernel
        self.arguments = arguments
        self.working = 0
        self.over = False
        self.lock = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Join until no row is left, unless the caller has finished."""
        with self.lock:
            if self.over:
                return
            self.working += 1
        try:
            self.kernel(NO_TEAM, 1, *self.arguments)
        except BaseException as error:
            self.error = error
        with self.lock:
            self.working -= 1
            if self.over and self.working == 0:
                self.done.release()

    def finish(self) -> None:
        """Join, then wait for the workers; raises what one of them has raised."""
        self.work()
        with self.lock:
            self.over = True
            still_working = self.working > 0
        if still_working:
            self.done.acquire()
        if self.error is not None:
            raise self.error


class _Pool:
    """Worker threads, started when they are first needed."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        self.workers: list[threading.Thread] = []
        self.processors: set[int] = set()
        self.lock = threading.Lock()

    def offer(self, call: _Call, workers: int) -> None:
        """Offer a call to that many workers."""
        if len(self.workers) < workers:
            with self.lock:
                while len(self.workers) < workers:
                    thread = threading.Thread(target=self.serve, name=f"xent-{len(self.workers)}", daemon=True)
                    thread.start()
                    self.workers.append(thread)
                    self.processors = set()
        self.keep_off_this_processor()
        for _ in range(workers):
            self.calls.put(call)

    def keep_off_this_processor(self) -> None:
        """Let workers run where the caller may, but not where it is running now."""
        if _current_processor is None:
            return
        with contextlib.suppress(OSError), self.lock:
            processors = os.sched_getaffinity(0) - {_current_processor()}
            if processors and processors != self.processors:
                for worker in self.workers:
                    os.sched_setaffinity(worker.native_id or 0, processors)
                self.processors = processors

    def serve(self) -> None:
        """What a worker does for as long as the process lives."""
        while True:
            self.calls.get().work()


_pool = _Pool()
_threads: int | None = None


def _forget_parent() -> None:
    """In a forked child: neither the pool's threads nor OpenMP's exist any more."""
    global _pool, _openmp
    _pool = _Pool()
    if "torch._C" in sys.modules:  # the parent may have used OpenMP, which can then never be entered in this process
        _openmp = NO_TEAM


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def get_num_threads() -> int:
    """Return how many threads a call may use, the calling thread included."""
    global _threads
    if _threads is None:
        _threads = setting("XENT_NUM_THREADS") or available_processors()
    return _threads


def set_num_threads(threads: int) -> None:
    """Set how many threads a call may use, for all calls of this process."""
    global _threads
    if threads < 1:
        found = f"found {threads}, expected 1 or more"
        raise ArgumentError(message("set_num_threads", "threads", found, "Pass the number of cores to use"))
    _threads = threads


def available_processors() -> int:
    """Return how many processors this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def over_rows(kernel: Callable[..., None], arguments: tuple[Any, ...], rows: int, threads: int) -> None:
    """Run a `row_kernel` (team.py) over all rows, on up to `threads` threads."""
    threads = min(threads, rows)
    work = np.zeros(1, np.int64)
    if threads <= 1:
        kernel(NO_TEAM, 1, work, rows, rows, arguments)
        return
    piece = -(-rows // (threads * PIECES_PER_THREAD))
    team = _team()
    if team != NO_TEAM:
        kernel(team, threads, work, rows, piece, arguments)
        return
    call = _Call(kernel, work, rows, piece, arguments)
    _pool.offer(call, threads - 1)
    call.finish()
