"""The divergences of two linear layers as an operator (dispatch.py), and its gradient by the student's layer.

As in linear_operators.py a sum or a mean makes the student's gradients together with the loss, which are further
results of the operator; the teacher's are made in backward, by the operator of the gradient with the roles exchanged.
Under `torch.func`, and where torch has to see the reduction, the operator returns one loss for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xent.backends.choice import choose, choose_linear_divergence
from xent.backends.formula import FORMULA, compute_dtype
from xent.divergence import Divergence
from xent.linear.driver import Wanted
from xent.torch import linear_divergence_formula, linear_formula, linear_passes
from xent.torch._torch_private import is_transformed
from xent.torch.dispatch import Operator
from xent.torch.linear_operators import Four, Three, fake_gradients, filled, flops
from xent.torch.reduced import denominator_of, reduced_by_formula, scale_of
from xent.torch.rows import Call, PairRows

NAME = "linear_divergence"


def linear_divergence(call: Call, rows: PairRows, *, by_rows: bool) -> Tensor:
    """The reduced loss, or losses of rows; `by_rows`: losses of rows are reduced by operations of torch."""
    options = call.objective
    by_rows = by_rows or is_transformed() or call.sample_weight is not None
    if by_rows and (options.reduction != "none" or call.sample_weight is not None):
        losses: Tensor = LOSS(*rows, options.of_rows.to_text(), call.workspace, call.dtype, [False] * 3)[0]
        return reduced_by_formula(losses, rows.target, None, options, call.sample_weight)
    is_early = options.reduction != "none" and torch.is_grad_enabled() and call.dtype != torch.float16
    wanted = [is_early and tensor is not None and tensor.requires_grad for tensor in rows[:3]]
    loss: Tensor = LOSS(*rows, options.to_text(), call.workspace, call.dtype, wanted)[0]
    return loss


def linear_divergence_gradients(
    call: Call, rows: PairRows, row_scale: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted gradients of sum(row_scale * loss) by the student, which torch can differentiate and batch."""
    empty = row_scale.new_empty(0)
    parts = (call.objective.of_rows.to_text(), call.workspace, call.dtype)
    made = LOSS_BACKWARD(row_scale, *rows, empty, empty, empty, *parts, list(wanted), [False] * 3)
    return [gradient if want else None for gradient, want in zip(made, wanted, strict=True)]


def _call(device: torch.device, options: str, workspace: int, dtype: torch.dtype) -> Call:
    divergence, linear = Divergence.from_text(options), choose_linear_divergence(device)
    return Call(NAME, divergence, choose(device), linear, workspace, dtype, labels_are_checked=True)


