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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent.cpu.cross_entropy import Statistics as CpuStatistics
from xent.reduction import gradient_scale, mean_denominator, reduce
from xent.targets import check_labels
from xent.torch import linear_composed as composed
from xent.torch import linear_kernels as kernels
from xent.torch.linear_kernels import Array, Call


def cross_entropy(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None
) -> Tensor:
    """The reduced loss of input (rows, features), or with reduction "none" the losses (rows,)."""
    tensors = (input, weight, bias, target)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        loss: Tensor = _CrossEntropy.apply(*tensors, class_weight, call)  # type: ignore[no-untyped-call]
        return loss
    losses = kernels.forward(call, *tensors, class_weight)
    return reduced(losses, call, weight, target, denominator_of(call, input, target, class_weight))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None, call: Call
    ) -> Tensor:
        denominator = denominator_of(call, input, target, class_weight)
        ctx.call, ctx.scale, ctx.ready = call, gradient_scale(denominator, call.objective), None
        tensors = (input, weight, bias, target, class_weight)
        wanted = ctx.needs_input_grad[:3]
        if call.objective.reduction == "none" or not any(wanted):
            losses = kernels.forward(call, *tensors)
        else:
            losses, ctx.ready = kernels.forward_backward(call, *tensors, ctx.scale, wanted)
        ctx.save_for_backward(*tensors)
        return reduced(losses, call, weight, target, denominator)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors, wanted = ctx.saved_tensors, ctx.needs_input_grad[:3]
        ready, ctx.ready = ctx.ready, None
        call: Call = ctx.call
        if torch.is_grad_enabled():
            # Somebody will differentiate these gradients: they have to be formulas that torch can see through.
            return (*formulas(call, tensors, upstream, ctx.scale, ctx.needs_input_grad[:4]), None, None)
        found: list[Tensor | None] = [None, None, None]
        if any(wanted):
            if call.objective.reduction == "none":
                found = kernels.forward_backward(call, *tensors, upstream, wanted)[1]
            else:
                found = _scaled(call, tensors, ctx.scale, upstream.item(), wanted, ready)
        dtarget = None
        if ctx.needs_input_grad[3]:
            dtarget = target_gradient(call, tensors, row_scale(upstream, ctx.scale, tensors[0]))
        return (*found, dtarget, None, None)


class Statistics(torch.autograd.Function):
    """(log_prob, entropy, lse, argmax, rank) of input (rows, features)."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, call: Call
    ) -> tuple[Tensor, ...]:
        found = statistics_of(call, input, weight, bias, labels)
        ctx.call, ctx.found = call, found._replace(entropy=found.entropy.copy())
        ctx.save_for_backward(input, weight, bias, labels)
        tensors = [torch.from_numpy(array) for array in found]
        tensors[2] = tensors[2].to(tensors[0].dtype, copy=True)
        ctx.mark_non_differentiable(*tensors[3:])
        ctx.set_materialize_grads(False)
        return tuple(tensors)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        input, weight, bias, labels = ctx.saved_tensors
        wanted, call = ctx.needs_input_grad[:3], ctx.call
        if torch.is_grad_enabled():
            arguments = composed.apart(input, weight, bias)
            x, w, b = (None if argument is None else argument.to(call.dtype) for argument in arguments)
            assert x is not None
            assert w is not None
            made = composed.statistics_rows(x, w, b, labels, call.objective)[:3]
            return (*composed.gradients(made, arguments, upstream[:3], wanted), None, None)
        found = kernels.backward_statistics(call, input, weight, bias, labels, ctx.found, upstream[:3], wanted)
        return (*found, None, None)


def statistics_of(
    call: Call, input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor
) -> CpuStatistics:
    """The statistics of each row; LabelError if a label is why there is a NaN among them."""
    found = kernels.forward_statistics(call, input, weight, bias, labels)
    if np.isnan(found.log_prob).any():
        check_labels(call.name, labels, weight.shape[0], call.objective.ignore_index)
    return found


def denominator_of(call: Call, input: Tensor, target: Tensor, class_weight: Tensor | None) -> float:
    """What a mean divides by; 1 for other reductions, which do not ask."""
    if call.objective.reduction != "mean":
        return 1.0
    soft = target.is_floating_point()
    weights = None if class_weight is None else class_weight.detach().double().numpy()
    labels = None if soft else target.numpy()
    return float(mean_denominator(labels, weights, soft, input.shape[0], call.objective))


def _scaled(
    call: Call, tensors: tuple[Any, ...], scale: float, upstream: float, wanted: Any, ready: list[Tensor | None] | None
) -> list[Tensor | None]:
    """The gradients for a gradient from above: those that are ready (or are made anew) times it."""
    exact = math.frexp(upstream)[0] in (0.5, -0.5)
    needed = [tensor.dtype for tensor, want in zip(tensors, wanted, strict=False) if want and tensor is not None]
    if upstream != 1.0 and (torch.float16 in (*needed, call.dtype) or (torch.bfloat16 in needed and not exact)):
        return kernels.forward_backward(call, *tensors, upstream * scale, wanted)[1]
    if ready is None:
        ready = kernels.forward_backward(call, *tensors, scale, wanted)[1]
    return ready if upstream == 1.0 else [None if tensor is None else tensor.mul_(upstream) for tensor in ready]


def formulas(
    call: Call, tensors: tuple[Any, ...], upstream: Tensor, scale: float, wanted: Any
) -> list[Tensor | None]:
    """The gradients by input, weight, bias and class probabilities as formulas."""
    class_weight = tensors[4]
    arguments = composed.apart(*tensors[:4])
    x, w, b = (None if argument is None else argument.to(call.dtype) for argument in arguments[:3])
    assert x is not None
    assert w is not None
    assert arguments[3] is not None
    losses = composed.cross_entropy_rows(x, w, b, arguments[3], class_weight, call.objective)
    return composed.gradients([losses], arguments, [row_scale(upstream, scale, x)], wanted)


def target_gradient(call: Call, tensors: tuple[Any, ...], scale: Tensor) -> Tensor:
    """The gradient by class probabilities."""
    input, weight, bias, target, class_weight = tensors
    x, w, b = (None if tensor is None else tensor.to(call.dtype) for tensor in (input, weight, bias))
    assert x is not None
    assert w is not None
    return composed.target_gradient(x, w, b, class_weight, scale, call.objective, target.dtype)


def row_scale(upstream: Tensor, scale: float, input: Tensor) -> Tensor:
    """The gradient from above for each row."""
    return upstream if upstream.ndim else (upstream * scale).expand(input.shape[0])


def reduced(losses: Array, call: Call, weight: Tensor, target: Tensor, denominator: float) -> Tensor:
    """Return what the reduction makes of the losses; LabelError if a label is why there is a NaN among them."""
    total = float(np.add.reduce(losses, dtype=np.float64))
    if total != total and not target.is_floating_point():
        check_labels(call.name, target, weight.shape[0], call.objective.ignore_index)
    if call.objective.reduction == "none":
        return torch.from_numpy(losses)
    return torch.from_numpy(np.array(reduce(total, denominator, call.objective), dtype=losses.dtype))
