"""Tensors of any shape as rows of classes, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from xent.checks import Layout
from xent.errors import DTypeError, message


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
    """View (or copy) class indices as (N,) or (N, S)."""
    if len(layout.logits_shape) <= 2:
        return labels.reshape(-1)
    return labels.flatten(1)


def from_rows(losses: Tensor, layout: Layout) -> Tensor:
    """Put one number per row into the shape of the target."""
    return losses.reshape(layout.loss_shape)


def is_transformed() -> bool:
    """Whether a `torch.func` transform (grad, vmap, jacrev ...) is at work: it sees through formulas only."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def is_traced(*tensors: Tensor | None) -> bool:
    """Whether a compiler looks through the call, or a tensor is of a subclass that wants to see operators."""
    return torch.compiler.is_compiling() or any(t is not None and type(t) not in PLAIN for t in tensors)


PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)


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
