"""The binary cross-entropy of torch tensors in the CPU's memory: seen as NumPy arrays, without a copy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xent.backends.binary_protocol import Elements, Visited
from xent.backends.cpu.binary_backend import CpuBinary
from xent.backends.cpu.tensors import as_array, as_tensor


class TensorBinary:
    """The kernels of arrays for tensors (`xent.backends.binary_protocol.BinaryBackend`)."""

    reads_values = True
    one_visit = True

    def __init__(self) -> None:
        self.arrays = CpuBinary(threads=torch.get_num_threads)

    def visit(
        self,
        elements: Elements,
        scale: Tensor | float | None = None,
        *,
        losses: bool = False,
        out: Tensor | None = None,
        **more: float,
    ) -> Visited:
        """Return losses, their sum, and the gradient of sum(scale * loss) if there is a scale."""
        arrays, logits = _arrays(elements), elements.logits
        if isinstance(scale, Tensor):
            wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
            each: Any = (
                scale.detach().to(wide).expand(logits.shape).contiguous().numpy() if scale.ndim else scale.item()
            )
        else:
            each = scale
        room = None if out is None else as_array(out)
        found = self.arrays.visit(arrays, each, losses=losses, out=room, **more)
        return Visited(
            None if found.losses is None else torch.from_numpy(found.losses),
            found.total,
            found.ignored,
            None if found.gradient is None else as_tensor(found.gradient, logits.dtype),
        )

    def count(self, elements: Elements) -> float:
        """Return the number of elements that count, or the sum of their sample weights."""
        return self.arrays.count(_arrays(elements))


CPU_BINARY = TensorBinary()


def _arrays(elements: Elements) -> Elements:
    """The arrays of a call; weights in float64 or float32."""
    weights = (elements.weight, elements.pos_weight, elements.sample_weight)
    weight, pos_weight, sample_weight = (
        None if tensor is None else as_array(tensor if tensor.element_size() > 2 else tensor.float())
        for tensor in weights
    )
    return replace(
        elements,
        logits=as_array(elements.logits),
        target=as_array(elements.target),
        weight=weight,
        pos_weight=pos_weight,
        sample_weight=sample_weight,
    )
