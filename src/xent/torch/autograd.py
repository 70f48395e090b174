"""The CPU kernels under torch's automatic differentiation, for plain tensors.

For a sum or a mean whose gradient is wanted, one visit to the logits makes both loss and gradient, on the assumption
that the gradient that arrives from above is 1, as `loss.backward()` gives it. The first backward hands that gradient
out; a second one, or one with another gradient from above, makes it anew in the same way, so that it has the same bits.
Nothing is scaled afterwards: a gradient is rounded to 16 bits once.

torch's own operator mechanism (operators.py) costs about 30 microseconds more for each call, as much as the whole loss
of a small batch; so it serves only where torch has to see the operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.backends import formula as composed
from xent.checks import check_labels
from xent.objective import Objective
from xent.reduction import gradient_scale
from xent.torch import kernels


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
    """The reduced loss of rows (N, C) or (N, C, S), or with reduction "none" the losses (rows,)."""
    if torch.is_grad_enabled() and (logits.requires_grad or target.requires_grad):
        loss: Tensor = _CrossEntropy.apply(logits, target, weight, objective)  # type: ignore[no-untyped-call]
        return loss
    losses, _ = kernels.forward(logits, target, weight, objective)
    denominator = _denominator(logits, target, weight, objective)
    return kernels.reduced("cross_entropy", losses, denominator, target, logits.shape[1], objective)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
        denominator = _denominator(logits, target, weight, objective)
        ctx.objective, ctx.scale, ctx.lse, ctx.ready = objective, gradient_scale(denominator, objective), None, None
        if objective.reduction == "none" or not ctx.needs_input_grad[0]:
            losses, ctx.lse = kernels.forward(logits, target, weight, objective)
        else:
            losses, ctx.ready = kernels.forward_backward(logits, target, weight, ctx.scale, objective)
        ctx.save_for_backward(logits, target, weight)
        return kernels.reduced("cross_entropy", losses, denominator, target, logits.shape[1], objective)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        logits, target, weight = ctx.saved_tensors
        ready, ctx.ready = ctx.ready, None
        objective: Objective = ctx.objective
        dlogits = dtarget = None
        if ctx.needs_input_grad[0]:
            if torch.is_grad_enabled():
                # Somebody will differentiate this gradient: it has to be a formula that torch can see through.
                row_scale = _row_scale(upstream, ctx.scale, logits)
                dlogits = composed.cross_entropy_gradient(logits, target, weight, row_scale, objective)
            elif objective.reduction == "none":
                dlogits = kernels.backward(logits, target, weight, ctx.lse, upstream, objective)
            elif ready is not None and upstream.item() == 1.0:
                dlogits = ready
            else:
                scale = upstream.item() * ctx.scale
                dlogits = kernels.forward_backward(logits, target, weight, scale, objective)[1]
        if ctx.needs_input_grad[1]:
            row_scale = _row_scale(upstream, ctx.scale, logits)
            dtarget = composed.target_gradient(logits, weight, row_scale, objective, target.dtype)
        return dlogits, dtarget, None, None


class Statistics(torch.autograd.Function):
    """`xent.torch.statistics` of rows, by the kernel; the gradient is a formula of torch operations."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, ...]:
        found = kernels.statistics(logits, labels, objective)
        if bool(found[0].isnan().any()):
            check_labels("statistics", labels, logits.shape[1], objective.ignore_index)
        ctx.objective = objective
        ctx.save_for_backward(logits, labels)
        ctx.mark_non_differentiable(*found[3:])
        return found

    @staticmethod
    def backward(
        ctx: Any, d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor, *_: Tensor
    ) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        gradient = composed.statistics_gradient(logits, labels, d_log_prob, d_entropy, d_lse, ctx.objective)
        return gradient, None, None


def _row_scale(upstream: Tensor, scale: float, logits: Tensor) -> Tensor:
    """The gradient from above for each row: (N,) or (N, S)."""
    shape = logits.shape[:1] + logits.shape[2:]
    return upstream.reshape(shape) if upstream.ndim else (upstream * scale).expand(shape)


def _denominator(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> float:
    return kernels.denominator_of(target, weight, logits.numel() // logits.shape[1], objective)
