"""The divergences of logits as an operator (dispatch.py), and its gradient: the losses of rows, which torch reduces.

The gradient by the teacher is that by the student of the same divergence with the roles exchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.backends import divergence_formula
from xent.backends.choice import choose_divergence
from xent.backends.formula import compute_dtype
from xent.divergence import Divergence
from xent.torch._torch_private import is_batched, is_watched
from xent.torch.dispatch import Operator


def divergence_rows(student: Tensor, teacher: Tensor, labels: Tensor | None, options: Divergence) -> Tensor:
    """The loss of each row, (N,) or (N, S)."""
    losses: Tensor = LOSS(student, teacher, labels, options.to_text())
    return losses


def divergence_gradient(
    student: Tensor, teacher: Tensor, labels: Tensor | None, row_scale: Tensor, options: Divergence
) -> Tensor:
    """The gradient of sum(row_scale * loss) by the student's logits, which torch can differentiate and batch."""
    shape = student.shape[:1] + student.shape[2:]
    scale = row_scale.expand(shape) if row_scale.ndim == 0 else row_scale.reshape(shape)
    arguments = (student, teacher, labels, scale)
    call = LOSS_BACKWARD if is_watched(*arguments) or is_batched(scale) else LOSS_BACKWARD.differentiable
    gradient: Tensor = call(*arguments, options.to_text())
    return gradient


def _loss(student: Tensor, teacher: Tensor, labels: Tensor | None, options: str) -> Tensor:
    losses = choose_divergence(student.device).forward(student, teacher, labels, Divergence.from_text(options))
    found: Tensor = losses.reshape(student.shape[:1] + student.shape[2:])
    return found


def _fake_loss(student: Tensor, teacher: Tensor, labels: Tensor | None, options: str) -> Tensor:
    return student.new_empty(student.shape[:1] + student.shape[2:], dtype=compute_dtype(student.dtype))


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    student, teacher, labels, ctx.options = inputs
    ctx.save_for_backward(student, teacher, labels)


def _differentiate_loss(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    student, teacher, labels = ctx.saved_tensors
    of_student = of_teacher = None
    if ctx.needs_input_grad[0]:
        of_student = LOSS_BACKWARD(student, teacher, labels, upstream, ctx.options)
    if ctx.needs_input_grad[1]:
        exchanged = Divergence.from_text(ctx.options).of_teacher.to_text()
        of_teacher = LOSS_BACKWARD(teacher, student, labels, upstream, exchanged)
    return of_student, of_teacher, None, None


def _loss_backward(student: Tensor, teacher: Tensor, labels: Tensor | None, row_scale: Tensor, options: str) -> Tensor:
    kernels, parts = choose_divergence(student.device), Divergence.from_text(options)
    gradient: Tensor = kernels.forward_backward(student, teacher, labels, row_scale, parts)[1]
    return gradient.contiguous()


def _fake_loss_backward(
    student: Tensor, teacher: Tensor, labels: Tensor | None, row_scale: Tensor, options: str
) -> Tensor:
    return torch.empty_like(student, memory_format=torch.contiguous_format)


def _save_loss_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.options = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_loss_backward(ctx: Any, above: Tensor) -> tuple[Any, ...]:
    """By the formula of the gradient."""
    student, teacher, labels, row_scale = ctx.saved_tensors
    options = Divergence.from_text(ctx.options)

    def gradient(s: Tensor, t: Tensor, scale: Tensor) -> Tensor:
        return divergence_formula.divergence_gradient(s, t, labels, scale, options)

    dstudent, dteacher, dscale = torch.func.vjp(gradient, student, teacher, row_scale)[1](above)
    return dstudent, dteacher, None, dscale, None


LOSS = Operator("divergence_rows", _loss, _fake_loss, _save_loss, _differentiate_loss, by_rows=(0, 1, 2))
LOSS_BACKWARD = Operator(
    "divergence_rows_backward",
    _loss_backward,
    _fake_loss_backward,
    _save_loss_backward,
    _differentiate_loss_backward,
    by_rows=(0, 1, 2, 3),
)
