"""Entering an OpenMP runtime from compiled code, which then has several threads run a compiled function.

| internal | why it is used |
|---|---|
| `llvmlite.ir` | the C function that a thread of the runtime calls, and an atomic addition: Numba has neither |
| `numba.core.cgutils` | passing the arguments to that function as one structure |
| `numba.np.arrayobj.make_array` | the address of an array's first number |
| `dispatcher.overloads`, `.library`, `.fndesc`, `context.call_conv` | calling a compiled function by its symbol |
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.base import BaseContext
from numba.core.codegen import CodeLibrary
from numba.core.typing.context import BaseContext as TypingContext
from numba.extending import intrinsic
from numba.np import arrayobj

BYTES = ir.IntType(8).as_pointer()
NUMBER = ir.IntType(32)
MEMBER = ir.FunctionType(ir.VoidType(), [BYTES])
# void GOMP_parallel(void (*member)(void *), void *data, unsigned threads, unsigned flags)
PARALLEL = ir.FunctionType(ir.VoidType(), [MEMBER.as_pointer(), BYTES, NUMBER, NUMBER])

# What is called while kernels are compiled has to be there: AttributeError now, in place of one later.
_ = (
    cgutils.alloca_once_value,
    cgutils.pack_struct,
    cgutils.unpack_tuple,
    arrayobj.make_array,
    BaseContext.declare_function,
    CodeLibrary.add_linking_library,
    TypingContext.resolve_function_type,
)


@intrinsic
def atomic_add(typingctx: Any, array: Any, value: Any) -> Any:
    """Return array[0], and add value to it, as one step among threads."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        first = arrayobj.make_array(array)(context, builder, values[0]).data
        return builder.atomic_rmw("add", first, values[1], "monotonic")

    return types.int64(array, types.int64), generate


@intrinsic
def failed_in_team(typingctx: Any, team: Any, threads: Any, function: Any, arguments: Any) -> Any:
    """Run function(*arguments) on each thread of the team; return whether it raised an error on one of them.

    `team` is the address of the runtime's GOMP_parallel.
    """
    called = typingctx.resolve_function_type(function, tuple(arguments.types), {})

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        compiled = function.dispatcher.overloads[tuple(called.args)]
        context.active_code_library.add_linking_library(compiled.library)
        failed = cgutils.alloca_once_value(builder, ir.Constant(NUMBER, 0))
        shared = cgutils.pack_struct(builder, [values[3], failed])
        data = cgutils.alloca_once_value(builder, shared)
        member = _member(context, builder.module, compiled.fndesc, shared.type)
        start = builder.inttoptr(values[0], PARALLEL.as_pointer())
        thread_count = builder.trunc(values[1], NUMBER)
        builder.call(start, [member, builder.bitcast(data, BYTES), thread_count, NUMBER(0)])
        return builder.icmp_signed("!=", builder.load(failed), NUMBER(0))

    return types.boolean(types.int64, types.int64, function, arguments), generate


def _member(context: Any, module: Any, description: Any, shared: Any) -> Any:
    """Generate what a thread of the team calls: a C function of one pointer, to (arguments, failed)."""
    member = ir.Function(module, MEMBER, name=module.get_unique_name("member"))
    member.linkage = "internal"
    builder = ir.IRBuilder(member.append_basic_block("entry"))
    structure = builder.load(builder.bitcast(member.args[0], shared.as_pointer()))
    arguments, failed = cgutils.unpack_tuple(builder, structure)
    function = context.declare_function(module, description)
    status, _ = context.call_conv.call_function(
        builder, function, description.restype, description.argtypes, cgutils.unpack_tuple(builder, arguments)
    )
    with builder.if_then(status.is_error, likely=False):
        builder.store(NUMBER(1), failed)
    builder.ret_void()
    return member
