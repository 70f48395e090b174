"""The loss and the statistics of logits as operators (dispatch.py): one for each, for all devices, and its gradient.

They return one loss for each row, and torch's own operations reduce them: torch sees the denominator, with whatever
gradient class weights have through it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.backends.choice import choose
from xent.backends.formula import FORMULA, compute_dtype, gradient_derivatives, target_gradient, weight_gradient
from xent.backends.protocol import Statistics
from xent.objective import Objective
from xent.torch._torch_private import is_batched, is_watched
from xent.torch.dispatch import Operator

Two = tuple[Tensor, Tensor]
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


# ------------------------------------------------------------------------------------------------------ loss of logits


def cross_entropy_rows(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
    """The loss of each row, (N,) or (N, S)."""
    loss: Tensor = LOSS(logits, target, weight, objective.to_text())[0]
    return loss


def cross_entropy_gradient(
    logits: Tensor, target: Tensor, weight: Tensor | None, saved: Tensor, row_scale: Tensor, objective: Objective
) -> Tensor:
    """The gradient of sum(row_scale * loss) by the logits, which torch can differentiate and batch."""
    shape = logits.shape[:1] + logits.shape[2:]
    scale, known = row_scale.expand(shape) if row_scale.ndim == 0 else row_scale.reshape(shape), saved.reshape(shape)
    arguments = (logits, target, weight, known, scale)
    call = LOSS_BACKWARD if is_watched(*arguments) or is_batched(scale) else LOSS_BACKWARD.differentiable
    gradient: Tensor = call(*arguments, objective.to_text())
    return gradient


def _loss(logits: Tensor, target: Tensor, weight: Tensor | None, objective: str) -> Two:
    options = Objective.from_text(objective).weighted(weight)
    losses, saved = choose(logits.device).forward(logits, target, options)
    shape = logits.shape[:1] + logits.shape[2:]
    return losses.reshape(shape), saved.reshape(shape)


def _fake_loss(logits: Tensor, target: Tensor, weight: Tensor | None, objective: str) -> Two:
    rows = logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=compute_dtype(logits.dtype))
    return rows, torch.empty_like(rows, dtype=torch.float64)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Two) -> None:
    logits, target, weight, ctx.objective = inputs
    ctx.save_for_backward(logits, target, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_loss(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, weight, saved = ctx.saved_tensors
    options = Objective.from_text(ctx.objective).weighted(weight)
    dlogits = dtarget = dweight = None
    if ctx.needs_input_grad[0]:
        dlogits = LOSS_BACKWARD(logits, target, weight, saved, upstream, ctx.objective)
    if ctx.needs_input_grad[1]:
        dtarget = target_gradient(logits, target, upstream, options)
    if ctx.needs_input_grad[2]:
        dweight = weight_gradient(logits, target, upstream, options).to(weight.dtype)
    return dlogits, dtarget, dweight, None


def _loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor | None, saved: Tensor, row_scale: Tensor, objective: str
) -> Tensor:
    options = Objective.from_text(objective).weighted(weight)
    gradient: Tensor = choose(logits.device).backward(logits, target, saved.reshape(-1), row_scale, options)
    return gradient


def _fake_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor | None, saved: Tensor, row_scale: Tensor, objective: str
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_loss_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.objective = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_loss_backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, weight, _, row_scale = ctx.saved_tensors
    options, wanted = Objective.from_text(ctx.objective).weighted(weight), ctx.needs_input_grad
    dlogits, dscale, dtarget, dweight = gradient_derivatives(
        logits, target, row_scale, upstream, options, options=wanted[1] or wanted[2]
    )
    dtarget = dtarget.to(target.dtype) if dtarget is not None and wanted[1] else None
    return dlogits, dtarget, dweight.to(weight.dtype) if dweight is not None and wanted[2] else None, None, dscale, None


LOSS = Operator("cross_entropy_rows", _loss, _fake_loss, _save_loss, _differentiate_loss, by_rows=(0, 1))
LOSS_BACKWARD = Operator(
    "cross_entropy_rows_backward",
    _loss_backward,
    _fake_loss_backward,
    _save_loss_backward,
    _differentiate_loss_backward,
    by_rows=(0, 1, 3, 4),
)


# ------------------------------------------------------------------------------------------------ statistics of logits


def statistics_rows(logits: Tensor, labels: Tensor, objective: Objective) -> Statistics:
    """The statistics of each row, (N,) or (N, S)."""
    return Statistics(*STATISTICS(logits, labels, objective.to_text())[:5])


def statistics_gradient(
    logits: Tensor, labels: Tensor, statistics: Statistics, upstream: tuple[Tensor, ...], objective: Objective
) -> Tensor:
    """The gradient of the statistics by the logits, which torch can differentiate and batch."""
    shape = logits.shape[:1] + logits.shape[2:]
    numbers = (number.reshape(shape) for number in (*upstream, statistics.entropy, statistics.lse))
    gradient: Tensor = STATISTICS_BACKWARD(logits, labels, *numbers, objective.to_text())
    return gradient


def _statistics(logits: Tensor, labels: Tensor, objective: str) -> Six:
    statistics = choose(logits.device).statistics(logits, labels, Objective.from_text(objective))
    shape = logits.shape[:1] + logits.shape[2:]
    return with_lse(Statistics(*(numbers.reshape(shape) for numbers in statistics)))


def _fake_statistics(logits: Tensor, labels: Tensor, objective: str) -> Six:
    return fake_statistics(logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=compute_dtype(logits.dtype)))


def with_lse(statistics: Statistics) -> Six:
    """The statistics as they are handed out, and the log-sum-exp in float64, which their gradient needs."""
    log_prob, entropy, lse, argmax, rank = statistics
    return log_prob, entropy, lse.to(log_prob.dtype, copy=True), argmax, rank, lse


def fake_statistics(real: Tensor) -> Six:
    """What `with_lse` returns, without numbers."""
    whole, double = torch.empty_like(real, dtype=torch.int64), torch.empty_like(real, dtype=torch.float64)
    return real, torch.empty_like(real), torch.empty_like(real), whole, torch.empty_like(whole), double


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: Six) -> None:
    logits, labels, ctx.objective = inputs
    ctx.save_for_backward(logits, labels, output[1], output[5])
    ctx.mark_non_differentiable(*output[3:])


def _differentiate_statistics(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, entropy, lse = ctx.saved_tensors
    return STATISTICS_BACKWARD(logits, labels, *upstream[:3], entropy, lse, ctx.objective), None, None


def _statistics_backward(
    logits: Tensor,
    labels: Tensor,
    d_log_prob: Tensor,
    d_entropy: Tensor,
    d_lse: Tensor,
    entropy: Tensor,
    lse: Tensor,
    objective: str,
) -> Tensor:
    statistics = Statistics(None, entropy.reshape(-1), lse.reshape(-1), None, None)
    upstream = (d_log_prob.reshape(-1), d_entropy.reshape(-1), d_lse.reshape(-1))
    options = Objective.from_text(objective)
    gradient: Tensor = choose(logits.device).statistics_gradient(logits, labels, statistics, upstream, options)
    return gradient.contiguous()


def _fake_statistics_backward(
    logits: Tensor,
    labels: Tensor,
    d_log_prob: Tensor,
    d_entropy: Tensor,
    d_lse: Tensor,
    entropy: Tensor,
    lse: Tensor,
    objective: str,
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_statistics_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, labels, *upstream, _, _, ctx.objective = inputs
    ctx.save_for_backward(logits, labels, *upstream)


def _differentiate_statistics_backward(ctx: Any, above: Tensor) -> tuple[Any, ...]:
    logits, labels, *upstream = ctx.saved_tensors
    options = Objective.from_text(ctx.objective)

    def gradient(x: Tensor, *numbers: Tensor) -> Tensor:
        d_log_prob, d_entropy, d_lse = numbers
        return FORMULA.statistics_gradient(x, labels, None, (d_log_prob, d_entropy, d_lse), options)

    differentiate = torch.func.vjp(gradient, logits, *upstream)[1]
    dlogits, *numbers = differentiate(above)
    return dlogits, None, *numbers, None, None, None


STATISTICS = Operator(
    "statistics_rows", _statistics, _fake_statistics, _save_statistics, _differentiate_statistics, by_rows=(0, 1)
)
STATISTICS_BACKWARD = Operator(
    "statistics_rows_backward",
    _statistics_backward,
    _fake_statistics_backward,
    _save_statistics_backward,
    _differentiate_statistics_backward,
    by_rows=range(7),
)
