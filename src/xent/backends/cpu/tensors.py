"""The CPU backend for torch: tensors seen as NumPy arrays, and results as tensors, without a copy.

NumPy has no bfloat16, so such tensors are handed on as the bits of their numbers. Gradients lie in memory that is kept
for the next call (xent/memory.py). The threads are torch's, and so is their number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xent.backends.cpu.backend import CpuBackend
from xent.backends.cpu.linear_steps import CpuSteps
from xent.backends.cpu.products import library_of_torch, side_by_side
from xent.backends.cpu.sampled_steps import make_steps
from xent.backends.protocol import Backend, Statistics
from xent.linear.backend import LinearBackend
from xent.linear.contrast import Contrast, Side
from xent.linear.driver import Gradients, Layer, Wanted
from xent.linear.plan import Plan
from xent.objective import Objective
from xent.sparse import is_sparse

Array = NDArray[Any]

NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.uint16),
}


class TensorBackend:
    """A backend of NumPy arrays for tensors (`xent.backends.Backend`)."""

    def __init__(self, arrays: Backend) -> None:
        self.arrays = arrays
        self.reads_values, self.one_visit = arrays.reads_values, arrays.one_visit
        self.has_second_derivatives = arrays.has_second_derivatives

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of losses and arithmetic."""
        return torch.float64 if dtype == torch.float64 else torch.float32

    def forward(self, logits: Tensor, target: Tensor, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return losses and saved numbers of the rows."""
        x = as_array(logits)
        loss, saved = self.arrays.forward(x, target_array(target, x), on_arrays(objective))
        return torch.from_numpy(loss), torch.from_numpy(saved)

    def backward(
        self,
        logits: Tensor,
        target: Tensor,
        saved: Tensor,
        row_scale: Tensor | float,
        objective: Objective,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient of sum(row_scale * loss)."""
        x = as_array(logits)
        y, weighted = target_array(target, x), on_arrays(objective)
        scale, room = scale_array(row_scale, x), None if out is None else as_array(out)
        return as_tensor(self.arrays.backward(x, y, saved.numpy(), scale, weighted, out=room), logits.dtype)

    def forward_backward(
        self,
        logits: Tensor,
        target: Tensor,
        row_scale: Tensor | float,
        objective: Objective,
        *,
        out: Tensor | None = None,
        **after: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses, saved numbers and gradient."""
        x = as_array(logits)
        y, weighted = target_array(target, x), on_arrays(objective)
        scale, room = scale_array(row_scale, x), None if out is None else as_array(out)
        loss, saved, gradient = self.arrays.forward_backward(x, y, scale, weighted, out=room, **after)
        return torch.from_numpy(loss), torch.from_numpy(saved), as_tensor(gradient, logits.dtype)

    def statistics(self, logits: Tensor, labels: Tensor, objective: Objective) -> Statistics:
        """Return the statistics of each row."""
        x = as_array(logits)
        return Statistics(*map(torch.from_numpy, self.arrays.statistics(x, target_array(labels, x), objective)))

    def statistics_gradient(
        self,
        logits: Tensor,
        labels: Tensor,
        statistics: Statistics,
        upstream: tuple[Tensor, Tensor, Tensor],
        objective: Objective,
        *,
        out: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient of the statistics."""
        x = as_array(logits)
        known = Statistics(None, statistics.entropy.numpy(), statistics.lse.numpy(), None, None)
        numbers = tuple(as_array(tensor.reshape(-1)) for tensor in upstream)
        room = None if out is None else as_array(out)
        gradient = self.arrays.statistics_gradient(x, target_array(labels, x), known, numbers, objective, out=room)
        return as_tensor(gradient, logits.dtype)

    def count(
        self, labels: Tensor, weight: Tensor | None, ignore_index: int, sample_weight: Tensor | None = None
    ) -> Any:
        """Return the weighted count of the labels that are not `ignore_index`."""
        numbers = (None if tensor is None else tensor.detach().double().numpy() for tensor in (weight, sample_weight))
        weights, of_rows = numbers
        return self.arrays.count(labels_array(labels), weights, ignore_index, of_rows)

    def total(self, losses: Tensor) -> float:
        """Return the sum of the losses."""
        return float(self.arrays.total(losses.numpy()))


@dataclass(frozen=True)
class TensorLinearBackend:
    """The linear loss of NumPy arrays for tensors (`xent.linear.backend.LinearBackend`)."""

    arrays: LinearBackend

    def forward(self, layer: Layer, objective: Objective) -> tuple[Tensor, Tensor]:
        """Return losses and saved numbers of the rows."""
        loss, saved = self.arrays.forward(layer_arrays(layer), on_arrays(objective))
        return torch.from_numpy(loss), torch.from_numpy(saved)

    def forward_backward(
        self, layer: Layer, row_scale: Tensor | float, objective: Objective, wanted: Wanted
    ) -> tuple[Tensor, Tensor, Gradients]:
        """Return losses, saved numbers and the wanted gradients."""
        arrays = layer_arrays(layer)
        scale = scale_array(row_scale, arrays.input)
        loss, saved, gradients = self.arrays.forward_backward(arrays, scale, on_arrays(objective), wanted)
        return torch.from_numpy(loss), torch.from_numpy(saved), gradient_tensors(gradients)

    def backward(
        self, layer: Layer, saved: Tensor, row_scale: Tensor | float, objective: Objective, wanted: Wanted
    ) -> Gradients:
        """Return the wanted gradients."""
        arrays = layer_arrays(layer)
        scale = scale_array(row_scale, arrays.input)
        return gradient_tensors(self.arrays.backward(arrays, saved.numpy(), scale, on_arrays(objective), wanted))

    def statistics(self, layer: Layer, objective: Objective) -> Statistics:
        """Return the statistics of each row."""
        return Statistics(*map(torch.from_numpy, self.arrays.statistics(layer_arrays(layer), objective)))

    def statistics_gradient(
        self,
        layer: Layer,
        statistics: Statistics,
        upstream: tuple[Tensor, Tensor, Tensor],
        objective: Objective,
        wanted: Wanted,
    ) -> Gradients:
        """Return the wanted gradients of the statistics."""
        known = Statistics(None, statistics.entropy.numpy(), statistics.lse.numpy(), None, None)
        numbers = tuple(as_array(tensor) for tensor in upstream)
        gradients = self.arrays.statistics_gradient(layer_arrays(layer), known, numbers, objective, wanted)
        return gradient_tensors(gradients)

    def contrast(self, layer: Layer, logit_scale: float, *, symmetric: bool, own: bool = True) -> Contrast:
        """Return losses and log-sum-exps of a contrastive loss."""
        found = self.arrays.contrast(layer_arrays(layer), logit_scale, symmetric=symmetric, own=own)
        return Contrast(*map(torch.from_numpy, found))

    def contrast_with_gradients(
        self, layer: Layer, logit_scale: float, scale: float, wanted: Wanted
    ) -> tuple[Contrast, Gradients]:
        """Return the same and the wanted gradients."""
        arrays = layer_arrays(layer)
        found, gradients = self.arrays.contrast_with_gradients(arrays, logit_scale, scale, wanted)
        return Contrast(*map(torch.from_numpy, found)), gradient_tensors(gradients)

    def contrast_gradients(
        self, layer: Layer, logit_scale: float, rows: Side, columns: Side | None, wanted: Wanted, *, own: bool = True
    ) -> Gradients:
        """Return the wanted gradients."""
        of_rows, of_columns = Side(*(tensor.numpy() for tensor in rows)), None
        if columns is not None:
            of_columns = Side(*(tensor.numpy() for tensor in columns))
        found = self.arrays.contrast_gradients(layer_arrays(layer), logit_scale, of_rows, of_columns, wanted, own=own)
        return gradient_tensors(found)


def steps(layer: Layer, wanted: Wanted, plan: Plan | None = None) -> CpuSteps:
    """The products of a layer, by torch and with its threads."""
    return make_steps(layer, wanted, library_of_torch(), torch.get_num_threads(), plan)


CPU_ARRAYS = CpuBackend(threads=torch.get_num_threads)
CPU = TensorBackend(CPU_ARRAYS)
LINEAR_CPU = TensorLinearBackend(LinearBackend(CPU_ARRAYS, steps))


# ------------------------------------------------------------------------------------------------- tensors and arrays


def as_array(tensor: Tensor) -> Array:
    """The tensor's memory; bfloat16 as the integers of its bits."""
    tensor = tensor.detach()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def as_tensor(array: Array, dtype: torch.dtype) -> Tensor:
    """The array as a tensor, the bits of bfloat16 numbers as such."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype is torch.bfloat16 else tensor


def target_array(target: Tensor, logits: Array) -> Array:
    """Labels as int64, class probabilities in the dtype that the logits are computed in, rows of a few as they are."""
    if not target.is_floating_point():
        return labels_array(target)
    if is_sparse(target):
        rows: Array = target.detach().numpy()
        return rows
    array: Array = target.detach().to(_computing(logits)).numpy()
    return array


def labels_array(labels: Tensor) -> Array:
    """Labels as the kernels take them: int64 without gaps."""
    if labels.dtype is not torch.int64:
        labels = labels.to(torch.int64)
    array: Array = (labels if labels.is_contiguous() else labels.contiguous()).numpy()
    return array


def scale_array(row_scale: Tensor | float, logits: Array) -> Array | float:
    """Row scales as the kernels take them: a number, or one for each row in the computing dtype."""
    if not isinstance(row_scale, Tensor):
        return row_scale
    if not row_scale.ndim:
        return row_scale.item()
    array: Array = row_scale.detach().to(_computing(logits)).reshape(-1).contiguous().numpy()
    return array


def on_arrays(objective: Objective) -> Objective:
    """The objective with its class weights as an array."""
    if objective.weight is None:
        return objective
    return replace(objective, weight=objective.weight.detach().double().contiguous().numpy())


def _computing(logits: Array) -> torch.dtype:
    return torch.float64 if logits.dtype == np.float64 else torch.float32


def layer_arrays(layer: Layer) -> Layer:
    """The tensors of a layer as arrays; class probabilities keep their dtype, and are converted chunk by chunk."""
    target = layer.target
    bias = None if layer.bias is None else np.ascontiguousarray(_memory_of(layer.bias))
    return replace(
        layer,
        input=_memory_of(layer.input),
        weight=_memory_of(layer.weight),
        bias=bias,
        target=_memory_of(target) if target.is_floating_point() else labels_array(target),
        weight_gradient=NUMPY[layer.weight_gradient],
    )


def gradient_tensors(gradients: Gradients) -> Gradients:
    """Gradients as tensors; uint16 stands for bfloat16."""
    return Gradients(
        *(
            None if array is None else as_tensor(array, torch.bfloat16 if array.dtype == np.uint16 else torch.float32)
            for array in gradients
        )
    )


def _memory_of(tensor: Tensor) -> Array:
    """The tensor's memory, bfloat16 as the bits of its numbers; a copy where BLAS needs one."""
    tensor = tensor.detach()
    array = np.asarray(_Memory(tensor if tensor.dtype is torch.bfloat16 else tensor.resolve_neg()))
    return side_by_side(array) if array.ndim == 2 else array


class _Memory:
    """A tensor's memory for NumPy.

    Not `tensor.numpy()`, after which a storage cannot be resized any more: FSDP2 frees gathered weights that way.
    """

    def __init__(self, tensor: Tensor) -> None:
        dtype = NUMPY[tensor.dtype]
        self.tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "strides": tuple(stride * dtype.itemsize for stride in tensor.stride()),
            "typestr": dtype.str,
            "data": (tensor.data_ptr(), False),
        }
