"""The kernels as operators that torch knows: for `torch.compile`, fake tensors and tensor subclasses.

An operator takes tensors and numbers only, so the options travel as the list that `Objective.to_numbers` makes. The
gradient is an operator of its own, whose derivative is a formula of torch operations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.backends import formula as composed
from xent.objective import Objective
from xent.torch import kernels
from xent.torch.backends import TRITON_DEVICES


def cross_entropy_rows(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
    """The loss of each row, as `composed.cross_entropy_rows` gives it, by the kernels."""
    loss: Tensor = _forward(logits, target, weight, objective.to_numbers())[0]
    return loss


def statistics_rows(logits: Tensor, labels: Tensor, objective: Objective) -> tuple[Tensor, ...]:
    """What `composed.statistics_rows` gives, by the kernel."""
    found: tuple[Tensor, ...] = _statistics(logits, labels, objective.to_numbers())
    return found


@torch.library.custom_op("xent::cross_entropy_rows", mutates_args=(), device_types="cpu")
def _forward(logits: Tensor, target: Tensor, weight: Tensor | None, options: list[float]) -> tuple[Tensor, Tensor]:
    losses, lse = kernels.forward(logits, target, weight, Objective.from_numbers(options))
    shape = logits.shape[:1] + logits.shape[2:]
    return torch.from_numpy(losses).reshape(shape), torch.from_numpy(lse).reshape(shape)


@torch.library.custom_op("xent::cross_entropy_rows_backward", mutates_args=(), device_types="cpu")
def _backward(
    logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, row_scale: Tensor, options: list[float]
) -> Tensor:
    objective = Objective.from_numbers(options)
    return kernels.backward(logits, target, weight, lse.reshape(-1).numpy(), row_scale, objective)


@_forward.register_fake
def _(logits: Tensor, target: Tensor, weight: Tensor | None, options: list[float]) -> tuple[Tensor, Tensor]:
    rows = logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=composed.compute_dtype(logits.dtype))
    return rows, torch.empty_like(rows, dtype=torch.float64)


@_backward.register_fake
def _(
    logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, row_scale: Tensor, options: list[float]
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, target, weight, ctx.options = inputs
    ctx.save_for_backward(logits, target, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    logits, target, weight, lse = ctx.saved_tensors
    dlogits = dtarget = None
    if ctx.needs_input_grad[0]:
        dlogits = _backward(logits, target, weight, lse, upstream, ctx.options)
    if ctx.needs_input_grad[1]:
        objective = Objective.from_numbers(ctx.options)
        dtarget = composed.target_gradient(logits, weight, upstream, objective, target.dtype)
    return dlogits, dtarget, None, None


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.options = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_again(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of the gradient, by torch's differentiation of the composed formula."""
    logits, target, weight, _, row_scale = ctx.saved_tensors
    objective = Objective.from_numbers(ctx.options)
    with torch.enable_grad():
        x, g = logits.detach().requires_grad_(), row_scale.detach().requires_grad_()
        p = target.detach().requires_grad_() if ctx.needs_input_grad[1] else target
        gradient = composed.cross_entropy_gradient(x, p, weight, g, objective)
        wanted = [x, g] + ([p] if ctx.needs_input_grad[1] else [])
        found = torch.autograd.grad(gradient, wanted, upstream)
    return found[0], found[2] if len(found) > 2 else None, None, None, found[1], None


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_differentiate_again, setup_context=_save_all)


@torch.library.custom_op("xent::statistics_rows", mutates_args=(), device_types="cpu")
def _statistics(logits: Tensor, labels: Tensor, options: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    log_prob, entropy, lse, argmax, rank = kernels.statistics(logits, labels, Objective.from_numbers(options))
    return log_prob, entropy, lse, argmax, rank


@_statistics.register_fake
def _(logits: Tensor, labels: Tensor, options: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    real = logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=composed.compute_dtype(logits.dtype))
    whole = torch.empty_like(real, dtype=torch.int64)
    return real, torch.empty_like(real), torch.empty_like(real), whole, torch.empty_like(whole)


def _save_logits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, ctx.options = inputs
    ctx.save_for_backward(logits, labels)
    ctx.mark_non_differentiable(*output[3:])


def _differentiate_statistics(
    ctx: Any, d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor, *_: Tensor
) -> tuple[Tensor, None, None]:
    logits, labels = ctx.saved_tensors
    objective = Objective.from_numbers(ctx.options)
    return composed.statistics_gradient(logits, labels, d_log_prob, d_entropy, d_lse, objective), None, None


_statistics.register_autograd(_differentiate_statistics, setup_context=_save_logits)


# ------------------------------------------------------------------------------------------------- the same on a GPU


@_forward.register_kernel(TRITON_DEVICES)
def forward_on_gpu(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: list[float]
) -> tuple[Tensor, Tensor]:
    """Losses and log-sum-exps by the Triton kernel."""
    from xent.backends.gpu import cross_entropy as gpu
    from xent.torch.gpu_autograd import with_weight

    objective = with_weight(Objective.from_numbers(options), weight, logits)
    losses, lse = gpu.forward(logits, target, objective)
    shape = logits.shape[:1] + logits.shape[2:]
    return losses.reshape(shape), lse.reshape(shape)


@_backward.register_kernel(TRITON_DEVICES)
def backward_on_gpu(
    logits: Tensor, target: Tensor, weight: Tensor | None, lse: Tensor, row_scale: Tensor, options: list[float]
) -> Tensor:
    """The gradient by the Triton kernel."""
    from xent.torch import gpu_autograd

    objective = gpu_autograd.with_weight(Objective.from_numbers(options), weight, logits)
    return gpu_autograd.backward(logits, target, lse.reshape(-1), row_scale, objective)


@_statistics.register_kernel(TRITON_DEVICES)
def statistics_on_gpu(
    logits: Tensor, labels: Tensor, options: list[float]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The statistics by the Triton kernel."""
    from xent.torch import gpu_autograd

    log_prob, entropy, lse, argmax, rank = gpu_autograd.statistics(logits, labels, Objective.from_numbers(options))
    return log_prob, entropy, lse, argmax, rank
