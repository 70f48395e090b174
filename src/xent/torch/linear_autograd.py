"""The linear loss under torch's automatic differentiation, for plain tensors on the CPU.

A sum or a mean makes its gradients together with the loss, three products in all, on the assumption that the gradient
from above is 1. Where it is not, what is ready is multiplied by it: exactly for a power of two (a loss scale, a mean
over 2, 4, 8 ... accumulated batches), with one more rounding in float32 and float64. Gradients in 16 bits that would be
rounded twice, and float16 ones, which may have underflowed already, are made anew instead. A second backward makes
them anew in the same way, so that it has the same bits. With reduction "none" nothing is known before backward: there
the forward visits the logits for the losses, and backward once more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent.backends.cpu.cross_entropy import Statistics as CpuStatistics
from xent.checks import check_labels
from xent.reduction import gradient_scale
from xent.torch import kernels as of_logits
from xent.torch import linear_composed as composed
from xent.torch import linear_kernels as kernels
from xent.torch.kernels import Array
from xent.torch.linear_kernels import Call
from xent.torch.rows import LinearRows

Gradients = list[Tensor | None]


def cross_entropy(call: Call, rows: LinearRows) -> Tensor:
    """The reduced loss, or with reduction "none" the losses (rows,)."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in rows[:4]):
        loss: Tensor = _CrossEntropy.apply(*rows, call)  # type: ignore[no-untyped-call]
        return loss
    return reduced(kernels.forward(call, rows), call, rows, denominator_of(call, rows))


def statistics(call: Call, rows: LinearRows) -> tuple[Tensor, ...]:
    """(log_prob, entropy, lse, argmax, rank) of each row."""
    found: tuple[Tensor, ...] = _Statistics.apply(*rows[:4], call)  # type: ignore[no-untyped-call]
    return found


class _CrossEntropy(torch.autograd.Function):
    """Of (input, weight, bias, target, class weight, call)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        rows, call = LinearRows(*arguments[:-1]), arguments[-1]
        denominator = denominator_of(call, rows)
        ctx.call, ctx.scale, ctx.ready = call, gradient_scale(denominator, call.objective), None
        wanted = ctx.needs_input_grad[:3]
        if call.objective.reduction == "none" or not any(wanted):
            losses = kernels.forward(call, rows)
        else:
            losses, ctx.ready = kernels.forward_backward(call, rows, ctx.scale, wanted)
        ctx.save_for_backward(*rows)
        return reduced(losses, call, rows, denominator)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, call, wanted = LinearRows(*ctx.saved_tensors), ctx.call, ctx.needs_input_grad[:3]
        ready, ctx.ready = ctx.ready, None
        if torch.is_grad_enabled():
            # Somebody will differentiate these gradients: they have to be formulas that torch can see through.
            apart = composed.apart(rows)
            losses = composed.cross_entropy_rows(apart.to(call.dtype), call.objective)
            above = row_scale(upstream, ctx.scale, rows)
            return (*composed.gradients([losses], apart, [above], ctx.needs_input_grad[:4]), None, None)
        found: Gradients = [None, None, None]
        if any(wanted):
            if call.objective.reduction == "none":
                found = kernels.forward_backward(call, rows, upstream, wanted)[1]
            else:
                found = _scaled(call, rows, ctx.scale, upstream.item(), wanted, ready)
        dtarget = None
        if ctx.needs_input_grad[3]:
            dtarget = target_gradient(call, rows, row_scale(upstream, ctx.scale, rows))
        return (*found, dtarget, None, None)


class _Statistics(torch.autograd.Function):
    """Of (input, weight, bias, labels, call)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        rows, call = LinearRows._make((*arguments[:-1], None)), arguments[-1]
        found = statistics_of(call, rows)
        # The caller may write to what he gets; the gradient needs lse in float64 and the entropy as they are.
        ctx.call, ctx.found = call, found._replace(entropy=found.entropy.copy())
        ctx.save_for_backward(*rows[:4])
        tensors = [torch.from_numpy(array) for array in found]
        tensors[2] = tensors[2].to(tensors[0].dtype, copy=True)
        ctx.mark_non_differentiable(*tensors[3:])
        ctx.set_materialize_grads(False)
        return tuple(tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, call, wanted = LinearRows._make((*ctx.saved_tensors, None)), ctx.call, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            apart = composed.apart(rows)
            values = composed.statistics_rows(apart.to(call.dtype), call.objective)[:3]
            return (*composed.gradients(values, apart, upstream[:3], wanted), None, None)
        return (*kernels.backward_statistics(call, rows, ctx.found, upstream[:3], wanted), None, None)


def statistics_of(call: Call, rows: LinearRows) -> CpuStatistics:
    """The statistics of each row; LabelError if a label is why there is a NaN among them."""
    found = kernels.forward_statistics(call, rows)
    if np.isnan(found.log_prob).any():
        check_labels(call.name, rows.target, len(rows.weight), call.objective.ignore_index)
    return found


def denominator_of(call: Call, rows: LinearRows) -> float:
    """What a mean divides by."""
    return of_logits.denominator_of(rows.target, rows.class_weight, len(rows.input), call.objective)


def _scaled(
    call: Call, rows: LinearRows, scale: float, upstream: float, wanted: Sequence[bool], ready: Gradients | None
) -> Gradients:
    """The gradients for a gradient from above: those that are ready (or are made anew) times it."""
    is_exact = math.frexp(upstream)[0] in (0.5, -0.5)
    dtypes = [tensor.dtype for tensor, want in zip(rows, wanted, strict=False) if want and tensor is not None]
    if upstream != 1.0 and (torch.float16 in (*dtypes, call.dtype) or (torch.bfloat16 in dtypes and not is_exact)):
        return kernels.forward_backward(call, rows, upstream * scale, wanted)[1]
    if ready is None:
        ready = kernels.forward_backward(call, rows, scale, wanted)[1]
    return ready if upstream == 1.0 else [None if tensor is None else tensor.mul_(upstream) for tensor in ready]


def target_gradient(call: Call, rows: LinearRows, scale: Tensor) -> Tensor:
    """The gradient by class probabilities."""
    return composed.target_gradient(rows.to(call.dtype), scale, call.objective, rows.target.dtype)


def row_scale(upstream: Tensor, scale: float, rows: LinearRows) -> Tensor:
    """The gradient from above for each row."""
    return upstream if upstream.ndim else (upstream * scale).expand(len(rows.input))


def reduced(losses: Array, call: Call, rows: LinearRows, denominator: float) -> Tensor:
    """What the reduction makes of the losses."""
    return of_logits.reduced(call.name, losses, denominator, rows.target, len(rows.weight), call.objective)
