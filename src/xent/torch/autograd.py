"""The losses and statistics under torch's automatic differentiation: one `Function` for each, for all backends.

A sum or a mean makes its gradient together with the loss, in one visit to the logits, for an upstream gradient of 1, as
`loss.backward()` passes it. The first backward hands that gradient out; another upstream gradient, or a second
backward, makes it anew in the same way, so that it has the same bits and is rounded to 16 bits once. With reduction
"none" the upstream gradient is not known before backward.

Of a linear layer, making gradients anew would cost three products more: what is ready is multiplied by the upstream
gradient, exactly for a power of two (a loss scale, a mean over 2, 4, 8 ... accumulated batches), with one more rounding
in float32 and float64. Gradients in 16 bits that would be rounded twice, and float16 ones, which may have underflowed
already, are made anew.

Nothing here waits for a device whose numbers the host cannot read (`Backend.reads_values`): denominators stay on it,
labels are not looked at, and the device itself finds out whether the upstream gradient is 1.

Second derivatives are those of the formulas (xent/backends/formula.py).

torch's own operator mechanism (operators.py) costs about 30 microseconds more for each call, as much as the whole loss
of a small batch; so it serves only where torch has to see the operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xent.backends.formula import FORMULA, target_gradient
from xent.backends.protocol import Statistics as RowStatistics
from xent.checks import check_labels
from xent.linear.driver import NOTHING, Wanted
from xent.objective import Objective
from xent.reduction import gradient_scale, mean_denominator, reduce
from xent.torch import linear_formula
from xent.torch.rows import Call, LinearRows

Gradients = list[Tensor | None]


# ------------------------------------------------------------------------------------------------------ loss of logits


def cross_entropy(call: Call, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The reduced loss of rows (N, C) or (N, C, S), or with reduction "none" the losses (rows,)."""
    if torch.is_grad_enabled() and (logits.requires_grad or target.requires_grad):
        loss: Tensor = CrossEntropy.apply(logits, target, weight, call)  # type: ignore[no-untyped-call]
        return loss
    losses, _ = call.backend.forward(logits, target, call.objective.weighted(weight))
    return reduced(call, losses, denominator_of(call, target, weight), target, logits.shape[1], logits.dtype)


class CrossEntropy(torch.autograd.Function):
    """Of (logits, target, class weights, call)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, call: Call) -> Tensor:
        objective, backend = call.objective.weighted(weight), call.backend
        denominator = denominator_of(call, target, weight)
        ctx.call, ctx.scale, ctx.ready, saved = call, gradient_scale(denominator, objective), None, None
        if objective.reduction == "none" or not ctx.needs_input_grad[0] or not backend.one_visit:
            losses, saved = backend.forward(logits, target, objective)
        else:
            losses, _, ctx.ready = backend.forward_backward(logits, target, ctx.scale, objective)
        ctx.save_for_backward(logits, target, weight, saved)
        return reduced(call, losses, denominator, target, logits.shape[1], logits.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _differentiated(ctx, _gradients_of_logits, upstream)


def _gradients_of_logits(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    logits, target, weight, saved = ctx.saved_tensors
    call, ready, ctx.ready = ctx.call, ctx.ready, None
    backend, objective = call.backend, call.objective.weighted(weight)
    dlogits = dtarget = None
    if ctx.needs_input_grad[0]:
        if backend.reads_values and saved is None and not torch.is_grad_enabled():
            factor = upstream.item()
            if ready is not None and factor == 1.0:
                dlogits = ready
            else:
                dlogits = backend.forward_backward(logits, target, factor * ctx.scale, objective, out=ready)[2]
        else:
            row_scale = upstream if upstream.ndim else upstream.double() * ctx.scale
            if torch.is_grad_enabled():
                # Somebody will differentiate this gradient: it has to be a formula that torch can see through.
                dlogits = FORMULA.backward(logits, target, None, of_rows(row_scale, logits), objective)
            elif saved is not None:
                dlogits = backend.backward(logits, target, saved, row_scale, objective)
            else:
                done = {} if ready is None else {"finished": upstream}
                dlogits = backend.forward_backward(logits, target, row_scale, objective, out=ready, **done)[2]
    if ctx.needs_input_grad[1]:
        row_scale = of_rows(upstream if upstream.ndim else upstream * ctx.scale, logits)
        lse = None if backend.has_second_derivatives else saved[0]
        dtarget = target_gradient(logits, row_scale, objective, target.dtype, lse)
    return dlogits, dtarget, None, None


# ------------------------------------------------------------------------------------------------ statistics of logits


class Statistics(torch.autograd.Function):
    """Of (logits, labels, call): log_prob, entropy, lse, argmax and rank of each row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, call: Call) -> tuple[Tensor, ...]:
        statistics = call.backend.statistics(logits, labels, call.objective)
        outputs = _outputs(ctx, call, statistics, labels, logits.shape[1], logits.dtype)
        ctx.save_for_backward(logits, labels, statistics.lse, ctx.entropy)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiated(ctx, _gradient_of_statistics, *upstream[:3])


