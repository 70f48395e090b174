"""Which instructions the processor has.

| internal | why it is used |
|---|---|
| `llvmlite.binding.get_host_cpu_features` | Numba does not say which instructions there are |
| `numba.core.config.CPU_FEATURES` | nor for which it compiles, where NUMBA_CPU_FEATURES or NUMBA_CPU_NAME say so |
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import binding
from numba.core import config as numba_config

config: Any = numba_config  # its settings are made at import, where no type checker sees them
_ = binding.get_host_cpu_features, config.CPU_FEATURES

X86, ARM64 = ("x86_64", "amd64", "i386", "i686"), ("aarch64", "arm64")


def has_any_instruction_set(*names: str) -> bool:
    """Whether the processor has one of these sets of instructions, by LLVM's names."""
    features = binding.get_host_cpu_features()
    return any(features.get(name, False) for name in names)


def compiles_for(instructions: str) -> bool:
    """Whether kernels are compiled for a processor with this set of instructions, by LLVM's name."""
    chosen = config.CPU_FEATURES
    return has_any_instruction_set(instructions) if chosen is None else f"+{instructions}" in chosen.split(",")


def converts_float16() -> bool:
    """Whether kernels are compiled for a processor with instructions from and to float16.

    Without them LLVM calls functions of a compiler's library, which a process of Python does not have: it would abort.
    """
    machine = platform.machine().lower()
    if machine in X86:
        return compiles_for("f16c")
    return machine in ARM64
