"""Memory for large results and workspaces, kept for the next call when nobody holds it any more.

Fresh memory is dear: the system clears every page before it hands it out, which is a visit of its own to memory, and
a virtual machine may have to ask its host for the page first. A training step asks for arrays of the same size again
and again (the gradient of the logits, the workspace of the linear loss), so a block that is given back is kept here,
as torch does with the memory of a GPU. docs/performance.md has what that saves.

- Only arrays from LEAST bytes on; the C library keeps smaller ones itself.
- A block serves requests of between half of its size and all of it. A request that no idle block serves drops all
  idle blocks before it asks the system, so that keeping never raises the peak of a process.
- At most KEPT bytes lie idle: a quarter of the machine's memory, or what the environment variable XENT_KEPT_BYTES says
  (0 keeps nothing).
- Idle blocks beyond the first UNMARKED bytes, a quarter of KEPT, are marked so that the system may take their pages
  without swapping (MADV_FREE) when memory runs short. Not all are, since a mark is not free: it interrupts all threads
  of the process, and each page is noticed anew when it is written again.

Safe from any thread without a lock: only single operations on a deque, which are atomic. That matters since an array
may die anywhere, in the middle of another call of this module too.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xent.errors import ArgumentError, message

Array = NDArray[Any]

VARIABLE = "XENT_KEPT_BYTES"
LEAST = 2**23
HUGE_PAGE = 2**21


def limit(text: str | None) -> int:
    """Return how many bytes may lie idle, from the text of the environment variable.

    >>> limit("1000000000"), limit("0")
    (1000000000, 0)
    """
    if text is not None and not text.isdecimal():
        raise ArgumentError(message("xent", VARIABLE, f"found {text!r}", "Set it to a number of bytes; 0 keeps none"))
    return _memory_of_machine() // 4 if text is None else int(text)


def _memory_of_machine() -> int:
    """Bytes; 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


KEPT = limit(os.environ.get(VARIABLE))
UNMARKED = KEPT // 4


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return a C-contiguous array of any content, as `numpy.empty` does.

    >>> empty((2, 3), np.float32).shape
    (2, 3)
    """
    kind = np.dtype(dtype)
    sizes = (shape,) if isinstance(shape, int) else shape
    size = math.prod(sizes) * kind.itemsize
    if size < LEAST or not HAS_PRIVATE_PAGES:
        return np.empty(sizes, kind)
    hold = _Hold(_idle_block(size) or _Block(size))
    return np.asarray(hold)[:size].view(kind).reshape(sizes)


def idle_bytes() -> int:
    """What lies idle now."""
    return sum(block.size for block in tuple(_idle))


def release() -> None:
    """Give all idle blocks back to the system."""
    _idle.clear()


# On other systems `numpy.empty` serves: their `mmap` knows no pages that nobody else sees, or no MADV_FREE.
HAS_PRIVATE_PAGES = hasattr(mmap, "MAP_ANONYMOUS") and hasattr(mmap, "MADV_FREE")


class _Block:
    """Pages of the system, given back to it with the object."""

    __slots__ = ("array", "pages", "size")

    def __init__(self, size: int) -> None:
        self.size = -(-size // HUGE_PAGE) * HUGE_PAGE
        self.pages = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Not for the last one: only as much of it as is written should count.
            self.pages.madvise(mmap.MADV_HUGEPAGE, 0, size // HUGE_PAGE * HUGE_PAGE)
        self.array: Array = np.frombuffer(self.pages, np.uint8)


class _Hold:
    """What an array and all of its views keep alive; with the last of them the block becomes idle."""

    __slots__ = ("__array_interface__", "block")

    def __init__(self, block: _Block) -> None:
        self.block = block
        self.__array_interface__ = block.array.__array_interface__

    def __del__(self) -> None:
        if self.block.size > KEPT:
            return
        if idle_bytes() + self.block.size > UNMARKED:
            self.block.pages.madvise(mmap.MADV_FREE)
        _idle.append(self.block)
        while idle_bytes() > KEPT:
            with contextlib.suppress(IndexError):  # another thread took the last one
                _idle.popleft()


_idle: deque[_Block] = deque()


def _idle_block(size: int) -> _Block | None:
    """Take the block that became idle last among those of the right size; none of them: drop all."""
    for _ in range(len(_idle)):
        try:
            block = _idle.pop()
        except IndexError:
            break
        if size <= block.size < 2 * max(size, HUGE_PAGE):
            return block
        _idle.appendleft(block)
    release()
    return None
