"""Memory that is too large for the caches: reading ahead of the work, and stores past the caches.

The processor reads ahead by itself, but neither far nor beyond a page of 4 KB. With 8 KB the forward of 2048 x 50257
float32 logits takes 21 to 26 ms, without 28 to 33; for rows of 1000 classes there is no difference.

A plain store first reads the line that it changes: of the gradient of 2048 x 50257 float32 logits, 412 MB for nothing.
Streamed, forward and backward take 1.4 times as long as a copy of the logits, and 1.9 times otherwise. A line can only
be streamed whole, so numbers are made in `staging`, a block in the first-level cache, and leave from there.

It pays where memory has been written before (xent/memory.py): the system clears fresh pages by way of the caches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from xent.backends.cpu.compilation import allocator, device
from xent.backends.cpu.formats import store

LARGE = 2**25  # bytes of an array from which on it is read ahead, or stored past the caches
LINE = 64  # bytes of a line of the caches
PIECE = 512  # numbers of a row that are worked on between two calls of `read_ahead`
AHEAD = 2**13  # bytes
SECOND_LEVEL = 2  # the cache to read into: the first would have to give up what is being worked on


@intrinsic
def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the line of array[index], which may lie behind the end."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = arrayobj.make_array(array)(context, builder, values[0]).data
        what = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, what, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(data, [values[1]]), pointer)
        builder.call(function, [place, number(0), number(SECOND_LEVEL), number(1)])  # 0: to read; 1: data
        return context.get_dummy_value()

    return types.none(array, types.intp), generate


@device
def is_large(array: Any) -> bool:
    """Whether an array will not be found in the caches."""
    return array.size * array.itemsize >= LARGE


@device
def read_ahead(piece: Any) -> None:
    """Ask for as much memory as the piece is long, AHEAD of it."""
    for i in range(0, len(piece), LINE // piece.itemsize):
        _prefetch(piece, i + AHEAD // piece.itemsize)


@intrinsic
def _stream_line(typingctx: Any, target: Any, source: Any, index: Any) -> Any:
    """Copy one line from source[index:] to target[index:], which is aligned to a line, past the caches."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        line = ir.VectorType(context.get_value_type(target.dtype), LINE // (target.dtype.bitwidth // 8))

        def at(array_type: Any, array: Any) -> Any:
            data = arrayobj.make_array(array_type)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [values[2]]), line.as_pointer())

        load = builder.load(at(source, values[1]))
        load.align = target.dtype.bitwidth // 8
        store = builder.store(load, at(target, values[0]), align=LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.none(target, source, types.intp), generate


@allocator
def staging_for(logits: Any, out: Any, size: int) -> Any:
    """Return scratch of out's type for `stream`, `size` long; of length 0 where plain stores serve better.

    They do where the lines of `out` are in the caches anyway: a small array, or the logits themselves.
    """
    streamed = is_large(out) and out.ctypes.data != logits.ctypes.data
    return np.empty(size if streamed else 0, out.dtype)


@intrinsic
def streams_done(typingctx: Any) -> Any:
    """Make streamed lines visible to other threads before anything that is stored later."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


@device
def stream(target: Any, source: Any) -> None:
    """Copy source to target, of the same type and length, without reading target's lines into the caches first."""
    size, items = len(source), LINE // source.itemsize
    head = min(size, (-target.ctypes.data % LINE) // source.itemsize)
    lines = (size - head) // items
    for i in range(head):
        target[i] = source[i]
    for line in range(lines):
        _stream_line(target[head:], source[head:], line * items)
    for i in range(head + lines * items, size):
        target[i] = source[i]


@device
def store_large(target: Any, z: Any, factor: Any, at: int, less: Any, staging: Any) -> None:
    """Store (formats.py) to a part of an array for which `staging_for` gave the staging."""
    if len(staging):
        ready = staging[: len(z)]
        store(ready, z, factor, at, less)
        stream(target, ready)
    else:
        store(target, z, factor, at, less)
