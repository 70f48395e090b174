"""The divergences of two linear layers under torch's automatic differentiation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xent.linear.driver import NOTHING, Wanted
from xent.torch import linear_divergence_operators
from xent.torch.autograd import differentiated, is_seen, reduces_by_torch
from xent.torch.divergence_autograd import options_of
from xent.torch.linear_passes import linear_loss, made_anew, multiplied
from xent.torch.reduced import reduced_by_formula
from xent.torch.rows import Call, PairRows


def linear_divergence(call: Call, rows: PairRows) -> Tensor:
    """The reduced loss, or with reduction "none" the losses (rows,)."""
    if reduces_by_torch(call, None):
        losses = _linear_divergence(call._replace(objective=call.objective.of_rows, sample_weight=None), rows)
        return reduced_by_formula(losses, rows.target, None, call.objective, call.sample_weight)
    return _linear_divergence(call, rows)


def _linear_divergence(call: Call, rows: PairRows) -> Tensor:
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in rows[:6]):
        loss: Tensor = LinearDivergenceLoss.apply(*rows, call)  # type: ignore[no-untyped-call]
        return loss
    return linear_loss(call, rows, NOTHING)[0]


def _of_side(call: Call, rows: PairRows, side: int) -> tuple[Call, PairRows]:
    """The divergence whose student is this side: 0 the student itself, 1 the teacher."""
    return (call._replace(objective=options_of(call).of_teacher), rows.exchanged) if side else (call, rows)


class LinearDivergenceLoss(torch.autograd.Function):
    """Of (input, weight, bias, target_input, target_weight, target_bias, labels, call)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        rows, call = PairRows(*arguments[:-1]), arguments[-1]
        loss, _, of_student, ctx.scale = linear_loss(call, rows, Wanted(*ctx.needs_input_grad[:3]))
        of_teacher = None
        if any(ctx.needs_input_grad[3:6]) and options_of(call).reduction != "none":
            of_teacher = linear_loss(*_of_side(call, rows, 1), Wanted(*ctx.needs_input_grad[3:6]))[2]
        ctx.call, ctx.ready = call, [of_student, of_teacher]
        ctx.save_for_backward(*rows)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return differentiated(ctx, _gradients, upstream)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    seen, ready = is_seen(upstream), ctx.ready
    ctx.ready = [None, None]
    found: list[Tensor | None] = []
    tensors: PairRows | None = None
    for side in (0, 1):
        wanted = ctx.needs_input_grad[3 * side : 3 * side + 3]
        gradients: Any = [None] * 3
        if any(wanted):
            gradients = None if ready[side] is None or seen else multiplied(ctx.call, ready[side], upstream)
        if gradients is None:
            tensors = tensors or PairRows(*ctx.saved_tensors)  # a checkpoint makes them once
            call, rows = _of_side(ctx.call, tensors, side)
            if seen:
                row_scale = upstream if upstream.ndim else (upstream * ctx.scale).expand(len(rows.input))
                gradients = linear_divergence_operators.linear_divergence_gradients(call, rows, row_scale, wanted)
            else:
                gradients = made_anew(call, rows, None, ctx.scale, upstream, wanted)
        found += gradients
    return (*found, None, None)
