"""Row ranges over the cores.

The calling thread always works too; others take what it has not come to. Rows are dealt out in pieces, and a row's
result does not depend on the piece, so results are the same for any number of threads.

The others are the threads of the OpenMP runtime that torch brings along, once `use_openmp_of` has been told of it. They
wait in a busy loop for some milliseconds after any operation of torch and are at work at once; a second set of threads
has to be woken up and then competes with them for the cores (benchmarks/run.py threads; docs/performance.md). Without
torch the others are plain threads of a pool.

Why not Numba's own parallel loops: their "workqueue" layer must not be entered by two threads at once, the OpenMP layer
brings a runtime of its own beside torch's, and TBB is a package of its own.

Safe in these situations:

- Many callers at once: OpenMP has a team for each of them. Of the pool, a caller finishes its rows alone if the helpers
  are busy elsewhere.
- Calls from inside a helper: the same.
- os.fork, also after first use: the child forgets the parent's threads, OpenMP's too, which do not survive a fork, and
  starts a pool of its own when it needs one.
- Interpreter exit: helpers are daemons that hold nothing between calls.

The number of threads is that of `set_num_threads`, else of XENT_NUM_THREADS, else of the processors that this process
may use.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import numpy as np

PIECES_PER_THREAD = 8

NO_TEAM = 0
_openmp = NO_TEAM


def use_openmp_of(library: str) -> bool:
    """Share work with the threads of the OpenMP runtime that this loaded library is linked to; whether it has one."""
    global _openmp
    try:
        entry = ctypes.CDLL(library).GOMP_parallel
    except (OSError, AttributeError):
        return False
    _openmp = ctypes.cast(entry, ctypes.c_void_p).value or NO_TEAM
    return True


def uses_openmp() -> bool:
    """Whether calls share their work with the threads of an OpenMP runtime."""
    return _openmp != NO_TEAM


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
    """Return the function that tells on which processor the calling thread runs, where there is one."""
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
        """Take part until no row is left, unless the caller has finished."""
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
        """Take part, then wait for the others; raises what one of them has raised."""
        self.work()
        with self.lock:
            self.over = True
            others = self.working > 0
        if others:
            self.done.acquire()
        if self.error is not None:
            raise self.error


class _Pool:
    """Helper threads, started when they are first needed."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[_Call] = SimpleQueue()
        self.helpers: list[threading.Thread] = []
        self.processors: set[int] = set()
        self.lock = threading.Lock()

    def ask(self, call: _Call, helpers: int) -> None:
        """Offer a call to that many helpers."""
        if len(self.helpers) < helpers:
            with self.lock:
                while len(self.helpers) < helpers:
                    thread = threading.Thread(target=self.help, name=f"xent-{len(self.helpers)}", daemon=True)
                    thread.start()
                    self.helpers.append(thread)
                    self.processors = set()
        self.keep_off_this_processor()
        for _ in range(helpers):
            self.calls.put(call)

    def keep_off_this_processor(self) -> None:
        """Let helpers run where the caller may, but not where it is running now."""
        if _current_processor is None:
            return
        with contextlib.suppress(OSError), self.lock:
            others = os.sched_getaffinity(0) - {_current_processor()}
            if others and others != self.processors:
                for helper in self.helpers:
                    os.sched_setaffinity(helper.native_id or 0, others)
                self.processors = others

    def help(self) -> None:
        """What a helper does all its life."""
        while True:
            self.calls.get().work()


_pool = _Pool()
_threads: int | None = None


def _forget_parent() -> None:
    global _pool, _openmp
    _pool, _openmp = _Pool(), NO_TEAM


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def get_num_threads() -> int:
    """Return how many threads a call may use, the calling thread included."""
    global _threads
    if _threads is None:
        given = os.environ.get("XENT_NUM_THREADS", "")
        _threads = int(given) if given.isdigit() and int(given) > 0 else available_processors()
    return _threads


def set_num_threads(threads: int) -> None:
    """Set how many threads a call may use, for all calls of this process."""
    global _threads
    if threads < 1:
        raise ValueError(f"set_num_threads(threads=...): found {threads}, expected 1 or more")
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
    if uses_openmp():
        kernel(_openmp, threads, work, rows, piece, arguments)
        return
    call = _Call(kernel, work, rows, piece, arguments)
    _pool.ask(call, threads - 1)
    call.finish()
