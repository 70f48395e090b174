"""The losses and statistics as operators that torch knows: for `torch.compile`, fake tensors and tensor subclasses.

One operator for each, for all devices, and one for its gradient. An operator takes tensors, numbers and texts only, so
the options travel as `Objective.to_text`. As in autograd.py a sum or a mean of a linear layer makes its gradients
together with the loss, which here are further results of the operator; which of them are wanted is known when the graph
is traced. What is not wanted is an empty tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xent.backends.choice import choose, choose_linear
from xent.backends.formula import FORMULA, compute_dtype, target_gradient
from xent.backends.protocol import Statistics
from xent.linear.driver import Wanted
from xent.objective import Objective
from xent.reduction import gradient_scale
from xent.torch import autograd, linear_formula
from xent.torch.rows import Call, LinearRows

Two = tuple[Tensor, Tensor]
Three = tuple[Tensor, Tensor, Tensor]
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


# ------------------------------------------------------------------------------------------------------ loss of logits


def cross_entropy_rows(logits: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
    """The loss of each row, (N,) or (N, S)."""
    loss: Tensor = _loss(logits, target, weight, objective.to_text())[0]
    return loss


@torch.library.custom_op("xent::cross_entropy_rows", mutates_args=())
def _loss(logits: Tensor, target: Tensor, weight: Tensor | None, objective: str) -> Two:
    options = Objective.from_text(objective).weighted(weight)
    losses, saved = choose(logits.device).forward(logits, target, options)
    shape = logits.shape[:1] + logits.shape[2:]
    return losses.reshape(shape), saved.reshape(shape)


@torch.library.custom_op("xent::cross_entropy_rows_backward", mutates_args=())
def _loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor | None, saved: Tensor, row_scale: Tensor, objective: str
) -> Tensor:
    options = Objective.from_text(objective).weighted(weight)
    gradient: Tensor = choose(logits.device).backward(logits, target, saved.reshape(-1), row_scale, options)
    return gradient


@_loss.register_fake
def _(logits: Tensor, target: Tensor, weight: Tensor | None, objective: str) -> Two:
    rows = logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=compute_dtype(logits.dtype))
    return rows, torch.empty_like(rows, dtype=torch.float64)


@_loss_backward.register_fake
def _(
    logits: Tensor, target: Tensor, weight: Tensor | None, saved: Tensor, row_scale: Tensor, objective: str
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Two) -> None:
    logits, target, weight, ctx.objective = inputs
    ctx.save_for_backward(logits, target, weight, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_loss(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, weight, saved = ctx.saved_tensors
    dlogits = dtarget = None
    if ctx.needs_input_grad[0]:
        dlogits = _loss_backward(logits, target, weight, saved, upstream, ctx.objective)
    if ctx.needs_input_grad[1]:
        options = Objective.from_text(ctx.objective).weighted(weight)
        dtarget = target_gradient(logits, upstream, options, target.dtype)
    return dlogits, dtarget, None, None


def _save_all(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.objective = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_loss_again(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """The derivative of the gradient, by torch's differentiation of the formula."""
    logits, target, weight, _, row_scale = ctx.saved_tensors
    options = Objective.from_text(ctx.objective).weighted(weight)
    with torch.enable_grad():
        x, g = logits.detach().requires_grad_(), row_scale.detach().requires_grad_()
        p = target.detach().requires_grad_() if ctx.needs_input_grad[1] else target
        gradient = FORMULA.backward(x, p, None, g, options)
        variables = [x, g] + ([p] if ctx.needs_input_grad[1] else [])
        derivatives = torch.autograd.grad(gradient, variables, upstream)
    return derivatives[0], derivatives[2] if len(derivatives) > 2 else None, None, None, derivatives[1], None


_loss.register_autograd(_differentiate_loss, setup_context=_save_loss)
_loss_backward.register_autograd(_differentiate_loss_again, setup_context=_save_all)


# ------------------------------------------------------------------------------------------------ statistics of logits


def statistics_rows(logits: Tensor, labels: Tensor, objective: Objective) -> Statistics:
    """The statistics of each row, (N,) or (N, S)."""
    return Statistics(*_statistics(logits, labels, objective.to_text())[:5])


@torch.library.custom_op("xent::statistics_rows", mutates_args=())
def _statistics(logits: Tensor, labels: Tensor, objective: str) -> Six:
    statistics = choose(logits.device).statistics(logits, labels, Objective.from_text(objective))
    shape = logits.shape[:1] + logits.shape[2:]
    return _with_lse(Statistics(*(numbers.reshape(shape) for numbers in statistics)))


