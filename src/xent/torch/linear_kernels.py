"""The linear loss of xent.linear on tensors: arguments as its arrays, results as tensors, without a copy.

Input and weight are multiplied in `dtype`: their own, or that of autocast. Under autocast the gradient of a float32
weight is added up in float32 and never rounded to 16 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xent.backends.cpu.cross_entropy import Statistics
from xent.backends.formula import compute_dtype
from xent.linear import calls, statistics
from xent.linear.driver import Wanted
from xent.linear.host import Problem
from xent.linear.products import side_by_side
from xent.objective import Objective
from xent.torch.rows import LinearRows

Array = NDArray[Any]
NUMPY: dict[torch.dtype, np.dtype[Any]] = {
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


def forward(call: Call, rows: LinearRows) -> Array:
    """Return the loss of each row."""
    return calls.forward(call.name, problem_of(call, rows), call.workspace, threads=torch.get_num_threads())[0]


def forward_backward(
    call: Call, rows: LinearRows, row_scale: Tensor | float, wanted: Sequence[bool]
) -> tuple[Array, list[Tensor | None]]:
    """Return the loss of each row, and the wanted gradients of sum(row_scale * loss) by input, weight and bias."""
    scale: Any = row_scale
    if isinstance(row_scale, Tensor):
        scale = np.ascontiguousarray(row_scale.detach().to(compute_dtype(call.dtype)).reshape(-1).numpy())
    losses, _, found = calls.forward_backward(
        call.name, problem_of(call, rows), scale, Wanted(*wanted), call.workspace, threads=torch.get_num_threads()
    )
    return losses, tensors_of(found, rows)


def forward_statistics(call: Call, rows: LinearRows) -> Statistics:
    """Return the statistics of each row."""
    return statistics.forward(call.name, problem_of(call, rows), call.workspace, threads=torch.get_num_threads())


def backward_statistics(
    call: Call, rows: LinearRows, found: Statistics, upstream: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Return the wanted gradients of the statistics by input, weight and bias."""
    d_log_prob, d_entropy, d_lse = (
        np.zeros(len(rows.input)) if above is None else np.ascontiguousarray(above.detach().double().numpy())
        for above in upstream
    )
    gradients = statistics.backward(
        call.name,
        problem_of(call, rows),
        found,
        (d_log_prob, d_entropy, d_lse),
        Wanted(*wanted),
        call.workspace,
        threads=torch.get_num_threads(),
    )
    return tensors_of(gradients, rows)


def problem_of(call: Call, rows: LinearRows) -> Problem:
    """The arguments as arrays."""
    objective = call.objective
    if rows.class_weight is not None:
        wide = rows.class_weight.detach().to(compute_dtype(call.dtype)).contiguous().numpy()
        objective = replace(objective, weight=wide)
    return Problem(
        _array(rows.input, call.dtype),
        _array(rows.weight, call.dtype),
        None if rows.bias is None else np.ascontiguousarray(_array(rows.bias, call.dtype)),
        _target(rows.target),
        objective,
        NUMPY[rows.weight.dtype],
    )


def _array(tensor: Tensor, dtype: torch.dtype) -> Array:
    """The tensor's memory, bfloat16 as the bits of its numbers; a copy where BLAS needs one."""
    tensor = tensor.detach().to(dtype)
    array = np.asarray(_Memory(tensor if dtype is torch.bfloat16 else tensor.resolve_neg()))
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


def _target(target: Tensor) -> Array:
    """Labels as int64; class probabilities as they are, to be converted chunk by chunk."""
    if target.is_floating_point():
        return _array(target, target.dtype)
    array: Array = target.detach().to(torch.int64).contiguous().numpy()
    return array


def tensors_of(found: calls.Gradients, rows: LinearRows) -> list[Tensor | None]:
    """Gradients as tensors of the dtypes of the arguments."""
    tensors: list[Tensor | None] = []
    for array, argument in zip(found, rows[:3], strict=True):
        if array is None or argument is None:
            tensors.append(None)
            continue
        tensor = torch.from_numpy(array)
        tensors.append((tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor).to(argument.dtype))
    return tensors
