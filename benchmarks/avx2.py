"""Code for processors that have AVX2 and no AVX-512, made and measured on one that has both: ours and torch's."""

from __future__ import annotations

import os

from xent.bench.peers import EAGER, IMPLEMENTATIONS, NUMPY, OURS, REUSED

AVX2 = "AVX2"
MEASURED = tuple(one for one in IMPLEMENTATIONS if one.name in (OURS, NUMPY, EAGER, REUSED))
"""Whose code the settings change; compiled by torch 2.13 under its setting, `F.cross_entropy` is wrong."""
PROCESSOR = "znver3"
"""LLVM's name of the processor whose code Numba makes: the last of AMD's without AVX-512."""


def environment() -> dict[str, str]:
    """What Numba and torch read when they are imported."""
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    chosen = (f"{'+' if has and 'avx512' not in name else '-'}{name}" for name, has in sorted(features.items()))
    return {"NUMBA_CPU_NAME": PROCESSOR, "NUMBA_CPU_FEATURES": ",".join(chosen), "ATEN_CPU_CAPABILITY": "avx2"}


def is_asked_for() -> bool:
    """Whether this process makes such code."""
    return os.environ.get("NUMBA_CPU_NAME") == PROCESSOR
