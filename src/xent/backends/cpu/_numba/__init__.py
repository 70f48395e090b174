"""Every use of the internals of Numba and llvmlite; a test reads the imports of all other files.

Any release of Numba may change these, so `pyproject.toml` has an upper bound on its version, and each group below is
imported on its own. Where one is gone, what takes its place needs only Numba's public interface: slower, and right.
`missing_internals` says so; `xent doctor` shows it.

    pipeline.py      compiler pipelines and flags: which functions become machine code, and with which vector registers
    instructions.py  functions that are one LLVM instruction, and the transposition of a square in registers
    plain.py         the same functions in Python, for when those are gone
    openmp.py        entering the OpenMP runtime from compiled code
    cache.py         the machine code of a kernel on disk
    processor.py     which instructions the processor has
    uncompiled.py    a few of the functions as Python, for when nothing is compiled
"""

from __future__ import annotations

from typing import Any

import numba

FAILURES: dict[str, str] = {}
"""The groups that are gone, by the names of their files, and what Python said when they were imported."""

CONSEQUENCES = {
    "pipeline": "kernels are compiled by plain njit, which takes longer and makes slower code",
    "instructions": "single instructions are replaced by Python functions, several times as slow",
    "openmp": "rows are shared by a pool of xent's own threads, also in programs with torch",
    "cache": "every process compiles its kernels anew",
    "processor": "16-bit matrix products are made in float32, and float16 is converted by Python functions, even on"
    " processors with instructions for them",
}

# What fails when an internal is gone or has another shape.
_GONE = (ImportError, AttributeError, TypeError, KeyError)


def _gone(group: str, error: Exception) -> None:
    FAILURES[group] = f"{type(error).__name__}: {error}"


ENTRY: dict[str, Any] = {}
LINKED: dict[str, Any] = {}
PART: dict[str, Any] = {}
NO_ALLOCATION: dict[str, Any] = {}
"""Options of `njit` beside the public ones; pipeline.py has what they do."""

try:
    from xent.backends.cpu._numba.pipeline import ENTRY, LINKED, NO_ALLOCATION, PART
except _GONE as error:
    _gone("pipeline", error)

try:
    from xent.backends.cpu._numba.instructions import (
        bits_float,
        copy_line,
        fence,
        float_bits,
        float_to_half,
        fused_multiply_add,
        half_to_float,
        maximum,
        prefetch,
        transpose_square,
    )
except _GONE as error:
    _gone("instructions", error)
    from xent.backends.cpu._numba.plain import (
        bits_float,
        copy_line,
        fence,
        float_bits,
        float_to_half,
        fused_multiply_add,
        half_to_float,
        maximum,
        prefetch,
        transpose_square,
    )

atomic_add: Any = None
failed_in_team: Any = None

try:
    from xent.backends.cpu._numba.openmp import atomic_add, failed_in_team
except _GONE as error:
    _gone("openmp", error)

KernelCache: Any = None

try:
    from xent.backends.cpu._numba.cache import KernelCache
except _GONE as error:
    _gone("cache", error)

try:
    from xent.backends.cpu._numba.processor import compiles_for, converts_float16, has_any_instruction_set
except _GONE as error:
    _gone("processor", error)
    from xent.backends.cpu._numba.plain import compiles_for, converts_float16, has_any_instruction_set

if not converts_float16():
    from xent.backends.cpu._numba.plain import float_to_half, half_to_float

if getattr(numba.config, "DISABLE_JIT", 0):
    from xent.backends.cpu._numba.uncompiled import bits_float, float_bits, maximum


def missing_internals() -> list[str]:
    """Return what this version of Numba lacks, and what follows from it; empty if everything is there."""
    return [f"{CONSEQUENCES[group]} (Numba's internals differ: {failure})" for group, failure in FAILURES.items()]


__all__ = [
    "ENTRY",
    "FAILURES",
    "LINKED",
    "NO_ALLOCATION",
    "PART",
    "KernelCache",
    "atomic_add",
    "bits_float",
    "compiles_for",
    "converts_float16",
    "copy_line",
    "failed_in_team",
    "fence",
    "float_bits",
    "float_to_half",
    "fused_multiply_add",
    "half_to_float",
    "has_any_instruction_set",
    "maximum",
    "missing_internals",
    "prefetch",
    "transpose_square",
]
