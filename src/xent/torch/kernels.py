"""The CPU kernels on tensors: torch's memory seen as NumPy arrays, and results as tensors, without a copy.

NumPy has no bfloat16, so such tensors are handed on as the bits of their numbers. Gradients lie in memory that is kept
for the next call (xent/memory.py). The threads are torch's, and so is their number.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xent.backends.cpu import cross_entropy as cpu
from xent.backends.cpu import kernels
from xent.checks import check_labels
from xent.objective import Objective
from xent.reduction import mean_denominator, reduce

Array = NDArray[Any]


def forward(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> tuple[Array, Array]:
    """Return the loss (compute dtype) and the log-sum-exp (float64) of each row, (rows,)."""
    x = as_array(logits)
    objective = with_weight(objective, weight, x)
    return cpu.forward(x, target_array(target, x), objective, threads=torch.get_num_threads())


def forward_backward(
    logits: Tensor, target: Tensor, weight: Tensor | None, row_scale: float, objective: Objective
) -> tuple[Array, Tensor]:
    """Return the losses as `forward` does, and the gradient of sum(row_scale * loss)."""
    x = as_array(logits)
    objective = with_weight(objective, weight, x)
    y = target_array(target, x)
    losses, _, dlogits = cpu.forward_backward(x, y, row_scale, objective, threads=torch.get_num_threads())
    return losses, as_tensor(dlogits, logits.dtype)


def backward(
    logits: Tensor, target: Tensor, weight: Tensor | None, lse: Array, row_scale: Tensor, objective: Objective
) -> Tensor:
    """Return the gradient of sum(row_scale * loss) from the log-sum-exp that `forward` gave."""
    x = as_array(logits)
    objective = with_weight(objective, weight, x)
    y, threads = target_array(target, x), torch.get_num_threads()
    scale = row_scale.detach().to(_wide(x.dtype)[1]).reshape(-1).numpy()
    if x.dtype == np.float64:
        # A log-sum-exp of 100 has lost 7 bits of exp(z - lse). float32 gradients do not notice, these do: start over.
        dlogits = cpu.forward_backward(x, y, scale, objective, threads=threads)[2]
    else:
        dlogits = cpu.backward(x, y, lse, scale, objective, threads=threads)
    return as_tensor(dlogits, logits.dtype)


def statistics(logits: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, ...]:
    """Return log_prob, entropy, lse, argmax and rank of each row, (N,) or (N, S)."""
    x = as_array(logits)
    found = cpu.statistics(x, target_array(labels, x), objective, threads=torch.get_num_threads())
    shape = logits.shape[:1] + logits.shape[2:]
    wide = _wide(x.dtype)[1]
    log_prob, entropy, lse, argmax, rank = (torch.from_numpy(array).reshape(shape) for array in found)
    return log_prob, entropy, lse.to(wide), argmax, rank


def denominator_of(target: Tensor, weight: Tensor | None, rows: int, objective: Objective) -> float:
    """What a mean over these rows divides by."""
    soft = target.is_floating_point()
    weights = None if weight is None else weight.detach().double().numpy()
    labels = None if soft else labels_array(target).reshape(-1)
    return float(mean_denominator(labels, weights, soft, rows, objective, kernels.count_other))


def reduced(call: str, losses: Array, denominator: float, target: Tensor, classes: int, objective: Objective) -> Tensor:
    """Return what the reduction makes of the losses; LabelError if a label is why there is a NaN among them.

    So the labels are looked at only where something is wrong: the kernels give NaN for a label out of range.
    """
    total = kernels.total(losses)
    if total != total and not target.is_floating_point():
        check_labels(call, target, classes, objective.ignore_index)
    if objective.reduction == "none":
        return torch.from_numpy(losses)
    return torch.from_numpy(np.array(reduce(total, denominator, objective), dtype=losses.dtype))


def as_array(tensor: Tensor) -> Array:
    """The tensor's memory; bfloat16 as the integers of its bits."""
    tensor = tensor.detach()
    array: Array = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def target_array(target: Tensor, logits: Array) -> Array:
    """Labels as int64, class probabilities in the dtype that the logits are computed in."""
    if not target.is_floating_point():
        return labels_array(target)
    array: Array = target.detach().to(_wide(logits.dtype)[1]).numpy()
    return array


def labels_array(labels: Tensor) -> Array:
    """Labels as the kernels take them: int64 without gaps."""
    if labels.dtype is not torch.int64:
        labels = labels.to(torch.int64)
    array: Array = (labels if labels.is_contiguous() else labels.contiguous()).numpy()
    return array


def as_tensor(array: Array, dtype: torch.dtype) -> Tensor:
    """The array as a tensor, the bits of bfloat16 numbers as such."""
    tensor = torch.from_numpy(array)
    return tensor.view(dtype) if dtype is torch.bfloat16 else tensor


def _wide(dtype: np.dtype[Any]) -> tuple[type, torch.dtype]:
    """The dtype that the kernels compute in, as NumPy and torch name it."""
    return (np.float64, torch.float64) if dtype == np.float64 else (np.float32, torch.float32)


def with_weight(objective: Objective, weight: Tensor | None, logits: Array) -> Objective:
    """The objective with class weights as the kernels take them."""
    if weight is None:
        return objective
    return replace(objective, weight=np.ascontiguousarray(weight.detach().double().numpy(), _wide(logits.dtype)[0]))
