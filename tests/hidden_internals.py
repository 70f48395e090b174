"""Numba's and llvmlite's internals taken away from xent, and from nobody else: for test_numba_internals.py.

python tests/hidden_internals.py detected                 what is missing without each internal, as JSON
python tests/hidden_internals.py values HIDDEN... FILE    losses, gradients and statistics without these internals
python tests/hidden_internals.py threads HIDDEN...        small kernels on two threads, with torch's OpenMP runtime
python tests/hidden_internals.py doctor HIDDEN...         what xent doctor says
"""

import builtins
import contextlib
import importlib
import json
import sys

import numba  # noqa: F401  all of it, before anything is hidden
import numpy as np

# What each group of xent.backends.cpu._numba imports: one of these missing is enough.
MODULES = {
    "pipeline": [
        "numba._dynfunc",
        "numba.core.codegen",
        "numba.core.compiler",
        "numba.core.compiler_machinery",
        "numba.core.lowering",
        "numba.core.registry",
        "numba.core.typed_passes",
    ],
    "instructions": ["llvmlite.ir", "numba.core.cgutils", "numba.np.arrayobj"],
    "openmp": ["llvmlite.ir", "numba.core.cgutils", "numba.np.arrayobj", "numba.core.base", "numba.core.codegen"],
    "cache": ["numba.core.caching", "numba.core.dispatcher"],
    "processor": ["llvmlite.binding"],
}
ATTRIBUTES = {
    "pipeline": [
        ("numba._dynfunc", "", "make_function"),
        ("numba.core.codegen", "JITCodeLibrary", "_finalize_final_module"),
        ("numba.core.codegen", "JITCodeLibrary", "_optimize_final_module"),
        ("numba.core.lowering", "Lower", "setup_function"),
        ("numba.core.registry", "", "cpu_target"),
    ],
    "instructions": [("numba.core.cgutils", "", "get_or_insert_function"), ("numba.np.arrayobj", "", "make_array")],
    "openmp": [("numba.core.cgutils", "", "pack_struct"), ("numba.core.base", "BaseContext", "declare_function")],
    "cache": [("numba.core.caching", "FunctionCache", "_index_key")],
}

import_anything = builtins.__import__


@contextlib.contextmanager
def hidden(modules):
    """Let imports of these modules, or of anything in them, fail in the files of xent."""

    def import_allowed(name, globals=None, locals=None, fromlist=(), level=0):
        if str((globals or {}).get("__name__")).startswith("xent."):
            for wanted in (name, *(f"{name}.{part}" for part in fromlist or ())):
                if any(f"{wanted}.".startswith(f"{module}.") for module in modules):
                    raise ImportError(f"{wanted} is hidden")
        return import_anything(name, globals, locals, fromlist, level)

    builtins.__import__ = import_allowed
    try:
        yield
    finally:
        builtins.__import__ = import_anything


@contextlib.contextmanager
def without(module, owner, name):
    """Take an attribute away from a class (or from a module), wherever it is inherited from."""
    place = importlib.import_module(module)
    for part in owner.split(".") if owner else ():
        place = getattr(place, part)
    if owner:
        place = next(kind for kind in place.__mro__ if name in vars(kind))
    value = vars(place)[name]
    delattr(place, name)
    try:
        yield
    finally:
        setattr(place, name, value)


def missing():
    """The groups that are missing in a fresh import of the CPU kernels."""
    for name in [name for name in sys.modules if name.startswith("xent.backends")]:
        del sys.modules[name]
    importlib.import_module("xent.backends.cpu.kernels")
    return sorted(sys.modules["xent.backends.cpu._numba"].FAILURES)


def detected():
    found = {"": missing()}
    for module in sorted({module for modules in MODULES.values() for module in modules}):
        with hidden([module]):
            found[module] = missing()
    for group, places in ATTRIBUTES.items():
        for place in places:
            with without(*place):
                found[f"{group}: {'.'.join(filter(None, place))}"] = missing()
    return found


def values(path):
    """Losses and gradients of all cases, and statistics of one batch."""
    import torch
    from cases import CASES

    import xent.numpy
    import xent.torch

    results = {}
    for i, case in enumerate(CASES):
        if case.fits("float32"):
            given = case.rounded("float32")
            options = {**case.options, "reduction": "none"}
            loss, gradient = xent.numpy.cross_entropy_value_and_grad(given.logits, given.target, **options)
            results |= {f"loss {i}": loss, f"gradient {i}": gradient}
    for logits in statistics_logits():
        statistics = xent.torch.statistics(torch.from_numpy(logits), torch.arange(len(logits)))
        results |= {f"{name} {logits.shape[1]}": getattr(statistics, name) for name in statistics._fields}
    np.savez(path, **results)


def statistics_logits():
    """Logits for both orders of loops, with label r in row r; some are masked."""
    for shape in ((40, 50), (20, 300)):
        logits = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
        logits[:, -3] = -np.inf
        yield logits


def threads():
    """Two small kernels on two threads, with torch's threads if possible: whether their numbers are right."""
    import torch  # noqa: F401

    from xent.backends.cpu.accumulation import add, convert
    from xent.backends.cpu.threads import over_rows, uses_openmp

    total = np.full(5000, 0.5)
    over_rows(add, (np.arange(5000.0), total, False), len(total), 2)
    numbers = np.random.default_rng(0).normal(0, 1, 5000).astype(np.float32)
    halves, wide = np.empty(5000, np.float16), np.empty(5000, np.float32)
    over_rows(convert, (numbers, halves.view(np.int16)), len(numbers), 2)
    over_rows(convert, (halves.view(np.int16), wide), len(numbers), 2)
    right = np.array_equal(total, np.arange(5000) + 0.5) and np.array_equal(halves, numbers.astype(np.float16))
    return {"right": bool(right and np.array_equal(wide, halves.astype(np.float32))), "openmp": uses_openmp()}


def doctor():
    from xent.cli.doctor import diagnosis

    return diagnosis()["kernels"]


if __name__ == "__main__":
    what, *modules = sys.argv[1:]
    path = modules.pop() if what == "values" else ""
    with hidden(modules):
        print(json.dumps(values(path) if what == "values" else globals()[what]()))
