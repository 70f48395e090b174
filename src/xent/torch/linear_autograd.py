"""The loss and the statistics of a linear layer under torch's automatic differentiation: one `Function` for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.linear.driver import NOTHING, Wanted
from xent.linear.sampling import refuse_sampling
from xent.torch import linear_formula, linear_operators
from xent.torch.autograd import differentiated, handed_out, is_seen, reduces_by_torch, upstream_of
from xent.torch.linear_passes import linear_loss, linear_statistics_gradients, made_anew, multiplied
from xent.torch.reduced import reduced_by_formula
from xent.torch.rows import Call, LinearRows


def linear_cross_entropy(call: Call, rows: LinearRows) -> Tensor:
    """The reduced loss, or with reduction "none" the losses (rows,)."""
    objective, class_weight = call.objective, rows.class_weight
    if reduces_by_torch(call, class_weight):
        losses = _linear_cross_entropy(call._replace(objective=objective.of_rows, sample_weight=None), rows)
        return reduced_by_formula(losses, rows.target, class_weight, objective, call.sample_weight)
    return _linear_cross_entropy(call, rows)


def _linear_cross_entropy(call: Call, rows: LinearRows) -> Tensor:
    """The loss of an objective that backends have, whose gradient by the class weights is that of losses of rows."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in rows):
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
        return differentiated(ctx, _gradients_of_layer, upstream)


def _gradients_of_layer(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    call, seen, wanted = ctx.call, is_seen(upstream), ctx.needs_input_grad[:3]
    ready, ctx.ready = ctx.ready, None
    gradients = None if ready is None or seen else multiplied(call, ready, upstream)
    if gradients is not None and not any(ctx.needs_input_grad[3:5]):
        return (*gradients, None, None, None)
    *tensors, saved = ctx.saved_tensors
    rows = LinearRows(*tensors)
    row_scale = upstream if upstream.ndim else (upstream * ctx.scale).expand(len(rows.input))
    if gradients is None:
        gradients = [None, None, None]
        if any(wanted) and seen:
            refuse_sampling(call.name, call.sampling, "where gradients are differentiated, or several at once")
            gradients = linear_operators.linear_cross_entropy_gradients(call, rows, row_scale, wanted)
        elif any(wanted):
            gradients = made_anew(call, rows, saved, ctx.scale, upstream, wanted)
    dtarget = dclass = None
    own, lse = rows.to(call.dtype), None if call.backend.has_second_derivatives else saved[0]
    if ctx.needs_input_grad[3]:
        dtarget = linear_formula.gradient_of_target(own, row_scale, call.objective, lse)
    if ctx.needs_input_grad[4]:
        dclass = linear_formula.gradient_of_class_weights(own, row_scale, call.objective)
    return (*gradients, dtarget, dclass, None)


class LinearStatistics(torch.autograd.Function):
    """Of (input, weight, bias, labels, call): log_prob, entropy, lse, argmax and rank of each row."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        rows, call = LinearRows._make((*arguments[:-1], None)), arguments[-1]
        statistics = call.linear.statistics(rows.layer(call), call.objective)
        outputs = handed_out(ctx, call, statistics, rows.target, len(rows.weight), call.dtype)
        ctx.save_for_backward(*rows[:4], statistics.lse, ctx.entropy)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        return differentiated(ctx, _gradients_of_layer_statistics, *upstream[:3])


def _gradients_of_layer_statistics(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, lse, entropy = ctx.saved_tensors
    rows, call, wanted = LinearRows._make((*tensors, None)), ctx.call, ctx.needs_input_grad[:3]
    numbers = upstream_of(upstream, entropy)
    if is_seen(*upstream):
        made = linear_operators.linear_statistics_gradients(call, rows, entropy, lse, numbers, wanted)
    else:
        made = linear_statistics_gradients(call, rows, lse, entropy, numbers, wanted)
    return *made, None, None
