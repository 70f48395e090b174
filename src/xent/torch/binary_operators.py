"""The binary cross-entropy as an operator (dispatch.py), with its gradient.

It returns the loss of each element without `weight` and `sample_weight`, with which torch's own operations multiply it:
torch sees them, with whatever gradient they have. pos_weight comes in one of two arguments: `pos_rows` has the logits'
first axis, and `pos_labels` is the same for all of them, so that a batch of problems is one problem with more rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.backends.binary_protocol import Elements
from xent.backends.choice import choose_binary
from xent.backends.formula import compute_dtype
from xent.backends.formula_binary import gradient_derivatives, pos_weight_gradient, target_gradient
from xent.objective import Objective
from xent.torch._torch_private import is_batched, is_watched
from xent.torch.dispatch import Operator


def binary_losses(logits: Tensor, target: Tensor, pos_weight: Tensor | None, objective: Objective) -> Tensor:
    """The loss of each element, shaped like the logits."""
    losses: Tensor = LOSS(logits, target, *placed(pos_weight, logits), objective.to_text())
    return losses


def binary_gradient(
    logits: Tensor, target: Tensor, pos_weight: Tensor | None, scale: Tensor, objective: Objective
) -> Tensor:
    """The gradient of sum(scale * loss) by the logits, which torch can differentiate and batch."""
    arguments = (logits, target, *placed(pos_weight, logits), scale)
    call = LOSS_BACKWARD if is_watched(*arguments) or is_batched(scale) else LOSS_BACKWARD.differentiable
    gradient: Tensor = call(*arguments, objective.to_text())
    return gradient


def placed(pos_weight: Tensor | None, logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """pos_weight as (pos_rows, pos_labels): where it differs from row to row, and where it does not."""
    if pos_weight is None or pos_weight.ndim < logits.ndim:
        return None, pos_weight
    if pos_weight.shape[0] == 1 and logits.shape[0] != 1:
        return None, pos_weight.squeeze(0)
    return pos_weight, None


def _elements(
    logits: Tensor, target: Tensor, pos_rows: Tensor | None, pos_labels: Tensor | None, objective: str
) -> Elements:
    pos_weight = pos_labels if pos_rows is None else pos_rows
    return Elements(logits, target, Objective.from_text(objective), pos_weight=pos_weight)


def _loss(logits: Tensor, target: Tensor, pos_rows: Tensor | None, pos_labels: Tensor | None, objective: str) -> Tensor:
    elements = _elements(logits, target, pos_rows, pos_labels, objective)
    losses: Tensor = choose_binary(logits.device).visit(elements, losses=True).losses
    return losses


def _fake_loss(
    logits: Tensor, target: Tensor, pos_rows: Tensor | None, pos_labels: Tensor | None, objective: str
) -> Tensor:
    return torch.empty_like(logits, dtype=compute_dtype(logits.dtype), memory_format=torch.contiguous_format)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.objective = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_loss(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, pos_rows, pos_labels = ctx.saved_tensors
    elements = _elements(logits, target, pos_rows, pos_labels, ctx.objective)
    wanted, dlogits, dtarget = ctx.needs_input_grad, None, None
    if wanted[0]:
        dlogits = LOSS_BACKWARD(logits, target, pos_rows, pos_labels, upstream, ctx.objective)
    if wanted[1]:
        dtarget = target_gradient(elements, upstream)
    dpos = pos_weight_gradient(elements, upstream) if wanted[2] or wanted[3] else None
    return dlogits, dtarget, shared(dpos, pos_rows, wanted[2]), shared(dpos, pos_labels, wanted[3]), None


def _loss_backward(
    logits: Tensor,
    target: Tensor,
    pos_rows: Tensor | None,
    pos_labels: Tensor | None,
    scale: Tensor,
    objective: str,
) -> Tensor:
    elements = _elements(logits, target, pos_rows, pos_labels, objective)
    gradient: Tensor = choose_binary(logits.device).visit(elements, scale).gradient
    return gradient


def _fake_loss_backward(
    logits: Tensor,
    target: Tensor,
    pos_rows: Tensor | None,
    pos_labels: Tensor | None,
    scale: Tensor,
    objective: str,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _differentiate_loss_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, pos_rows, pos_labels, scale = ctx.saved_tensors
    elements = _elements(logits, target, pos_rows, pos_labels, ctx.objective)
    wanted = ctx.needs_input_grad
    found = gradient_derivatives(elements, scale, upstream, options=any(wanted[1:4]))
    dlogits, dscale, dtarget, dpos = found
    dtarget = dtarget.to(target.dtype) if wanted[1] and dtarget is not None else None
    return dlogits, dtarget, shared(dpos, pos_rows, wanted[2]), shared(dpos, pos_labels, wanted[3]), dscale, None


def shared(gradient: Tensor | None, tensor: Tensor | None, wanted: bool) -> Tensor | None:
    """The gradient by a tensor that was broadcast, from that of each element: their sum."""
    if gradient is None or tensor is None or not wanted:
        return None
    return gradient.sum_to_size(tensor.shape).to(tensor.dtype)


LOSS = Operator("binary_losses", _loss, _fake_loss, _save_loss, _differentiate_loss, by_rows=(0, 1, 2))
LOSS_BACKWARD = Operator(
    "binary_losses_backward",
    _loss_backward,
    _fake_loss_backward,
    _save_loss,
    _differentiate_loss_backward,
    by_rows=(0, 1, 2, 4),
)
