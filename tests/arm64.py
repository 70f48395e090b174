"""Compile kernels of the CPU for arm64, which is not here: python arm64.py FILE, with the signatures of `signatures`.

Numba compiles for the machine it runs on, and links what it compiled into the process. Here it is told of another
machine, and what links is replaced: machine code is made from the start, and never called.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import pickle
import sys
from typing import Any

TRIPLE = "aarch64-unknown-linux-gnu"
KERNELS = {
    "kernels": ("forward", "backward", "statistics", "total", "count_other"),
    "statistics_gradient": ("_kernel",),
    "divergence_kernel": ("divergence",),
    "binary_kernels": ("visit", "count"),
}
"""By the module of xent.backends.cpu that has them."""
LIBRARY = ("__extendhfsf2", "__truncsfhf2", "__gnu_h2f_ieee", "__gnu_f2h_ieee")
"""Functions of a compiler's library, which a process of Python does not have."""


def signatures() -> dict[str, list[Any]]:
    """The signatures with which calls of this processor compile the kernels."""
    import numpy as np

    from xent.backends.binary_protocol import Elements
    from xent.backends.cpu.backend import CpuBackend
    from xent.backends.cpu.binary_backend import CpuBinary
    from xent.backends.cpu.divergence_kernel import CpuDivergence
    from xent.backends.cpu.tile import ROW_CLASSES
    from xent.divergence import Divergence
    from xent.objective import Objective

    backend, binary, labels, plain = CpuBackend(), CpuBinary(), np.array([0, 2]), Objective()
    for dtype in (np.float64, np.float32, np.float16, np.uint16):
        logits = np.zeros((2, 3), dtype)
        many = np.zeros((2, ROW_CLASSES), dtype)  # for which loops run along the classes
        wide = np.float64 if dtype == np.float64 else np.float32
        for x in (logits, many):
            for objective in (plain, Objective(z_loss=0.1)):
                _, saved, _ = backend.forward_backward(x, labels, 1.0, objective)
                backend.backward(x, labels, saved, 1.0, objective)
            backend.statistics(x, labels, plain)
        statistics = backend.statistics(logits, labels, plain)
        backend.statistics_gradient(logits, labels, statistics, (np.ones(2, wide),) * 3, plain)
        backend.total(np.zeros(2, wide))
        CpuDivergence().forward_backward(logits, logits, labels, 1.0, Divergence())
        elements = Elements(logits, np.zeros((2, 3), dtype), plain, sample_weight=np.ones((2, 1)))
        binary.visit(elements, 1.0)
        binary.count(elements)
    backend.count(labels, None, -100)
    return {name: list(dispatcher.signatures) for name, dispatcher in dispatchers().items()}


def dispatchers() -> dict[str, Any]:
    """The kernels by their names."""
    modules = {name: importlib.import_module(f"xent.backends.cpu.{name}") for name in KERNELS}
    return {f"{module}.{name}": getattr(modules[module], name) for module, names in KERNELS.items() for name in names}


class Unlinked:
    """As much of an execution engine as compiling takes."""

    def __init__(self, module: Any, machine: Any, use_lmm: Any = None) -> None:
        self.target_data, self.room = machine.target_data, ctypes.create_string_buffer(64)

    def get_global_value_address(self, name: str) -> int:
        return ctypes.addressof(self.room)

    def get_function_address(self, name: str) -> int:
        return ctypes.addressof(self.room)

    def is_symbol_defined(self, name: str) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: None


def main(file: str) -> None:
    from llvmlite import binding

    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    binding.get_process_triple = binding.get_default_triple = lambda: TRIPLE
    binding.get_host_cpu_name = lambda: "generic"
    binding.get_host_cpu_features = binding.targets.FeatureMap
    binding.create_mcjit_compiler = Unlinked
    from numba.core import codegen
    from numba.core.caching import NullCache

    codegen.JitEngine = lambda engine: engine
    with open(file, "rb") as opened:
        wanted = pickle.load(opened)
    sizes: dict[str, list[int]] = {}
    for name, dispatcher in dispatchers().items():
        dispatcher._cache = NullCache()
        for signature in wanted[name]:
            dispatcher.compile(signature)
        codes = list(dispatcher.inspect_asm().values())
        for function in LIBRARY:
            assert not any(function in code for code in codes), f"{name} calls {function}"
        sizes[name] = [code.count("\n") for code in codes]
    print(json.dumps(sizes))


if __name__ == "__main__":
    main(*sys.argv[1:])
