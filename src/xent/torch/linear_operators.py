"""The linear loss and its statistics as operators that torch knows: for `torch.compile` and tensor subclasses.

An operator takes tensors, numbers and flags only, so the call travels taken apart. As in linear_autograd.py a sum or a
mean makes its gradients together with the loss, which here are further results of the operator; which of them are
wanted is known when the graph is traced. What is not wanted is an empty tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from xent.backends.cpu.cross_entropy import Statistics
from xent.backends.formula import compute_dtype
from xent.objective import Objective, Reduction
from xent.reduction import gradient_scale, mean_denominator
from xent.torch import linear_autograd, linear_kernels
from xent.torch.backends import TRITON_DEVICES
from xent.torch.linear_kernels import Call
from xent.torch.rows import LinearRows

Four = tuple[Tensor, Tensor, Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]


def cross_entropy(call: Call, rows: LinearRows) -> Tensor:
    """What `linear_autograd.cross_entropy` gives."""
    made_now = call.objective.reduction != "none" and torch.is_grad_enabled() and call.dtype != torch.float16
    wanted = [made_now and tensor is not None and tensor.requires_grad for tensor in rows[:3]]
    loss: Tensor = _forward(*rows, *_apart(call), wanted)[0]
    return loss


def statistics(call: Call, rows: LinearRows) -> tuple[Tensor, ...]:
    """What `linear_autograd.statistics` gives."""
    found: tuple[Tensor, ...] = _statistics(*rows[:4], *_apart(call))
    return found[:5]


def _apart(call: Call) -> tuple[list[float], str, int, torch.dtype]:
    """A call as what operators take."""
    numbers = [*call.objective.to_numbers(), call.objective.denominator or 0.0]
    return numbers, call.objective.reduction, call.workspace, call.dtype


def _together(name: str, numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype) -> Call:
    objective = Objective.from_numbers(list(numbers[:-1]))
    objective = replace(objective, reduction=cast(Reduction, reduction), denominator=numbers[-1] or None)
    return Call(name, objective, workspace, dtype)


def _filled(tensors: Sequence[Tensor | None], like: Tensor) -> Three:
    first, second, third = (like.new_empty(0) if tensor is None else tensor for tensor in tensors)
    return first, second, third


# ---------------------------------------------------------------------------------------------------------------- loss


@torch.library.custom_op("xent::linear_cross_entropy", mutates_args=(), device_types="cpu")
def _forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Four:  # fmt: skip
    call = _together("linear_cross_entropy", numbers, reduction, workspace, dtype)
    rows = LinearRows(input, weight, bias, target, class_weight)
    denominator = linear_autograd.denominator_of(call, rows)
    found: list[Tensor | None] = [None, None, None]
    if any(wanted):
        scale = gradient_scale(denominator, call.objective)
        losses, found = linear_kernels.forward_backward(call, rows, scale, wanted)
    else:
        losses = linear_kernels.forward(call, rows)
    return linear_autograd.reduced(losses, call, rows, denominator), *_filled(found, input)


@torch.library.custom_op("xent::linear_cross_entropy_backward", mutates_args=(), device_types="cpu")
def _backward(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    call = _together("linear_cross_entropy", numbers, reduction, workspace, dtype)
    rows = LinearRows(input, weight, bias, target, class_weight)
    scale: Tensor | float = upstream
    if upstream.ndim == 0:
        scale = upstream.item() * gradient_scale(linear_autograd.denominator_of(call, rows), call.objective)
    return _filled(linear_kernels.forward_backward(call, rows, scale, wanted)[1], input)


def _like(tensors: Sequence[Tensor | None], wanted: Sequence[bool], input: Tensor) -> Three:
    made = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if want and tensor is not None else None
        for tensor, want in zip(tensors, wanted, strict=True)
    ]
    return _filled(made, input)


@_forward.register_fake
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Four:  # fmt: skip
    shape = input.shape[:1] if reduction == "none" else ()
    loss = input.new_empty(shape, dtype=compute_dtype(dtype))
    return loss, *_like((input, weight, bias), wanted, input)


@_backward.register_fake
def _(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    return _like((input, weight, bias), wanted, input)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Four) -> None:
    *tensors, numbers, reduction, workspace, dtype, wanted = inputs
    ctx.parts, ctx.made = (numbers, reduction, workspace, dtype), wanted
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    *tensors, dinput, dweight, dbias = ctx.saved_tensors
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    found: list[Tensor | None] = [None, None, None]
    if all(made or not want for made, want in zip(ctx.made, wanted, strict=True)):
        ready = (dinput, dweight, dbias)
        found = [gradient * upstream if want else None for gradient, want in zip(ready, wanted, strict=True)]
    elif any(wanted):
        made = _backward(upstream, *tensors, *ctx.parts, wanted)
        found = [gradient if want else None for gradient, want in zip(made, wanted, strict=True)]
    dtarget = None
    if ctx.needs_input_grad[3]:
        call = _together("linear_cross_entropy", *ctx.parts)
        dtarget = _target_gradient(call, LinearRows(*tensors), upstream)
    return *found, dtarget, *[None] * 6


def _target_gradient(call: Call, rows: LinearRows, upstream: Tensor) -> Tensor:
    """The gradient by class probabilities, whose mean is over the rows."""
    denominator = mean_denominator(rows.target, rows.class_weight, True, len(rows.input), call.objective)
    scale = gradient_scale(denominator, call.objective)
    return linear_autograd.target_gradient(call, rows, linear_autograd.row_scale(upstream, scale, rows))


_forward.register_autograd(_differentiate, setup_context=_save)


# ---------------------------------------------------------------------------------------------------------- statistics


@torch.library.custom_op("xent::linear_statistics", mutates_args=(), device_types="cpu")
def _statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    call = _together("linear_statistics", numbers, reduction, workspace, dtype)
    log_prob, entropy, lse, argmax, rank = (
        torch.from_numpy(array)
        for array in linear_autograd.statistics_of(call, LinearRows(input, weight, bias, labels, None))
    )
    return log_prob, entropy, lse.to(log_prob.dtype, copy=True), argmax, rank, lse


@torch.library.custom_op("xent::linear_statistics_backward", mutates_args=(), device_types="cpu")
def _statistics_backward(
    upstream: Sequence[Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entropy: Tensor,
    lse: Tensor, numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    call = _together("linear_statistics", numbers, reduction, workspace, dtype)
    rows = LinearRows(input, weight, bias, labels, None)
    unused = np.empty(0, np.int64)
    found = Statistics(entropy.numpy(), entropy.numpy(), lse.numpy(), unused, unused)
    gradients = linear_kernels.backward_statistics(call, rows, found, list(upstream), wanted)
    return _filled(gradients, input)


@_statistics.register_fake
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    real = input.new_empty(input.shape[:1], dtype=compute_dtype(dtype))
    whole = torch.empty_like(real, dtype=torch.int64)
    double = torch.empty_like(real, dtype=torch.float64)
    return real, torch.empty_like(real), torch.empty_like(real), whole, torch.empty_like(whole), double


@_statistics_backward.register_fake
def _(
    upstream: Sequence[Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entropy: Tensor,
    lse: Tensor, numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    return _like((input, weight, bias), wanted, input)


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, numbers, reduction, workspace, dtype = inputs
    ctx.parts = (numbers, reduction, workspace, dtype)
    ctx.save_for_backward(*tensors, output[1], output[5])
    ctx.mark_non_differentiable(*output[3:])


def _differentiate_statistics(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    made = _statistics_backward(list(upstream[:3]), *ctx.saved_tensors, *ctx.parts, wanted)
    return *(gradient if want else None for gradient, want in zip(made, wanted, strict=True)), *[None] * 5


_statistics.register_autograd(_differentiate_statistics, setup_context=_save_statistics)


# ------------------------------------------------------------------------------------------------- the same on a GPU


@_forward.register_kernel(TRITON_DEVICES)
def forward_on_gpu(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Four:  # fmt: skip
    """The loss, and the gradients that are wanted."""
    from xent.torch import linear_gpu

    call = _together("linear_cross_entropy", numbers, reduction, workspace, dtype)
    rows = LinearRows(input, weight, bias, target, class_weight)
    loss, found, _ = linear_gpu.loss_and_gradients(call, rows, wanted)
    return loss, *_filled(found, input)


@_backward.register_kernel(TRITON_DEVICES)
def backward_on_gpu(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    """The gradients for what arrives from above."""
    from xent.torch import linear_gpu

    call = _together("linear_cross_entropy", numbers, reduction, workspace, dtype)
    rows = LinearRows(input, weight, bias, target, class_weight)
    scale = upstream
    if upstream.ndim == 0:
        scale = upstream.double() * gradient_scale(linear_gpu.denominator_of(call, rows), call.objective)
    return _filled(linear_gpu.forward_backward(call, rows, scale, wanted)[1], input)


@_statistics.register_kernel(TRITON_DEVICES)
def statistics_on_gpu(
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
    numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The statistics, and the log-sum-exp in float64."""
    from xent.torch import linear_gpu

    call = _together("linear_statistics", numbers, reduction, workspace, dtype)
    found = linear_gpu.forward_statistics(call, LinearRows(input, weight, bias, labels, None))
    lse = found.lse.to(found.log_prob.dtype, copy=True)
    return found.log_prob, found.entropy, lse, found.argmax, found.rank, found.lse


@_statistics_backward.register_kernel(TRITON_DEVICES)
def statistics_backward_on_gpu(
    upstream: Sequence[Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entropy: Tensor,
    lse: Tensor, numbers: Sequence[float], reduction: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    """The gradients of the statistics."""
    from xent.torch import linear_gpu

    call = _together("linear_statistics", numbers, reduction, workspace, dtype)
    rows = LinearRows(input, weight, bias, labels, None)
    return _filled(linear_gpu.backward_statistics(call, rows, lse, entropy, list(upstream), wanted), input)
