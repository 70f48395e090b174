"""The divergences of logits under torch's automatic differentiation; autograd.py says when a gradient is made.

A sum or a mean makes the gradients with the loss, of student and teacher as far as they learn: one visit for each.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from xent.backends.choice import choose_divergence
from xent.divergence import Divergence
from xent.torch import divergence_operators
from xent.torch.autograd import EXPECTED, MULTIPLIED, differentiated, finished_for, is_seen, reduces_by_torch
from xent.torch.reduced import denominator_of, of_rows, reduced, reduced_by_formula, scale_of
from xent.torch.rows import Call


def divergence(call: Call, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
    """The reduced loss of rows (N, C) or (N, C, S), or with reduction "none" the losses (rows,)."""
    if reduces_by_torch(call, None):
        rows = call._replace(objective=call.objective.of_rows, sample_weight=None)
        losses = _divergence(rows, student, teacher, labels)
        return reduced_by_formula(losses, counted(teacher, labels), None, call.objective, call.sample_weight)
    return _divergence(call, student, teacher, labels)


def counted(teacher: Tensor, labels: Tensor | None) -> Tensor:
    """What says how many rows there are that count: the labels, or where there are none the logits."""
    return teacher if labels is None else labels


def options_of(call: Call) -> Divergence:
    """The options of a call of a divergence."""
    return cast(Divergence, call.objective)


def _divergence(call: Call, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
    if torch.is_grad_enabled() and (student.requires_grad or teacher.requires_grad):
        loss: Tensor = DivergenceLoss.apply(student, teacher, labels, call)  # type: ignore[no-untyped-call]
        return loss
    losses = choose_divergence(student.device).forward(student, teacher, labels, options_of(call))
    denominator = denominator_of(call, counted(teacher, labels), None)
    return reduced(call, losses, denominator, teacher, student.shape[1], student.dtype)


class DivergenceLoss(torch.autograd.Function):
    """Of (student, teacher, labels, call)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, labels: Tensor | None, call: Call) -> Tensor:
        options, wanted = options_of(call), ctx.needs_input_grad[:2]
        denominator = denominator_of(call, counted(teacher, labels), None)
        ctx.call, ctx.scale, ctx.ready = call, call.scaled(scale_of(denominator, options)), [None, None]
        kind = EXPECTED.kind(student) if call.backend.reads_values else None
        ctx.kind = None if kind is None else ("divergence", *kind)  # beside other losses of such logits
        ctx.made_for, losses = EXPECTED.factor(ctx.kind), None
        if options.reduction != "none":
            if wanted[0]:
                losses, ctx.ready[0] = _made(ctx, (student, teacher, labels), 0, ctx.made_for)
            if wanted[1]:
                _, ctx.ready[1] = _made(ctx, (student, teacher, labels), 1, ctx.made_for)
        if losses is None:
            losses = choose_divergence(student.device).forward(student, teacher, labels, options)
        ctx.save_for_backward(student, teacher, labels)
        return reduced(call, losses, denominator, teacher, student.shape[1], student.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return differentiated(ctx, _gradients, upstream)


Arguments = tuple[Tensor, Tensor, Tensor | None]


def _roles(arguments: Arguments, side: int, options: Divergence) -> tuple[Tensor, Tensor, Tensor | None, Divergence]:
    """The divergence whose student is this side: 0 the student itself, 1 the teacher."""
    student, teacher, labels = arguments
    return (student, teacher, labels, options) if side == 0 else (teacher, student, labels, options.of_teacher)


def _made(ctx: Any, arguments: Arguments, side: int, factor: float, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Losses and the gradient of one side for an upstream gradient, as if that had multiplied the one for 1."""
    student, teacher, labels, options = _roles(arguments, side, options_of(ctx.call))
    make: Any = choose_divergence(student.device).forward_backward
    found: tuple[Tensor, Tensor]
    if factor == 1.0 or student.dtype not in MULTIPLIED:
        scale = ctx.scale if factor == 1.0 else factor * ctx.scale
        found = make(student, teacher, labels, scale, options, out=out)
    else:
        found = make(student, teacher, labels, ctx.scale, options, out=out, after=factor)
    return found


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    seen, wanted, ready = is_seen(upstream), ctx.needs_input_grad[:2], ctx.ready
    ctx.ready = [None, None]
    found: list[Tensor | None] = [None, None]
    reads = ctx.call.backend.reads_values and not seen and not upstream.ndim
    if reads:
        factor = upstream.item()
        EXPECTED.came(ctx.kind, factor)
        found = [None if one is None else finished_for(one, factor, ctx.made_for) for one in ready]
    if all(gradient is not None for gradient, want in zip(found, wanted, strict=True) if want):
        return (*found, None, None)  # the logits may have been written to since
    arguments = ctx.saved_tensors
    for side in (0, 1):
        if wanted[side] and found[side] is None:
            if seen:
                student, teacher, labels, options = _roles(arguments, side, options_of(ctx.call))
                scale = of_rows(upstream if upstream.ndim else upstream * ctx.scale, student)
                found[side] = divergence_operators.divergence_gradient(student, teacher, labels, scale, options)
            elif reads:
                found[side] = _made(ctx, arguments, side, factor, out=ready[side])[1]
            else:
                found[side] = _on_device(ctx, arguments, side, upstream, ready[side])
    return (*found, None, None)


def _on_device(ctx: Any, arguments: Arguments, side: int, upstream: Tensor, ready: Tensor | None) -> Tensor:
    """The gradient for an upstream gradient that only the device can see, in the memory of one that is ready for 1."""
    student, teacher, labels, options = _roles(arguments, side, options_of(ctx.call))
    row_scale = upstream if upstream.ndim else upstream.double() * ctx.scale
    make: Any = choose_divergence(student.device).forward_backward
    done = {} if ready is None or upstream.ndim else {"finished": upstream}
    gradient: Tensor = make(student, teacher, labels, row_scale, options, out=ready, **done)[1]
    return gradient
