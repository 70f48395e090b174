"""Memory for large results and workspaces, kept for the next call when nothing refers to it any more.

Allocating fresh memory is expensive: the system clears every page before it hands it out, which is a visit of its own
to memory, and a virtual machine may have to ask its host for the page first. A training step allocates arrays of the
same size again and again (the gradient of the logits, the workspace of the linear loss), so a block that is no longer
used is kept here, as torch does with the memory of a GPU. docs/performance.md has what that saves.

- Only arrays from LEAST bytes on; the C library keeps smaller ones itself.
- A block serves requests of between half of its size and all of it. A request that no idle block serves drops all
  idle blocks before it asks the system, so that keeping never raises the peak of a process.
- At most `limit()` bytes are idle: a quarter of the memory that this process may use, which is the machine's or what
  the limits of its container (cgroup) leave, and no more than BY_DEFAULT; or what the environment variable
  XENT_KEPT_BYTES says (0 keeps nothing).
- Idle blocks beyond the first quarter of that limit are marked so that the system may take their pages without
  swapping (MADV_FREE) when memory runs short. Not all are, since a mark is not free: it interrupts all threads of the
  process, and each page is noticed anew when it is written again.
- `release` gives all idle blocks back to the system, marked or not.

Safe from any thread without a lock: only single operations on a deque, which are atomic. That matters since an array
may die anywhere, in the middle of another call of this module too.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections import deque
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from xent.environment import setting

Array = NDArray[Any]

VARIABLE = "XENT_KEPT_BYTES"
BY_DEFAULT = 2**30
LEAST = 2**23
HUGE_PAGE = 2**21
UNMARKED_PART = 4  # the first quarter of what may be idle is not marked


@cache
def limit() -> int:
    """Return how many bytes may be idle. ArgumentError if the environment variable is no number."""
    chosen = setting(VARIABLE)
    return min(BY_DEFAULT, available_memory() // 4) if chosen is None else chosen


# ------------------------------------------------------------------------------------ how much memory there is


def available_memory(root: Path = Path("/")) -> int:
    """Return how many bytes this process may use: the machine's, or fewer in a container; 0 where that is unknown."""
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
    with contextlib.suppress(ValueError):  # files of another format than Linux's
        return min([machine, *_cgroup_limits(root)])
    return machine


def _cgroup_limits(root: Path) -> list[int]:
    """Return the memory limits of the process's control groups and of the groups around them, version 1 and 2.

    `root` is where proc and sys are. A group without a limit says "max" (version 2), or a number larger than any memory
    (version 1).
    """
    limits = []
    mounts = _cgroup_mounts(root)
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)  # "0::/user.slice" (version 2), "5:memory,hugetlb:/docker/abc"
        version = 2 if not controllers else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"
        for mounted_group, mount_point in mounts[version]:
            top = root / mount_point.lstrip("/")
            # A container often sees its own group as the top of the mount, whatever the path says.
            inside = Path(group).is_relative_to(mounted_group)
            folder = top / Path(group).relative_to(mounted_group) if inside else top
            for ancestor in (folder, *folder.parents):
                if not ancestor.is_relative_to(top):
                    break
                limits += [int(text) for text in _lines(ancestor / name) if text.isdecimal()]
    return limits


def _cgroup_mounts(root: Path) -> dict[int, list[tuple[str, str]]]:
    """Return (group at its top, mount point) of the hierarchies that limit memory, by version."""
    mounts: dict[int, list[tuple[str, str]]] = {1: [], 2: []}
    for line in _lines(root / "proc/self/mountinfo"):
        # 36 35 98:0 /group /mount/point options - type source options
        fields, _, about = line.partition(" - ")
        group, mount_point = fields.split()[3:5]
        kind, *_, options = about.split()
        if kind == "cgroup2":
            mounts[2].append((group, mount_point))
        elif kind == "cgroup" and "memory" in options.split(","):
            mounts[1].append((group, mount_point))
    return mounts


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


# -------------------------------------------------------------------------------------------------- blocks of memory


def empty(shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return a C-contiguous array of any content, as `numpy.empty` does.

    >>> empty((2, 3), np.float32).shape
    (2, 3)
    """
    kind = np.dtype(dtype)
    sizes = (shape,) if isinstance(shape, int) else shape
    size = math.prod(sizes) * kind.itemsize
    may_keep = limit()
    if size < LEAST or not HAS_PRIVATE_PAGES:
        return np.empty(sizes, kind)
    hold = _Hold(_idle_block(size) or _Block(size), may_keep)
    return np.asarray(hold)[:size].view(kind).reshape(sizes)


def idle_bytes() -> int:
    """Return how much memory is idle now."""
    return sum(block.size for block in tuple(_idle))


def release() -> None:
    """Give all idle memory back to the system."""
    _idle.clear()


# On other systems `numpy.empty` serves: their `mmap` knows no pages that nobody else sees, or no MADV_FREE.
HAS_PRIVATE_PAGES = hasattr(mmap, "MAP_ANONYMOUS") and hasattr(mmap, "MADV_FREE")


class _Block:
    """Pages of the system, given back to it with the object."""

    __slots__ = ("array", "pages", "size")

    def __init__(self, size: int) -> None:
        self.size = -(-size // HUGE_PAGE) * HUGE_PAGE
        try:
            self.pages = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"xent: no memory for an array of {size} bytes ({error})") from None
        if hasattr(mmap, "MADV_HUGEPAGE"):
            # Not for the last one: only as much of it as is written should count.
            self.advise(mmap.MADV_HUGEPAGE, size // HUGE_PAGE * HUGE_PAGE)
        self.array: Array = np.frombuffer(self.pages, np.uint8)

    def advise(self, advice: int, size: int) -> None:
        """Give the system a hint, which it may refuse: a kernel without huge pages does."""
        with contextlib.suppress(OSError):
            self.pages.madvise(advice, 0, size)


class _Hold:
    """What an array and all of its views keep alive; with the last of them the block becomes idle."""

    __slots__ = ("__array_interface__", "block", "may_keep")

    def __init__(self, block: _Block, may_keep: int) -> None:
        self.block = block
        self.may_keep = may_keep
        self.__array_interface__ = block.array.__array_interface__

    def __del__(self) -> None:
        if self.block.size > self.may_keep:
            return
        if idle_bytes() + self.block.size > self.may_keep // UNMARKED_PART:
            self.block.advise(mmap.MADV_FREE, self.block.size)
        _idle.append(self.block)
        while idle_bytes() > self.may_keep:
            with contextlib.suppress(IndexError):  # another thread took the last one
                _idle.popleft()


_idle: deque[_Block] = deque()


def _idle_block(size: int) -> _Block | None:
    """Take the block that became idle last among those of the right size; drop all if there is none."""
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
