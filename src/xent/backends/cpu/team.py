"""Kernels over rows that several threads share in compiled code: whoever is free takes the next piece.

A `row_kernel` is written for one thread: it ends in the arguments (first, last), the rows to work on. Called from
Python it is

    kernel(team, threads, work, rows, piece, arguments)

and runs `function(*arguments, first, last)` for one piece of rows after the other until work[0], the row at which the
next piece begins, has reached `rows`. Everybody who calls it with the same `work` takes part, without the GIL.

With `team`, the address of an OpenMP runtime's GOMP_parallel, the kernel itself has that many threads of the runtime
take part. This entry is what compilers call for `#pragma omp parallel`; GCC's, LLVM's and Intel's runtimes have it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from xent.backends.cpu.compilation import PART, cached_on_disk

BYTES = ir.IntType(8).as_pointer()
NUMBER = ir.IntType(32)
MEMBER = ir.FunctionType(ir.VoidType(), [BYTES])
# void GOMP_parallel(void (*member)(void *), void *data, unsigned threads, unsigned flags)
PARALLEL = ir.FunctionType(ir.VoidType(), [MEMBER.as_pointer(), BYTES, NUMBER, NUMBER])


def row_kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function of (..., first, last) as a kernel that threads share, and keep the machine code on disk."""
    rows_of = numba.njit(**PART)(function)

    @numba.njit(**PART)  # type: ignore[untyped-decorator]
    def take_part(work: Any, rows: int, piece: int, arguments: Any) -> None:
        first: int = _take(work, piece)
        while first < rows:
            rows_of(*arguments, first, min(first + piece, rows))
            first = _take(work, piece)

    def share(team: int, threads: int, work: Any, rows: int, piece: int, arguments: Any) -> None:
        if team == 0:
            take_part(work, rows, piece, arguments)
        elif _failed_in_team(team, threads, take_part, (work, rows, piece, arguments)):
            # On this thread it can be raised. Should it not come up again (memory has become free), the rows may not be
            # trusted: logits may have given way to their gradient the first time.
            work[0] = 0
            take_part(work, rows, piece, arguments)
            raise MemoryError("a thread of xent had no memory for its scratch")

    return cast(Callable[..., None], cached_on_disk(share, function))


@intrinsic
def _take(typingctx: Any, work: Any, piece: Any) -> Any:
    """Return work[0], and add piece to it, as one step among threads."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        next_row = arrayobj.make_array(work)(context, builder, values[0]).data
        return builder.atomic_rmw("add", next_row, values[1], "monotonic")

    return types.int64(work, types.int64), generate


@intrinsic
def _failed_in_team(typingctx: Any, team: Any, threads: Any, function: Any, arguments: Any) -> Any:
    """Run function(*arguments) on each thread of the team; whether it raised an error on one of them."""
    called = typingctx.resolve_function_type(function, tuple(arguments.types), {})

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        compiled = function.dispatcher.overloads[tuple(called.args)]
        context.active_code_library.add_linking_library(compiled.library)
        failed = cgutils.alloca_once_value(builder, ir.Constant(NUMBER, 0))
        shared = cgutils.pack_struct(builder, [values[3], failed])
        data = cgutils.alloca_once_value(builder, shared)
        member = _member(context, builder.module, compiled.fndesc, shared.type)
        start = builder.inttoptr(values[0], PARALLEL.as_pointer())
        threads_ = builder.trunc(values[1], NUMBER)
        builder.call(start, [member, builder.bitcast(data, BYTES), threads_, NUMBER(0)])
        return builder.icmp_signed("!=", builder.load(failed), NUMBER(0))

    return types.boolean(types.int64, types.int64, function, arguments), generate


def _member(context: Any, module: Any, description: Any, shared: Any) -> Any:
    """Generate what a thread of the team calls: a C function of one pointer, to (arguments, failed)."""
    member = ir.Function(module, MEMBER, name=module.get_unique_name("member"))
    member.linkage = "internal"
    builder = ir.IRBuilder(member.append_basic_block("entry"))
    given = builder.load(builder.bitcast(member.args[0], shared.as_pointer()))
    arguments, failed = cgutils.unpack_tuple(builder, given)
    function = context.declare_function(module, description)
    status, _ = context.call_conv.call_function(
        builder, function, description.restype, description.argtypes, cgutils.unpack_tuple(builder, arguments)
    )
    with builder.if_then(status.is_error, likely=False):
        builder.store(NUMBER(1), failed)
    builder.ret_void()
    return member
