"""The linear loss of xent.linear on tensors: arguments as its arrays, results as tensors, without a copy.

Input and weight are multiplied in `dtype`: their own, or that of autocast. Under autocast the gradient of a float32 weight
is added up in float32 and never rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xent.cpu.cross_entropy import Statistics
from xent.linear import calls, statistics
from xent.linear.driver import Wanted
from xent.linear.host import Problem
from xent.objective import Objective
from xent.torch.composed import compute_dtype

Array = NDArray[Any]
NUMPY = {
    torch.float64: np.dtype(np.float64),
    torch.float32: np.dtype(np.float32),
    torch.float16: np.dtype(np.float16),
    torch.bfloat16: np.dtype(np.uint16),
}


@dataclass(frozen=True)
class Call:
    """What a call is beside its tensors."""

    name: str
    objective: Objective
    workspace: int
    dtype: torch.dtype


def forward(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None
) -> Array:
    """Return the loss of each row."""
    problem = _problem(call, input, weight, bias, target, class_weight)
    return calls.forward(call.name, problem, call.workspace, threads=torch.get_num_threads())[0]


def forward_backward(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    class_weight: Tensor | None,
    row_scale: Tensor | float,
    wanted: Sequence[bool],
) -> tuple[Array, list[Tensor | None]]:
    """Return the loss of each row, and the wanted gradients of sum(row_scale * loss) by input, weight and bias."""
    problem = _problem(call, input, weight, bias, target, class_weight)
    if isinstance(row_scale, Tensor):
        scale: Any = np.ascontiguousarray(row_scale.detach().to(compute_dtype(call.dtype)).reshape(-1).numpy())
    else:
        scale = row_scale
    losses, _, found = calls.forward_backward(
        call.name, problem, scale, Wanted(*wanted), call.workspace, threads=torch.get_num_threads()
    )
    return losses, _tensors(found, call, (input, weight, bias))


def forward_statistics(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> Statistics:
    """Return the statistics of each row."""
    problem = _problem(call, input, weight, bias, labels, None)
    return statistics.forward(call.name, problem, call.workspace, threads=torch.get_num_threads())


def backward_statistics(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    found: Statistics,
    upstream: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return the wanted gradients of the statistics by input, weight and bias."""
    problem = _problem(call, input, weight, bias, labels, None)
    rows = input.shape[0]
    above = [np.zeros(rows) if u is None else np.ascontiguousarray(u.detach().double().numpy()) for u in upstream]
    gradients = statistics.backward(
        call.name,
        problem,
        found,
        (above[0], above[1], above[2]),
        Wanted(*wanted),
        call.workspace,
        threads=torch.get_num_threads(),
    )
    return _tensors(gradients, call, (input, weight, bias))


def _problem(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None
) -> Problem:
    objective = call.objective
    if class_weight is not None:
        wide = class_weight.detach().to(compute_dtype(call.dtype)).contiguous().numpy()
        objective = replace(objective, weight=wide)
    return Problem(
        _array(input, call.dtype),
        _array(weight, call.dtype),
        None if bias is None else np.ascontiguousarray(_array(bias, call.dtype)),
        _target(target),
        objective,
        NUMPY[weight.dtype],
    )


def _array(tensor: Tensor, dtype: torch.dtype) -> Array:
    """The tensor's memory, bfloat16 as the bits of its numbers; a copy where rows or columns are not side by side."""
    tensor = tensor.detach().to(dtype)
    if tensor.ndim == 2 and 1 not in tensor.stride():
        tensor = tensor.contiguous()
    array: Array = (tensor.view(torch.uint16) if dtype is torch.bfloat16 else tensor.resolve_neg()).numpy()
    return array


def _target(target: Tensor) -> Array:
    """Labels as int64; class probabilities as they are, to be converted chunk by chunk."""
    if target.is_floating_point():
        return _array(target, target.dtype)
    array: Array = target.detach().to(torch.int64).contiguous().numpy()
    return array


def _tensors(found: calls.Gradients, call: Call, arguments: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients as tensors of the dtypes of the arguments."""
    tensors: list[Tensor | None] = []
    for array, argument in zip(found, arguments, strict=True):
        if array is None or argument is None:
            tensors.append(None)
            continue
        tensor = torch.from_numpy(array)
        tensors.append((tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor).to(argument.dtype))
    return tensors
