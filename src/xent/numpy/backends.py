"""What computes for arrays: kernels, or NumPy's formulas where there is little to do, or nothing may be compiled."""

from __future__ import annotations

from typing import Any, NamedTuple

from xent.backends.cpu.backend import CpuBackend
from xent.backends.cpu.binary_backend import CpuBinary
from xent.backends.cpu.divergence_kernel import CpuDivergence
from xent.backends.cpu.linear_steps import pair_steps
from xent.backends.cpu.sampled_steps import make_steps
from xent.backends.cpu.threads import get_num_threads
from xent.backends.definitions import (
    NOTHING_IS_COMPILED,
    DefinitionsBackend,
    DefinitionsDivergence,
    DefinitionsLinear,
    DefinitionsLinearDivergence,
)
from xent.backends.definitions_binary import DefinitionsBinary
from xent.backends.few_rows import FewRows, are_few
from xent.linear.backend import LinearBackend
from xent.linear.divergence import LinearDivergence


class Backends(NamedTuple):
    """One for each kind of loss."""

    rows: Any
    divergences: Any
    elements: Any
    linear: Any
    linear_divergences: Any


def _over(rows: Any, divergences: Any, elements: Any) -> Backends:
    """With linear layers, whose logits are made in chunks for these."""
    linear = LinearBackend(rows, lambda layer, wanted: make_steps(layer, wanted, "numpy", get_num_threads()))
    pairs = LinearDivergence(divergences, lambda pair, wanted: pair_steps(pair, wanted, "numpy", get_num_threads()))
    return Backends(rows, divergences, elements, linear, pairs)


KERNELS = _over(CpuBackend(), CpuDivergence(), CpuBinary())
FEW = _over(FewRows(), DefinitionsDivergence(), DefinitionsBinary())
"""They compile nothing, but for some sums of a linear layer."""

if NOTHING_IS_COMPILED:
    rows = DefinitionsBackend()
    layers = DefinitionsLinear(rows), DefinitionsLinearDivergence()
    KERNELS = FEW = Backends(rows, DefinitionsDivergence(), DefinitionsBinary(), *layers)


def backends_for(logits: int) -> Backends:
    """What computes losses of so many logits."""
    return FEW if are_few(logits) else KERNELS
