"""The divergences of the CPU for torch: tensors seen as NumPy arrays, as in tensors.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.backends.cpu.divergence_kernel import CpuDivergence
from xent.backends.cpu.tensors import as_array, as_tensor, labels_array, scale_array
from xent.divergence import Divergence


class TensorDivergence:
    """The divergences of arrays for tensors (`xent.backends.divergence_protocol.DivergenceBackend`)."""

    def __init__(self, arrays: CpuDivergence) -> None:
        self.arrays = arrays

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None, options: Divergence) -> Tensor:
        """Return the loss of each row."""
        kept = None if labels is None else labels_array(labels)
        return torch.from_numpy(self.arrays.forward(_rows(student), _rows(teacher), kept, options))

    def forward_backward(
        self,
        student: Tensor,
        teacher: Tensor,
        labels: Tensor | None,
        row_scale: Tensor | float,
        options: Divergence,
        *,
        out: Tensor | None = None,
        **after: float,
    ) -> tuple[Tensor, Tensor]:
        """Return the losses and the gradient of sum(row_scale * loss) by the student's logits."""
        x, kept = _rows(student), None if labels is None else labels_array(labels)
        room = None if out is None or out.ndim != 2 else as_array(out)
        scale = scale_array(row_scale, x)
        losses, array = self.arrays.forward_backward(x, _rows(teacher), kept, scale, options, out=room, **after)
        gradient = as_tensor(array, student.dtype)
        if student.ndim == 3:  # positions were moved to rows
            gradient = gradient.reshape(len(student), -1, student.shape[1]).movedim(2, 1).contiguous()
        return torch.from_numpy(losses), gradient


DIVERGENCE_CPU = TensorDivergence(CpuDivergence(threads=torch.get_num_threads))


def _rows(logits: Tensor) -> Any:
    """Logits (N, C) or (N, C, S) as an array (rows, C)."""
    return as_array(logits if logits.ndim == 2 else logits.movedim(1, 2).flatten(0, 1))
