"""Tensors of any shape as rows of classes, and back; the checks that are about tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xent.backends.protocol import Backend
from xent.checks import Layout
from xent.errors import DTypeError, message
from xent.linear.driver import Layer
from xent.objective import Objective


def check_tensors(call: str, **arguments: Any) -> None:
    """Raise DTypeError if an argument is no tensor."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            found = f"found a {type(value).__name__}, expected a tensor"
            raise DTypeError(message(call, name, found, "For NumPy arrays and lists use xent.numpy"))


def as_rows(tensor: Tensor) -> Tensor:
    """View (or copy) logits or class probabilities as (N, C), or (N, C, S) with all positions on the last axis."""
    if tensor.ndim == 1:
        return tensor.unsqueeze(0)
    return tensor if tensor.ndim == 2 else tensor.flatten(2)


def labels_as_rows(labels: Tensor, layout: Layout) -> Tensor:
    """View (or copy) class indices as (N,) or (N, S), int64: in 8 bits -100 would be the class 156."""
    if labels.dtype is not torch.int64:
        labels = labels.to(torch.int64)
    return labels.reshape(-1) if len(layout.logits_shape) <= 2 else labels.flatten(1)


def from_rows(numbers: Tensor, layout: Layout) -> Tensor:
    """Put one number per row into the shape of the target."""
    return numbers.reshape(layout.loss_shape)


class Call(NamedTuple):
    """What a call is beside its tensors."""

    name: str
    objective: Objective
    backend: Backend
    """Of the rows of logits."""
    linear: Any = None
    """The `LinearBackend` of a call with a linear layer."""
    workspace: int = 0
    dtype: torch.dtype = torch.float32
    """In which a layer multiplies."""
    labels_are_checked: bool = False


class LinearRows(NamedTuple):
    """The tensors of a call with a linear layer, as rows; `linear_weight` and so on in the public calls."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor
    class_weight: Tensor | None

    def to(self, dtype: torch.dtype) -> LinearRows:
        """Input, weight and bias in the dtype that they are multiplied in."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return self._replace(input=self.input.to(dtype), weight=self.weight.to(dtype), bias=bias)

    def layer(self, call: Call) -> Layer:
        """The layer that a linear backend takes."""
        own = LinearRows._make(None if tensor is None else tensor.detach() for tensor in self).to(call.dtype)
        return Layer(call.name, own.input, own.weight, own.bias, own.target, self.weight.dtype, call.workspace)