@torch.library.custom_op("xent::statistics_rows_backward", mutates_args=())
def _statistics_backward(
    upstream: Sequence[Tensor], logits: Tensor, labels: Tensor, entropy: Tensor, lse: Tensor, objective: str
) -> Tensor:
    statistics = Statistics(None, entropy.reshape(-1), lse.reshape(-1), None, None)
    d_log_prob, d_entropy, d_lse = (number.reshape(-1) for number in upstream)
    options = Objective.from_text(objective)
    backend = choose(logits.device)
    upstream_of_rows = (d_log_prob, d_entropy, d_lse)
    gradient: Tensor = backend.statistics_gradient(logits, labels, statistics, upstream_of_rows, options)
    return gradient.contiguous()


@_statistics.register_fake
def _(logits: Tensor, labels: Tensor, objective: str) -> Six:
    return _fake_statistics(logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=compute_dtype(logits.dtype)))


@_statistics_backward.register_fake
def _(
    upstream: Sequence[Tensor], logits: Tensor, labels: Tensor, entropy: Tensor, lse: Tensor, objective: str
) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _with_lse(statistics: Statistics) -> Six:
    """The statistics as they are handed out, and the log-sum-exp in float64, which their gradient needs."""
    log_prob, entropy, lse, argmax, rank = statistics
    return log_prob, entropy, lse.to(log_prob.dtype, copy=True), argmax, rank, lse


def _fake_statistics(real: Tensor) -> Six:
    whole, double = torch.empty_like(real, dtype=torch.int64), torch.empty_like(real, dtype=torch.float64)
    return real, torch.empty_like(real), torch.empty_like(real), whole, torch.empty_like(whole), double


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: Six) -> None:
    logits, labels, ctx.objective = inputs
    ctx.save_for_backward(logits, labels, output[1], output[5])
    ctx.mark_non_differentiable(*output[3:])


def _differentiate_statistics(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    return _statistics_backward(list(upstream[:3]), *ctx.saved_tensors, ctx.objective), None, None


def _save_statistics_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    upstream, logits, labels, _, _, ctx.objective = inputs
    ctx.save_for_backward(*upstream, logits, labels)


def _differentiate_statistics_again(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    *first, logits, labels = ctx.saved_tensors
    with torch.enable_grad():
        variables = [tensor.detach().requires_grad_() for tensor in (logits, *first)]
        options = Objective.from_text(ctx.objective)
        gradient = FORMULA.statistics_gradient(variables[0], labels, None, tuple(variables[1:]), options)
        derivatives = torch.autograd.grad(gradient, variables, upstream)
    return list(derivatives[1:]), derivatives[0], None, None, None, None


_statistics.register_autograd(_differentiate_statistics, setup_context=_save_statistics)
_statistics_backward.register_autograd(_differentiate_statistics_again, setup_context=_save_statistics_backward)


# ------------------------------------------------------------------------------------------------------ linear layers


def linear_cross_entropy(call: Call, rows: LinearRows) -> Tensor:
    """What `autograd.linear_cross_entropy` gives."""
    is_early = call.objective.reduction != "none" and torch.is_grad_enabled() and call.dtype != torch.float16
    wanted = [is_early and tensor is not None and tensor.requires_grad for tensor in rows[:3]]
    loss: Tensor = _linear_loss(*rows, call.objective.to_text(), call.workspace, call.dtype, wanted)[0]
    return loss


def linear_statistics(call: Call, rows: LinearRows) -> Statistics:
    """What `autograd.LinearStatistics` gives."""
    return Statistics(*_linear_statistics(*rows[:4], call.objective.to_text(), call.workspace, call.dtype)[:5])


def _call(name: str, device: torch.device, objective: str, workspace: int, dtype: torch.dtype) -> Call:
    options = Objective.from_text(objective)
    return Call(name, options, choose(device), choose_linear(device), workspace, dtype)


def _filled(tensors: Sequence[Tensor | None], like: Tensor) -> Three:
    first, second, third = (like.new_empty(0) if tensor is None else tensor for tensor in tensors)
    return first, second, third


def _fake_gradients(tensors: Sequence[Tensor | None], wanted: Sequence[bool], input: Tensor) -> Three:
    made = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if want and tensor is not None else None
        for tensor, want in zip(tensors, wanted, strict=True)
    ]
    return _filled(made, input)


@torch.library.custom_op("xent::linear_cross_entropy", mutates_args=())
def _linear_loss(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    call = _call("linear_cross_entropy", input.device, objective, workspace, dtype)
    rows = LinearRows(input, weight, bias, target, class_weight)
    loss, _, ready, _ = autograd.linear_loss(call, rows, Wanted(*wanted))
    return loss, *_filled(ready or (None, None, None), input)


@torch.library.custom_op("xent::linear_cross_entropy_backward", mutates_args=())
def _linear_loss_backward(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    dinput: Tensor, dweight: Tensor, dbias: Tensor,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool], made: Sequence[bool],
) -> Three:  # fmt: skip
    call = _call("linear_cross_entropy", input.device, objective, workspace, dtype)
    rows = LinearRows(input, weight, bias, target, class_weight)
    ready: Any = None
    if all(was_made or not want for was_made, want in zip(made, wanted, strict=True)):
        # Copies, which may be scaled in place: the graph keeps what it has.
        ready = [made.clone() if want else None for made, want in zip((dinput, dweight, dbias), wanted, strict=True)]
    scale = gradient_scale(autograd.denominator_of(call, target, class_weight), call.objective)
    gradients = autograd.rescaled(call, rows, upstream.new_empty(0), scale, upstream, wanted, ready)
    return _filled(gradients, input)


@_linear_loss.register_fake
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    shape = input.shape[:1] if Objective.from_text(objective).reduction == "none" else ()
    loss = input.new_empty(shape, dtype=compute_dtype(dtype))
    return loss, *_fake_gradients((input, weight, bias), wanted, input)


@_linear_loss_backward.register_fake
def _(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    dinput: Tensor, dweight: Tensor, dbias: Tensor,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool], made: Sequence[bool],
) -> Three:  # fmt: skip
    return _fake_gradients((input, weight, bias), wanted, input)


