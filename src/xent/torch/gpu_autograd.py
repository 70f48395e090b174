"""The Triton kernels under torch's automatic differentiation, for plain tensors on a GPU.

As on the CPU (autograd.py), a sum or a mean makes its gradient in the forward's visit to the logits, for an upstream
gradient of 1. But nothing here may wait for the device: denominators stay on it, labels are not looked at (those out of
range make NaN; `check=True` looks), and whether the upstream gradient is 1 only the kernel knows. Backward starts it
again on the gradient that is ready: it returns at once if the upstream gradient is 1, and else makes the gradient anew
from the logits. Nothing is scaled afterwards: a gradient is rounded to 16 bits once, and underflows only if it must.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xent.backends import formula as composed
from xent.backends.formula import reduced
from xent.backends.gpu import cross_entropy as gpu
from xent.backends.gpu.statistics_gradient import statistics_gradient
from xent.objective import Objective
from xent.reduction import gradient_scale, mean_denominator
from xent.torch import autograd


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
    """The reduced loss of rows (N, C) or (N, C, S), or with reduction "none" the losses (rows,)."""
    if not target.is_floating_point():
        target = target.to(torch.int64)  # torch compares few other integers
    if torch.is_grad_enabled() and (logits.requires_grad or target.requires_grad):
        loss: Tensor = _CrossEntropy.apply(logits, target, weight, objective)  # type: ignore[no-untyped-call]
        return loss
    losses, _ = gpu.forward(logits, target, with_weight(objective, weight, logits))
    return reduced(losses, denominator_of(logits.numel() // logits.shape[1], target, weight, objective), objective)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
        denominator = denominator_of(logits.numel() // logits.shape[1], target, weight, objective)
        ctx.objective, ctx.ready, lse = objective, None, None
        ctx.scale = gradient_scale(denominator, objective)
        weighted = with_weight(objective, weight, logits)
        if objective.reduction == "none" or not ctx.needs_input_grad[0]:
            losses, lse = gpu.forward(logits, target, weighted)
        else:
            losses, _, ctx.ready = gpu.forward_backward(logits, target, ctx.scale, weighted)
        ctx.save_for_backward(logits, target, weight, lse)
        return reduced(losses, denominator, objective)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        logits, target, weight, lse = ctx.saved_tensors
        ready, ctx.ready = ctx.ready, None
        objective: Objective = ctx.objective
        dlogits = dtarget = None
        if ctx.needs_input_grad[0]:
            weighted = with_weight(objective, weight, logits)
            if torch.is_grad_enabled():
                # Somebody will differentiate this gradient: it has to be a formula that torch can see through.
                row_scale = _row_scale(upstream, ctx.scale, logits)
                dlogits = composed.cross_entropy_gradient(logits, target, weight, row_scale, objective)
            elif objective.reduction == "none":
                dlogits = backward(logits, target, lse, upstream, weighted)
            else:
                scale, finished = upstream.double() * ctx.scale, None if ready is None else upstream
                dlogits = gpu.forward_backward(logits, target, scale, weighted, out=ready, finished=finished)[2]
        if ctx.needs_input_grad[1]:
            row_scale = _row_scale(upstream, ctx.scale, logits)
            dtarget = composed.target_gradient(logits, weight, row_scale, objective, target.dtype)
        return dlogits, dtarget, None, None


class Statistics(autograd.Statistics):
    """`xent.torch.statistics` of rows, by the kernel, and its gradient by another."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, ...]:
        rows = gpu.statistics(logits, labels, objective)
        found = as_outputs(rows, logits)
        # The caller may write to what he gets; the gradient needs the log-sum-exp in float64 and the entropy as it is.
        ctx.objective, ctx.lse, ctx.entropy = objective, rows.lse, rows.entropy.clone()
        ctx.save_for_backward(logits, labels)
        ctx.mark_non_differentiable(*found[3:])
        return found

    @staticmethod
    def backward(
        ctx: Any, d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor, *_: Tensor
    ) -> tuple[Tensor, None, None]:
        logits, labels = ctx.saved_tensors
        upstream = (d_log_prob, d_entropy, d_lse)
        if torch.is_grad_enabled() or logits.dtype == torch.float64:  # as in `backward` below
            gradient = composed.statistics_gradient(logits, labels, *upstream, ctx.objective)
        else:
            gradient = statistics_gradient(logits, labels, ctx.lse, ctx.entropy, upstream, ctx.objective)
        return gradient, None, None


def backward(logits: Tensor, target: Tensor, lse: Tensor, row_scale: Tensor, objective: Objective) -> Tensor:
    """The gradient of sum(row_scale * loss) from the log-sum-exp that the forward gave."""
    if logits.dtype == torch.float64:
        # A log-sum-exp of 100 has lost 7 bits of exp(z - lse). float32 gradients do not notice, these do: start over.
        return gpu.forward_backward(logits, target, row_scale, objective)[2]
    return gpu.backward(logits, target, lse, row_scale, objective)


def statistics(logits: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, ...]:
    """log_prob, entropy, lse, argmax and rank of each row, (N,) or (N, S)."""
    return as_outputs(gpu.statistics(logits, labels, objective), logits)


def as_outputs(found: gpu.Statistics, logits: Tensor) -> tuple[Tensor, ...]:
    """The statistics as they are handed out: of the dtype of losses, and a number for each position."""
    outputs = found._replace(lse=found.lse.to(found.log_prob.dtype, copy=True))
    return tuple(tensor.reshape(logits.shape[:1] + logits.shape[2:]) for tensor in outputs)


def with_weight(objective: Objective, weight: Tensor | None, logits: Tensor) -> Objective:
    """The objective with class weights as the kernels take them."""
    if weight is None:
        return objective
    return replace(objective, weight=weight.detach().to(composed.compute_dtype(logits.dtype)).contiguous())


def _row_scale(upstream: Tensor, scale: Any, logits: Tensor) -> Tensor:
    """The gradient from above for each row: (N,) or (N, S)."""
    shape = logits.shape[:1] + logits.shape[2:]
    wide = composed.compute_dtype(logits.dtype)
    return upstream.reshape(shape) if upstream.ndim else (upstream * scale).to(wide).expand(shape)


def denominator_of(rows: int, target: Tensor, weight: Tensor | None, objective: Objective) -> Any:
    """What a mean divides by, on the device where it has to be counted."""
    weights = None if weight is None else weight.detach().double()
    soft = target.is_floating_point()
    denominator = mean_denominator(target, weights, soft, rows, objective)
    return denominator.double() if isinstance(denominator, Tensor) else denominator
