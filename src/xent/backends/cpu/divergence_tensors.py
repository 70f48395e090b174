"""The divergences of the CPU for torch: tensors seen as NumPy arrays, as in tensors.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.backends.cpu.divergence_kernel import CpuDivergence
from xent.backends.cpu.linear_steps import pair_steps
from xent.backends.cpu.products import library_of_torch
from xent.backends.cpu.tensors import as_array, as_tensor, gradient_tensors, labels_array, layer_arrays, scale_array
from xent.divergence import Divergence
from xent.linear.divergence import LinearDivergence, Pair, PairSteps
from xent.linear.driver import Gradients, Wanted


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


class TensorLinearDivergence:
    """The divergences of two layers of arrays for tensors (`xent.linear.divergence.LinearDivergence`)."""

    def __init__(self, arrays: LinearDivergence) -> None:
        self.arrays = arrays

    def forward(self, pair: Pair, options: Divergence) -> tuple[Tensor, None]:
        """Return the losses of the rows."""
        return torch.from_numpy(self.arrays.forward(_pair_arrays(pair), options)[0]), None

    def forward_backward(
        self, pair: Pair, row_scale: Tensor | float, options: Divergence, wanted: Wanted
    ) -> tuple[Tensor, None, Gradients]:
        """Return the losses and the wanted gradients."""
        arrays = _pair_arrays(pair)
        scale = scale_array(row_scale, arrays.student.input)
        losses, _, gradients = self.arrays.forward_backward(arrays, scale, options, wanted)
        return torch.from_numpy(losses), None, gradient_tensors(gradients)

    def backward(
        self, pair: Pair, saved: None, row_scale: Tensor | float, options: Divergence, wanted: Wanted
    ) -> Gradients:
        """Return the wanted gradients."""
        return self.forward_backward(pair, row_scale, options, wanted)[2]


def _pair_arrays(pair: Pair) -> Pair:
    labels = None if pair.labels is None else labels_array(pair.labels)
    return Pair(layer_arrays(pair.student), layer_arrays(pair.teacher), labels)


def _steps(pair: Pair, wanted: Wanted) -> PairSteps:
    """The products of both layers, by torch and with its threads."""
    return pair_steps(pair, wanted, library_of_torch(), torch.get_num_threads())


DIVERGENCE_ARRAYS = CpuDivergence(threads=torch.get_num_threads)
LINEAR_DIVERGENCE_CPU = TensorLinearDivergence(LinearDivergence(DIVERGENCE_ARRAYS, _steps))
DIVERGENCE_CPU = TensorDivergence(DIVERGENCE_ARRAYS)


def _rows(logits: Tensor) -> Any:
    """Logits (N, C) or (N, C, S) as an array (rows, C)."""
    return as_array(logits if logits.ndim == 2 else logits.movedim(1, 2).flatten(0, 1))
