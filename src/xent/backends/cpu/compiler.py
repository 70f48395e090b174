"""Numba's compiler, for functions that are entered from Python and for those that only compiled code calls.

`EntryCompiler` makes machine code as Numba does, with the widest vector registers.

A function that other compiled code calls is linked into it, optimised with it once more, and translated to machine
code there. Numba translates it by itself all the same, to what nobody ever runs: with four levels of calls that is most
of the time that a kernel takes to compile. `LinkedCompiler` leaves it out, and `PartCompiler` the optimisation too, for
what is a whole kernel but for its entry. (To optimise no part before it is linked would save little more, and costs
16-bit logits a tenth of their speed.)
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc  # type: ignore[attr-defined]
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.lowering import Lower
from numba.core.typed_passes import NativeLowering


class WidestLowering(Lower):  # type: ignore[misc]
    """Functions whose loops use the widest vector registers.

    For Intel's processors the compiler keeps to 256 of the 512 bits, because early ones lowered their clock. On a
    recent one (Emerald Rapids) 512 make forward and backward of rows of 50257 logits 1.6 times as fast (two threads).
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
        found, library = state["cr"], state.library
        handle = _dynfunc.make_function(found.fndesc.lookup_module(), library.name, "", 0, found.env, (library,))
        state.targetctx.insert_user_function(handle, found.fndesc, [library])
        state["cr"] = found._replace(cfunc=handle)
        return True


class LinkedLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code that is only linked into other code, and translated there."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class PartLibrary(LinkedLibrary):
    """The same, and optimised there too."""

    def _optimize_final_module(self) -> None:
        pass


class EntryCompiler(CompilerBase):  # type: ignore[misc]
    """Of functions that are entered from Python."""

    lowering: type[NativeLowering] = EntryLowering

    def define_pipelines(self) -> list[Any]:
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.passes = [
            (self.lowering, name) if step is NativeLowering else (step, name) for step, name in passes.passes
        ]
        passes.finalize()
        return [passes]


class LinkedCompiler(EntryCompiler):
    """Of functions that compiled code calls."""

    lowering = LinkedLowering
    library: type[LinkedLibrary] = LinkedLibrary

    def define_pipelines(self) -> list[Any]:
        self.state.library = self.library(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        return super().define_pipelines()


class PartCompiler(LinkedCompiler):
    """Of functions that hold a kernel which one function calls."""

    library = PartLibrary