def _gradient_of_statistics(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    logits, labels, lse, entropy = ctx.saved_tensors
    numbers = _upstream(upstream, entropy)
    if torch.is_grad_enabled():
        d_log_prob, d_entropy, d_lse = (of_rows(number, logits) for number in numbers)
        upstream_of_rows = (d_log_prob, d_entropy, d_lse)
        return FORMULA.statistics_gradient(logits, labels, None, upstream_of_rows, ctx.call.objective), None, None
    statistics = RowStatistics(None, entropy, lse, None, None)
    return ctx.call.backend.statistics_gradient(logits, labels, statistics, numbers, ctx.call.objective), None, None


def _outputs(
    ctx: Any, call: Call, statistics: RowStatistics, labels: Tensor, classes: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """The statistics as they are handed out; LabelError if a label is why there is a NaN among them."""
    log_prob, entropy, lse, argmax, rank = statistics
    if call.backend.reads_values and not call.labels_are_checked and bool(log_prob.isnan().any()):
        check_labels(call.name, labels, classes, call.objective.ignore_index)
    # The caller may write to the outputs; the gradient needs lse in float64 and the entropy as they are.
    ctx.call, ctx.entropy = call, entropy.clone()
    ctx.mark_non_differentiable(argmax, rank)
    ctx.set_materialize_grads(False)
    dtype = call.backend.compute_dtype(dtype)
    return log_prob.to(dtype), entropy.to(dtype), lse.to(dtype, copy=True), argmax, rank


def _upstream(upstream: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d_log_prob, d_entropy, d_lse = (torch.zeros_like(like) if number is None else number for number in upstream)
    return d_log_prob, d_entropy, d_lse


# ------------------------------------------------------------------------------------------------------- linear layers


def linear_cross_entropy(call: Call, rows: LinearRows) -> Tensor:
    """The reduced loss, or with reduction "none" the losses (rows,)."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in rows[:4]):
        loss: Tensor = LinearCrossEntropy.apply(*rows, call)  # type: ignore[no-untyped-call]
        return loss
    return linear_loss(call, rows, NOTHING)[0]


class LinearCrossEntropy(torch.autograd.Function):
    """Of (input, weight, bias, target, class weights, call)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        rows, call = LinearRows(*arguments[:-1]), arguments[-1]
        loss, saved, ready, ctx.scale = linear_loss(call, rows, Wanted(*ctx.needs_input_grad[:3]))
        ctx.call, ctx.ready = call, ready
        ctx.save_for_backward(*rows, saved)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return _differentiated(ctx, _gradients_of_layer, upstream)


def linear_loss(call: Call, rows: LinearRows, wanted: Wanted) -> tuple[Tensor, Tensor, Gradients | None, Any]:
    """The reduced loss, what is saved of the rows, the gradients for an upstream gradient of 1, and d(loss) / d(row).

    Gradients are None where they are better made in backward. float16 ones may underflow before they are multiplied by
    the upstream gradient, which the host has to look at.
    """
    objective, linear = call.objective.weighted(rows.class_weight), call.linear
    denominator = denominator_of(call, rows.target, rows.class_weight)
    scale, ready = gradient_scale(denominator, objective), None
    is_late = objective.reduction == "none" or (call.dtype == torch.float16 and not call.backend.reads_values)
    if is_late or not any(wanted):
        losses, saved = linear.forward(rows.layer(call), objective)
    else:
        losses, saved, gradients = linear.forward_backward(rows.layer(call), scale, objective, wanted)
        ready = _in_dtypes_of(gradients, rows)
    return reduced(call, losses, denominator, rows.target, len(rows.weight), call.dtype), saved, ready, scale


def linear_gradients(
    call: Call, rows: LinearRows, saved: Tensor, row_scale: Tensor | float, wanted: Sequence[bool]
) -> Gradients:
    """The wanted gradients of sum(row_scale * loss), from logits that are made once more."""
    objective = call.objective.weighted(rows.class_weight)
    return _in_dtypes_of(call.linear.backward(rows.layer(call), saved, row_scale, objective, Wanted(*wanted)), rows)


def _gradients_of_layer(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, saved = ctx.saved_tensors
    rows, call, wanted = LinearRows(*tensors), ctx.call, ctx.needs_input_grad[:3]
    ready, ctx.ready = ctx.ready, None
    row_scale = upstream if upstream.ndim else upstream * ctx.scale
    shaped = row_scale if row_scale.ndim else row_scale.expand(len(rows.input))
    if torch.is_grad_enabled():
        # Somebody will differentiate these gradients: they have to be formulas that torch can see through.
        apart = linear_formula.apart(rows)
        losses = linear_formula.losses(apart.to(call.dtype), call.objective)
        return (*linear_formula.gradients([losses], apart, [shaped], ctx.needs_input_grad[:4]), None, None)
    gradients: Gradients = [None, None, None]
    if any(wanted):
        gradients = rescaled(call, rows, saved, ctx.scale, upstream, wanted, ready)
    dtarget = None
    if ctx.needs_input_grad[3]:
        lse = None if call.backend.has_second_derivatives else saved[0]
        own = rows.to(call.dtype)
        dtarget = linear_formula.gradient_of_target(own, shaped, call.objective, rows.target.dtype, lse)
    return (*gradients, dtarget, None, None)


def rescaled(
    call: Call,
    rows: LinearRows,
    saved: Tensor,
    scale: Any,
    upstream: Tensor,
    wanted: Sequence[bool],
    ready: Gradients | None,
) -> Gradients:
    """The gradients for an upstream gradient: those that are ready (or are made anew) times it."""
    if upstream.ndim:
        return linear_gradients(call, rows, saved, upstream, wanted)
    if not call.backend.reads_values:
        if ready is None:
            return linear_gradients(call, rows, saved, upstream.double() * scale, wanted)
        for gradient in ready:
            if gradient is not None:
                call.backend.scale(gradient, upstream)  # type: ignore[attr-defined]
        return ready
    factor = upstream.item()
    is_exact = math.frexp(factor)[0] in (0.5, -0.5)
    dtypes = [tensor.dtype for tensor, want in zip(rows, wanted, strict=False) if want and tensor is not None]
    if factor != 1.0 and (torch.float16 in (*dtypes, call.dtype) or (torch.bfloat16 in dtypes and not is_exact)):
        return linear_gradients(call, rows, saved, factor * scale, wanted)
    if ready is None:
        ready = linear_gradients(call, rows, saved, scale, wanted)
    return ready if factor == 1.0 else [None if tensor is None else tensor.mul_(factor) for tensor in ready]


class LinearStatistics(torch.autograd.Function):
    """Of (input, weight, bias, labels, call): log_prob, entropy, lse, argmax and rank of each row."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        rows, call = LinearRows._make((*arguments[:-1], None)), arguments[-1]
        statistics = call.linear.statistics(rows.layer(call), call.objective)
        outputs = _outputs(ctx, call, statistics, rows.target, len(rows.weight), call.dtype)
        ctx.save_for_backward(*rows[:4], statistics.lse, ctx.entropy)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        return _differentiated(ctx, _gradients_of_layer_statistics, *upstream[:3])


def _gradients_of_layer_statistics(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, lse, entropy = ctx.saved_tensors
    rows, call, wanted = LinearRows._make((*tensors, None)), ctx.call, ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        apart = linear_formula.apart(rows)
        values = linear_formula.statistics(apart.to(call.dtype), call.objective)[:3]
        return (*linear_formula.gradients(values, apart, upstream, wanted), None, None)
    return *linear_statistics_gradients(call, rows, lse, entropy, upstream, wanted), None, None


def linear_statistics_gradients(
    call: Call,
    rows: LinearRows,
    lse: Tensor,
    entropy: Tensor,
    upstream: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> Gradients:
    """The wanted gradients of the statistics, from logits that are made once more."""
    statistics = RowStatistics(None, entropy, lse, None, None)
    numbers = _upstream(upstream, entropy)
    gradients = call.linear.statistics_gradient(rows.layer(call), statistics, numbers, call.objective, Wanted(*wanted))
    return _in_dtypes_of(gradients, rows)


# ------------------------------------------------------------------------------------------------------------- shared


def denominator_of(call: Call, target: Tensor, weight: Tensor | None) -> Any:
    """What a mean divides by; on a device where it has to be counted there."""
    if target.is_floating_point():
        return mean_denominator(None, None, target.shape[0] * target.shape[2:].numel(), call.objective)
    return mean_denominator(target, weight, target.numel(), call.objective, call.backend.count)


def reduced(call: Call, losses: Tensor, denominator: Any, target: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """What the reduction makes of the losses; LabelError if a label is why there is a NaN among them.

    So labels are looked at only where something is wrong: backends give NaN for a label out of range.
    """
    objective, backend = call.objective, call.backend
    dtype = backend.compute_dtype(dtype)
    if not backend.reads_values:
        if objective.reduction == "none":
            return losses.to(dtype)
        mean: Tensor = reduce(backend.total(losses), denominator, objective)
        return mean.to(dtype)
    total = backend.total(losses)
    if total != total and not (target.is_floating_point() or call.labels_are_checked):
        check_labels(call.name, target, classes, objective.ignore_index)
    if objective.reduction == "none":
        return losses.to(dtype)
    # By way of NumPy, which takes half the time of torch.full.
    value = np.array(reduce(total, denominator, objective), np.float64 if dtype == torch.float64 else np.float32)
    return torch.from_numpy(value)


def reduced_by_formula(losses: Tensor, target: Tensor, weight: Tensor | None, objective: Objective) -> Tensor:
    """What the reduction makes of losses by operations that torch sees through, and does not wait for."""
    call = Call("", objective, FORMULA)
    return reduced(call, losses, denominator_of(call, target, weight), target, 0, losses.dtype)


def of_rows(numbers: Tensor, logits: Tensor) -> Tensor:
    """One number for each row, (N,) or (N, S), in the dtype of losses; of one number if there is only one."""
    shape = logits.shape[:1] + logits.shape[2:]
    wide = numbers.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    return wide.reshape(shape) if wide.ndim else wide.expand(shape)


def _differentiated(
    ctx: Any, gradients: Callable[..., tuple[Tensor | None, ...]], *upstream: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients; an error for whoever differentiates them once more where no formula stands in."""
    if torch.is_grad_enabled() and not ctx.call.backend.has_second_derivatives:
        return once_differentiable(gradients)(ctx, *upstream)
    return gradients(ctx, *upstream)


def _in_dtypes_of(gradients: Sequence[Tensor | None], rows: LinearRows) -> Gradients:
    """Gradients of input, weight and bias in the dtypes of those."""
    return [
        None if gradient is None or argument is None else gradient.to(argument.dtype)
        for gradient, argument in zip(gradients, rows[:3], strict=True)
    ]
