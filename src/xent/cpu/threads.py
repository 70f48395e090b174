"""Row ranges over the cores: a pool of plain threads that run compiled code without the GIL.

The calling thread always works too; helpers take what it has not come to. Rows are dealt out in chunks, and a row's
result does not depend on the chunk, so results are the same for any number of threads.

Why not Numba's own parallel loops: their "workqueue" layer must not be entered by two threads at once, the OpenMP layer
does not survive a fork, and TBB is a package of its own. Kernels without the GIL over row ranges need none of them.

Safe in these situations:

- Many callers at once: a call owns its chunks; the caller finishes them alone if the helpers are busy elsewhere.
- Calls from inside a helper: the same.
- os.fork, also after first use: the child forgets the parent's threads and starts its own when it needs them.
- Interpreter exit: helpers are daemons that hold nothing between chunks.

The number of threads is that of `set_num_threads`, else of XENT_NUM_THREADS, else of the processors that this process
may use.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

CHUNKS_PER_THREAD = 4


def _processor_number() -> Callable[[], int] | None:
    """Return the function that tells on which processor the calling thread runs, where there is one."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    return getattr(ctypes.CDLL(None), "sched_getcpu", None)


_current_processor = _processor_number()


class _Call:
    """The chunks of one call."""

    def __init__(self, kernel: Callable[..., None], arguments: tuple[Any, ...], chunks: list[tuple[int, int]]) -> None:
        self.kernel = kernel
        self.arguments = arguments
        self.chunks = chunks
        self.unfinished = len(chunks)
        self.lock = threading.Lock()
        self.done = threading.Lock()
        self.done.acquire()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Run chunks until none is left."""
        while True:
            try:
                first, last = self.chunks.pop()
            except IndexError:
                return
            try:
                self.kernel(*self.arguments, first, last)
            except BaseException as error:
                self.error = error
            with self.lock:
                self.unfinished -= 1
                if self.unfinished == 0:
                    self.done.release()


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
    global _pool
    _pool = _Pool()


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
    """Run `kernel(*arguments, first, last)` over all rows, on up to `threads` threads."""
    threads = min(threads, rows)
    if threads <= 1:
        kernel(*arguments, 0, rows)
        return
    pieces = min(rows, threads * CHUNKS_PER_THREAD)
    bounds = [rows * piece // pieces for piece in range(pieces + 1)]
    call = _Call(kernel, arguments, list(zip(bounds[-2::-1], bounds[:0:-1], strict=True)))
    _pool.ask(call, threads - 1)
    call.work()
    call.done.acquire()
    if call.error is not None:
        raise call.error
