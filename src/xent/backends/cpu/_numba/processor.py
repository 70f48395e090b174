"""Which instructions the processor has.

| internal | why it is used |
|---|---|
| `llvmlite.binding.get_host_cpu_features` | Numba does not say which instructions there are |
"""

from __future__ import annotations

from llvmlite import binding

_ = binding.get_host_cpu_features


def has_any_instruction_set(*names: str) -> bool:
    """Whether the processor has one of these sets of instructions, by LLVM's names."""
    features = binding.get_host_cpu_features()
    return any(features.get(name, False) for name in names)