def _loss(
    input: Tensor, weight: Tensor, bias: Tensor | None,
    target_input: Tensor, target_weight: Tensor, target_bias: Tensor | None, labels: Tensor | None,
    options: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Four:  # fmt: skip
    call = _call(input.device, options, workspace, dtype)
    rows = PairRows(input, weight, bias, target_input, target_weight, target_bias, labels)
    loss, _, ready, _ = linear_passes.linear_loss(call, rows, Wanted(*wanted))
    return loss, *filled(ready or (None, None, None), input)


def _fake_loss(
    input: Tensor, weight: Tensor, bias: Tensor | None,
    target_input: Tensor, target_weight: Tensor, target_bias: Tensor | None, labels: Tensor | None,
    options: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Four:  # fmt: skip
    shape = input.shape[:1] if Divergence.from_text(options).reduction == "none" else ()
    loss = input.new_empty(shape, dtype=compute_dtype(dtype))
    return loss, *fake_gradients((input, weight, bias), wanted, input)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Four) -> None:
    *tensors, options, workspace, dtype, wanted = inputs
    ctx.parts, ctx.made = (options, workspace, dtype), wanted
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_loss(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    *tensors, dinput, dweight, dbias = ctx.saved_tensors
    rows, (options, workspace, dtype) = PairRows(*tensors), ctx.parts
    of_student = [bool(want) for want in ctx.needs_input_grad[:3]]
    of_teacher = [bool(want) for want in ctx.needs_input_grad[3:6]]
    found: list[Tensor | None] = [None] * 6
    if any(of_student):
        ready = (dinput, dweight, dbias)
        made = LOSS_BACKWARD(upstream, *rows, *ready, *ctx.parts, of_student, list(ctx.made))
        found[:3] = [gradient if want else None for gradient, want in zip(made, of_student, strict=True)]
    if any(of_teacher):
        empty, exchanged = upstream.new_empty(0), Divergence.from_text(options).of_teacher.to_text()
        arguments = (upstream, *rows.exchanged, empty, empty, empty, exchanged, workspace, dtype)
        made = LOSS_BACKWARD(*arguments, of_teacher, [False] * 3)
        found[3:] = [gradient if want else None for gradient, want in zip(made, of_teacher, strict=True)]
    return *found, *[None] * 5


def _loss_backward(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None,
    target_input: Tensor, target_weight: Tensor, target_bias: Tensor | None, labels: Tensor | None,
    dinput: Tensor, dweight: Tensor, dbias: Tensor,
    options: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool], made: Sequence[bool],
) -> Three:  # fmt: skip
    call = _call(input.device, options, workspace, dtype)
    rows = PairRows(input, weight, bias, target_input, target_weight, target_bias, labels)
    gradients = linear_passes.finished(call, (dinput, dweight, dbias), upstream, wanted, made)
    if gradients is None:
        scale = scale_of(denominator_of(call, rows.target, None), call.objective)
        gradients = linear_passes.made_anew(call, rows, None, scale, upstream, wanted)
    return filled(gradients, input)


def _fake_loss_backward(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None,
    target_input: Tensor, target_weight: Tensor, target_bias: Tensor | None, labels: Tensor | None,
    dinput: Tensor, dweight: Tensor, dbias: Tensor,
    options: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool], made: Sequence[bool],
) -> Three:  # fmt: skip
    return fake_gradients((input, weight, bias), wanted, input)


def _save_loss_backward(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    upstream, *rows, _, _, _, ctx.options, _, ctx.dtype, ctx.wanted, _ = inputs
    ctx.save_for_backward(upstream, *rows)


def _differentiate_loss_backward(ctx: Any, *above: Tensor) -> tuple[Any, ...]:
    """By the formula, which holds the logits."""
    upstream, *tensors = ctx.saved_tensors
    rows, options, wanted = PairRows(*tensors), Divergence.from_text(ctx.options), ctx.wanted

    def row_scale(upstream: Tensor) -> Tensor:
        if upstream.ndim:
            return upstream
        scale: Tensor = upstream * scale_of(denominator_of(Call(NAME, options, FORMULA), rows.target, None), options)
        return scale.expand(rows.input.shape[0])

    def gradients(upstream: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
        given = linear_formula.joined(rows, arguments).to(ctx.dtype)
        return linear_divergence_formula.explicit_gradients(given, row_scale(upstream), options, wanted)

    differentiate = torch.func.vjp(gradients, upstream, *linear_formula.real(rows))[1]
    dupstream, *found = differentiate(tuple(t for t, want in zip(above, wanted, strict=True) if want))
    return dupstream, *linear_formula.spread(rows, found), *[None] * 8


def _flops(input: Tensor, weight: Tensor, target_input: Tensor, target_weight: Tensor, products: int) -> int:
    """Of both logits, and of so many products of the student's layer beside them."""
    return flops(1 + products, input, weight) + flops(1, target_input, target_weight)


def _flops_of_backward(*arguments: Any) -> int:
    """None, if the forward has made what is wanted."""
    wanted, made = arguments[14:]
    is_ready = all(was_made or not want for was_made, want in zip(made, wanted, strict=True))
    layers = (arguments[1], arguments[2], arguments[4], arguments[5])
    return 0 if is_ready else _flops(*layers, sum(wanted[:2]))


LOSS = Operator(
    NAME,
    _loss,
    _fake_loss,
    _save_loss,
    _differentiate_loss,
    by_rows=(0, 3, 6),
    products=lambda *a: _flops(a[0], a[1], a[3], a[4], sum(a[10][:2])),
)
LOSS_BACKWARD = Operator(
    f"{NAME}_backward",
    _loss_backward,
    _fake_loss_backward,
    _save_loss_backward,
    _differentiate_loss_backward,
    products=_flops_of_backward,
)
