"""Arrays too large for the caches: prefetching, and stores that bypass the caches.

The processor prefetches by itself, but neither far nor beyond a page of 4 KB. With 8 KB the forward of 2048 x 50257
float32 logits takes 21 to 26 ms, without 28 to 33; for rows of 1000 classes there is no difference.

A plain store first reads the line that it changes: for the gradient of 2048 x 50257 float32 logits, 412 MB that are
read for nothing. With streaming stores, forward and backward take 1.4 times as long as a copy of the logits, and 1.9
times otherwise. Only a whole line can be streamed, so results are first written to `staging`, a block in the
first-level cache, and streamed from there.

This pays in memory that has been written before (xent/memory.py): the system clears new pages through the caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from xent.backends.cpu._numba import copy_line, fence, prefetch
from xent.backends.cpu._numba.plain import LINE
from xent.backends.cpu.compilation import allocator, device, sequence
from xent.backends.cpu.formats import store

LARGE = 2**25  # bytes; a larger array is prefetched, or stored past the caches
PIECE = 512  # numbers of a row that are processed between two calls of `read_ahead`
AHEAD = 2**13  # bytes between the numbers that are processed and those that are prefetched

streams_done = fence
"""Makes streamed lines visible to other threads before anything that is stored later."""


@device
def is_large(array: Any) -> bool:
    """Whether an array is too large for the caches."""
    return array.size * array.itemsize >= LARGE


@device
def read_ahead(piece: Any) -> None:
    """Prefetch a piece of the same length, AHEAD bytes further on."""
    for i in range(0, len(piece), LINE // piece.itemsize):
        prefetch(piece, i + AHEAD // piece.itemsize)


@allocator
def staging_for(logits: Any, out: Any, size: int) -> Any:
    """Return scratch of out's type for `stream`, `size` long; of length 0 where plain stores are faster.

    They are where the lines of `out` are in the caches anyway: a small array, or the logits themselves.
    """
    streamed = is_large(out) and out.ctypes.data != logits.ctypes.data
    return np.empty(size if streamed else 0, out.dtype)


@device
def stream(target: Any, source: Any) -> None:
    """Copy source to target, of the same type and length, without reading target's lines into the caches first."""
    size, items = len(source), LINE // source.itemsize
    head = min(size, (-target.ctypes.data % LINE) // source.itemsize)
    lines = (size - head) // items
    for i in range(head):
        target[i] = source[i]
    for line in range(lines):
        copy_line(target[head:], source[head:], line * items)
    for i in range(head + lines * items, size):
        target[i] = source[i]


@sequence
def store_large(target: Any, z: Any, factor: Any, at: int, less: Any, after: float, staging: Any) -> None:
    """`store` (formats.py) to a part of the array for which `staging_for` made `staging`."""
    if len(staging):
        ready = staging[: len(z)]
        store(ready, z, factor, at, less, after)
        stream(target, ready)
    else:
        store(target, z, factor, at, less, after)
