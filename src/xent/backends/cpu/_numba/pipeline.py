"""Numba's compiler, for functions that Python calls and for those that only compiled code calls.

`EntryCompiler` makes machine code as Numba does, with the widest vector registers.

A function that other compiled code calls is linked into it, optimised with it once more, and translated to machine
code there. Numba also translates it on its own, to code that nothing ever runs: with four levels of calls that is most
of the time that a kernel takes to compile. `LinkedCompiler` leaves it out. `PartCompiler` leaves out the optimisation
as well, for functions that have no loops over numbers of their own: each level of calls was optimised again, which took
twice as long as the kernel at the end. (Functions with such loops are optimised before they are linked, which is cheap;
without it kernels of 16-bit logits are a tenth slower.)

| internal of Numba | why it is used |
|---|---|
| `CompilerBase`, `DefaultPassBuilder`, `register_pass` | a pipeline with a lowering pass of our own |
| `Lower.setup_function`, `set.add(attributes)` | the attribute for 512-bit registers; there is no option for it |
| `NativeLowering`, the flag `no_compile`, `_dynfunc.make_function` | stopping before machine code is made |
| `JITCodeLibrary._finalize_final_module`, `._optimize_final_module` | leaving out the two steps described above |
| the options `_nrt`, `no_cpython_wrapper`, `no_cfunc_wrapper` | no reference counts, no unused entry points |
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.registry import cpu_target
from numba.core.typed_passes import NativeLowering

# What is overridden or called below has to be there: AttributeError now, in place of wrong code later.
_ = (
    _dynfunc.make_function,
    JITCodeLibrary._finalize_final_module,
    JITCodeLibrary._optimize_final_module,
    JITCodeLibrary._finalize_dynamic_globals,
    Lower.setup_function,
    NativeLowering.lowering_class,
    NativeLowering.run_pass,
    DefaultPassBuilder.define_nopython_pipeline,
    Flags.no_compile,
    cpu_target.options._nrt,
    cpu_target.options.no_cpython_wrapper,
    cpu_target.options.no_cfunc_wrapper,
)


class WidestLowering(Lower):  # type: ignore[misc]
    """Lowering of functions whose loops use the widest vector registers.

    For Intel's processors LLVM uses only 256 of the 512 bits, because early ones lowered their clock. On a recent one
    (Emerald Rapids) forward and backward of rows of 50257 logits are 1.6 times as fast with 512 bits (two threads).
    """

    def setup_function(self, description: Any) -> None:
        super().setup_function(description)
        # llvmlite's own `add` refuses attributes that have a value.
        set.add(self.function.attributes, '"prefer-vector-width"="512"')


@register_pass(mutates_CFG=True, analysis_only=False)
class EntryLowering(NativeLowering):  # type: ignore[misc]
    """Numba's pass from its own intermediate code to LLVM's and to machine code, with `WidestLowering`."""

    _name = "xent_entry_lowering"

    @property
    def lowering_class(self) -> type[Lower]:
        return WidestLowering


@register_pass(mutates_CFG=True, analysis_only=False)
class LinkedLowering(EntryLowering):
    """The same as far as LLVM's code. Callers find it in the library, by a handle that cannot be called."""

    _name = "xent_linked_lowering"

    def run_pass(self, state: Any) -> bool:
        state.flags.no_compile = True
        super().run_pass(state)
        result, library = state["cr"], state.library
        handle = _dynfunc.make_function(result.fndesc.lookup_module(), library.name, "", 0, result.env, (library,))
        state.targetctx.insert_user_function(handle, result.fndesc, [library])
        state["cr"] = result._replace(cfunc=handle)
        return True


class LinkedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code that is linked into other code and translated to machine code there."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class PartLibrary(LinkedLibrary):
    """The same, and also optimised only there."""

    def _optimize_final_module(self) -> None:
        pass


class EntryCompiler(CompilerBase):  # type: ignore[misc]
    """Compiler of functions that Python calls."""

    lowering: type[NativeLowering] = EntryLowering

    def define_pipelines(self) -> list[Any]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (self.lowering, name) if step is NativeLowering else (step, name) for step, name in passes.passes
        ]
        passes.finalize()
        return [passes]


class LinkedCompiler(EntryCompiler):
    """Compiler of functions that only compiled code calls."""

    lowering = LinkedLowering
    library: type[LinkedLibrary] = LinkedLibrary

    def define_pipelines(self) -> list[Any]:
        self.state.library = self.library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()


class PartCompiler(LinkedCompiler):
    """Compiler of functions that only call others, up to a whole kernel."""

    library = PartLibrary


# Options of `njit`. What only compiled code calls needs no entry from Python or C.
ENTRY = {"pipeline_class": EntryCompiler}
LINKED = {"pipeline_class": LinkedCompiler, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
PART = {**LINKED, "pipeline_class": PartCompiler}
# No reference count for each slice: that took 0.15 of 0.28 us for a row of 1000 classes, and 40 % of the time at 50257.
NO_ALLOCATION = {"_nrt": False}