def _save_linear(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, objective, workspace, dtype, wanted = inputs
    ctx.parts, ctx.made = (objective, workspace, dtype), wanted
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_linear(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    *tensors, dinput, dweight, dbias = ctx.saved_tensors
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    gradients: list[Tensor | None] = [None, None, None]
    if any(wanted):
        ready = (dinput, dweight, dbias)
        made = _linear_loss_backward(upstream, *tensors, *ready, *ctx.parts, wanted, ctx.made)
        gradients = [gradient if want else None for gradient, want in zip(made, wanted, strict=True)]
    dtarget = _gradient_of_target(ctx, LinearRows(*tensors), upstream) if ctx.needs_input_grad[3] else None
    return *gradients, dtarget, *[None] * 5


def _gradient_of_target(ctx: Any, rows: LinearRows, upstream: Tensor) -> Tensor:
    """The gradient by class probabilities, whose mean is over the rows."""
    objective, _, dtype = ctx.parts
    call = Call("linear_cross_entropy", Objective.from_text(objective), FORMULA)
    scale = gradient_scale(autograd.denominator_of(call, rows.target, rows.class_weight), call.objective)
    row_scale = upstream if upstream.ndim else (upstream * scale).expand(len(rows.input))
    return linear_formula.gradient_of_target(rows.to(dtype), row_scale, call.objective, rows.target.dtype, None)


_linear_loss.register_autograd(_differentiate_linear, setup_context=_save_linear)


@torch.library.custom_op("xent::linear_statistics", mutates_args=())
def _linear_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
    objective: str, workspace: int, dtype: torch.dtype,
) -> Six:  # fmt: skip
    call = _call("linear_statistics", input.device, objective, workspace, dtype)
    rows = LinearRows(input, weight, bias, labels, None)
    return _with_lse(call.linear.statistics(rows.layer(call), call.objective))


@torch.library.custom_op("xent::linear_statistics_backward", mutates_args=())
def _linear_statistics_backward(
    upstream: Sequence[Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entropy: Tensor,
    lse: Tensor, objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    call = _call("linear_statistics", input.device, objective, workspace, dtype)
    rows = LinearRows(input, weight, bias, labels, None)
    return _filled(autograd.linear_statistics_gradients(call, rows, lse, entropy, list(upstream), wanted), input)


@_linear_statistics.register_fake
def _(
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
    objective: str, workspace: int, dtype: torch.dtype,
) -> Six:  # fmt: skip
    return _fake_statistics(input.new_empty(input.shape[:1], dtype=compute_dtype(dtype)))


@_linear_statistics_backward.register_fake
def _(
    upstream: Sequence[Tensor], input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entropy: Tensor,
    lse: Tensor, objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    return _fake_gradients((input, weight, bias), wanted, input)


def _save_linear_statistics(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, objective, workspace, dtype = inputs
    ctx.parts = (objective, workspace, dtype)
    ctx.save_for_backward(*tensors, output[1], output[5])
    ctx.mark_non_differentiable(*output[3:])


def _differentiate_linear_statistics(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    made = _linear_statistics_backward(list(upstream[:3]), *ctx.saved_tensors, *ctx.parts, wanted)
    return *(gradient if want else None for gradient, want in zip(made, wanted, strict=True)), *[None] * 4


_linear_statistics.register_autograd(_differentiate_linear_statistics, setup_context=_save_linear_statistics)
