"""The linear loss and its statistics as operators (dispatch.py): one for each, for all devices, and its gradient.

As in linear_autograd.py a sum or a mean makes its gradients together with the loss, which here are further results of
the operator; which of them are wanted is known when the graph is traced. What is not wanted is an empty tensor. Under
`torch.func`, and where torch has to see the denominator, the operator returns one loss for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xent.backends.choice import choose, choose_linear
from xent.backends.formula import FORMULA, compute_dtype
from xent.backends.protocol import Statistics
from xent.linear.driver import Wanted
from xent.linear.sampling import Sampling, refuse_sampling
from xent.objective import Objective
from xent.torch import linear_formula, linear_passes
from xent.torch._torch_private import is_transformed
from xent.torch.dispatch import Operator
from xent.torch.operators import Six, fake_statistics, with_lse
from xent.torch.reduced import denominator_of, reduced_by_formula, scale_of
from xent.torch.rows import Call, LinearRows

Three = tuple[Tensor, Tensor, Tensor]
Four = tuple[Tensor, Tensor, Tensor, Tensor]


def linear_cross_entropy(call: Call, rows: LinearRows, *, by_rows: bool) -> Tensor:
    """What `linear_autograd.linear_cross_entropy` gives; `by_rows`: losses of rows, reduced by operations of torch."""
    objective, class_weight = call.objective, rows.class_weight
    # Whoever exports the call may ask for any gradient later.
    weighs = class_weight is not None and (class_weight.requires_grad or torch.compiler.is_exporting())
    is_more = call.sample_weight is not None or objective.focal_gamma > 0
    by_rows = by_rows or is_transformed() or weighs or is_more
    if by_rows and (objective.reduction != "none" or is_more):
        parts = (objective.of_rows.to_text(), call.workspace, call.dtype, [False] * 3, *_sampling_of(call))
        losses: Tensor = LOSS(*rows, *parts)[0]
        return reduced_by_formula(losses, rows.target, class_weight, objective, call.sample_weight)
    is_early = objective.reduction != "none" and torch.is_grad_enabled() and call.dtype != torch.float16
    wanted = [is_early and tensor is not None and tensor.requires_grad for tensor in rows[:3]]
    loss: Tensor = LOSS(*rows, objective.to_text(), call.workspace, call.dtype, wanted, *_sampling_of(call))[0]
    return loss


def linear_cross_entropy_gradients(
    call: Call, rows: LinearRows, row_scale: Tensor, wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted gradients of sum(row_scale * loss), which torch can differentiate and batch."""
    objective = call.objective.of_rows
    empty = row_scale.new_empty(0)
    arguments = (row_scale, *rows, empty, empty, empty, objective.to_text(), call.workspace, call.dtype)
    made = LOSS_BACKWARD(*arguments, list(wanted), [False] * 3, None, "")
    return [gradient if want else None for gradient, want in zip(made, wanted, strict=True)]


def linear_statistics(call: Call, rows: LinearRows) -> Statistics:
    """What `linear_autograd.LinearStatistics` gives."""
    return Statistics(*STATISTICS(*rows[:4], call.objective.to_text(), call.workspace, call.dtype)[:5])


def linear_statistics_gradients(
    call: Call, rows: LinearRows, entropy: Tensor, lse: Tensor, upstream: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted gradients of the statistics, which torch can differentiate and batch."""
    parts = (call.objective.to_text(), call.workspace, call.dtype)
    made = STATISTICS_BACKWARD(*upstream, *rows[:4], entropy, lse, *parts, list(wanted))
    return [gradient if want else None for gradient, want in zip(made, wanted, strict=True)]


def _call(name: str, device: torch.device, objective: str, workspace: int, dtype: torch.dtype) -> Call:
    options = Objective.from_text(objective)
    return Call(name, options, choose(device), choose_linear(device), workspace, dtype)


def _sampling_of(call: Call) -> tuple[Tensor | None, str]:
    """How gradients are sampled, as an operator takes it."""
    if call.sampling is None:
        return None, ""
    seed = call.sampling.seed
    return seed if isinstance(seed, Tensor) else torch.tensor(seed), call.sampling.to_text()


def _row_scale(upstream: Tensor, rows: LinearRows, objective: Objective) -> Tensor:
    """d(result) / d(loss of a row), by operations of torch; `upstream` is one number, or one for each row."""
    if upstream.ndim:
        return upstream
    call = Call("linear_cross_entropy", objective, FORMULA)
    scale = scale_of(denominator_of(call, rows.target, rows.class_weight), objective)
    total: Tensor = upstream * scale
    return total.expand(rows.input.shape[0])


def filled(tensors: Sequence[Tensor | None], like: Tensor) -> Three:
    """Gradients as an operator returns them: what is not wanted is empty."""
    first, second, third = (like.new_empty(0) if tensor is None else tensor for tensor in tensors)
    return first, second, third


def fake_gradients(tensors: Sequence[Tensor | None], wanted: Sequence[bool], input: Tensor) -> Three:
    """The same without numbers."""
    made = [
        torch.empty_like(tensor, memory_format=torch.contiguous_format) if want and tensor is not None else None
        for tensor, want in zip(tensors, wanted, strict=True)
    ]
    return filled(made, input)


# ---------------------------------------------------------------------------------------------------------------- loss


def _loss(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
    seed: Tensor | None = None, sampling: str = "",
) -> Four:  # fmt: skip
    call = _call("linear_cross_entropy", input.device, objective, workspace, dtype)
    call = call._replace(sampling=Sampling.from_text(sampling, seed))
    rows = LinearRows(input, weight, bias, target, class_weight)
    loss, _, ready, _ = linear_passes.linear_loss(call, rows, Wanted(*wanted))
    return loss, *filled(ready or (None, None, None), input)


def _fake_loss(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
    seed: Tensor | None = None, sampling: str = "",
) -> Four:  # fmt: skip
    shape = input.shape[:1] if Objective.from_text(objective).reduction == "none" else ()
    loss = input.new_empty(shape, dtype=compute_dtype(dtype))
    return loss, *fake_gradients((input, weight, bias), wanted, input)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Four) -> None:
    *tensors, objective, workspace, dtype, wanted, seed, sampling = inputs
    ctx.parts, ctx.made, ctx.sampling = (objective, workspace, dtype), wanted, sampling
    ctx.save_for_backward(*tensors, *output[1:], seed)
    ctx.mark_non_differentiable(*output[1:])


def _differentiate_loss(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    *tensors, dinput, dweight, dbias, seed = ctx.saved_tensors
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    gradients: list[Tensor | None] = [None, None, None]
    if any(wanted):
        ready = (dinput, dweight, dbias)
        parts = (*ctx.parts, wanted, list(ctx.made), seed, ctx.sampling)
        made = LOSS_BACKWARD(upstream, *tensors, *ready, *parts)
        gradients = [gradient if want else None for gradient, want in zip(made, wanted, strict=True)]
    rows, objective = LinearRows(*tensors), Objective.from_text(ctx.parts[0])
    dtarget = dclass = None
    if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
        row_scale, own = _row_scale(upstream, rows, objective), rows.to(ctx.parts[2])
        if ctx.needs_input_grad[3]:
            dtarget = linear_formula.gradient_of_target(own, row_scale, objective, None)
        if ctx.needs_input_grad[4]:
            dclass = linear_formula.gradient_of_class_weights(own, row_scale, objective)
    return *gradients, dtarget, dclass, *[None] * 6


def _loss_backward(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    dinput: Tensor, dweight: Tensor, dbias: Tensor,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool], made: Sequence[bool],
    seed: Tensor | None = None, sampling: str = "",
) -> Three:  # fmt: skip
    call = _call("linear_cross_entropy", input.device, objective, workspace, dtype)
    call = call._replace(sampling=Sampling.from_text(sampling, seed))
    rows = LinearRows(input, weight, bias, target, class_weight)
    gradients = linear_passes.finished(call, (dinput, dweight, dbias), upstream, wanted, made)
    if gradients is None:
        scale = scale_of(denominator_of(call, target, class_weight), call.objective)
        gradients = linear_passes.made_anew(call, rows, upstream.new_empty(0), scale, upstream, wanted)
    return filled(gradients, input)


def _fake_loss_backward(
    upstream: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None,
    dinput: Tensor, dweight: Tensor, dbias: Tensor,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool], made: Sequence[bool],
    seed: Tensor | None = None, sampling: str = "",
) -> Three:  # fmt: skip
    return fake_gradients((input, weight, bias), wanted, input)


def _save_loss_backward(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    upstream, *rows, _, _, _, ctx.objective, _, ctx.dtype, ctx.wanted, _, _, ctx.sampling = inputs
    ctx.save_for_backward(upstream, *rows)


def _differentiate_loss_backward(ctx: Any, *above: Tensor) -> tuple[Any, ...]:
    """By the formula, which holds the logits."""
    refuse_sampling("linear_cross_entropy", ctx.sampling, "where gradients are differentiated")
    upstream, *tensors = ctx.saved_tensors
    rows, objective, wanted = LinearRows(*tensors), Objective.from_text(ctx.objective), ctx.wanted

    def gradients(upstream: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
        given = linear_formula.joined(rows, arguments).to(ctx.dtype)
        return linear_formula.explicit_gradients(given, _row_scale(upstream, rows, objective), objective, wanted)

    differentiate = torch.func.vjp(gradients, upstream, *linear_formula.real(rows))[1]
    dupstream, *found = differentiate(tuple(t for t, want in zip(above, wanted, strict=True) if want))
    return dupstream, *linear_formula.spread(rows, found), *[None] * 10


def flops(products: int, input: Tensor, weight: Tensor) -> int:
    """Of some of the products of a layer, all of which have one size."""
    return 2 * products * weight.numel() * len(input)


def _flops_of_backward(*arguments: Any) -> int:
    """None, if the forward has made what is wanted."""
    wanted, made = arguments[12:14]
    is_ready = all(was_made or not want for was_made, want in zip(made, wanted, strict=True))
    return flops(0 if is_ready else 1 + sum(wanted[:2]), arguments[1], arguments[2])


LOSS = Operator(
    "linear_cross_entropy",
    _loss,
    _fake_loss,
    _save_loss,
    _differentiate_loss,
    by_rows=(0, 3),
    products=lambda *a: flops(1 + sum(a[8][:2]), a[0], a[1]),
)
LOSS_BACKWARD = Operator(
    "linear_cross_entropy_backward",
    _loss_backward,
    _fake_loss_backward,
    _save_loss_backward,
    _differentiate_loss_backward,
    products=_flops_of_backward,
)


# ---------------------------------------------------------------------------------------------------------- statistics


def _statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
    objective: str, workspace: int, dtype: torch.dtype,
) -> Six:  # fmt: skip
    call = _call("linear_statistics", input.device, objective, workspace, dtype)
    rows = LinearRows(input, weight, bias, labels, None)
    return with_lse(call.linear.statistics(rows.layer(call), call.objective))


def _fake_statistics(
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor,
    objective: str, workspace: int, dtype: torch.dtype,
) -> Six:  # fmt: skip
    return fake_statistics(input.new_empty(input.shape[:1], dtype=compute_dtype(dtype)))


def _save_statistics(ctx: Any, inputs: tuple[Any, ...], output: Six) -> None:
    *tensors, objective, workspace, dtype = inputs
    ctx.parts = (objective, workspace, dtype)
    ctx.save_for_backward(*tensors, output[1], output[5])
    ctx.mark_non_differentiable(*output[3:])


def _differentiate_statistics(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    wanted = [bool(want) for want in ctx.needs_input_grad[:3]]
    made = STATISTICS_BACKWARD(*upstream[:3], *ctx.saved_tensors, *ctx.parts, wanted)
    return *(gradient if want else None for gradient, want in zip(made, wanted, strict=True)), *[None] * 4


def _statistics_backward(
    d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor,
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entropy: Tensor, lse: Tensor,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    call = _call("linear_statistics", input.device, objective, workspace, dtype)
    rows, upstream = LinearRows(input, weight, bias, labels, None), (d_log_prob, d_entropy, d_lse)
    return filled(linear_passes.linear_statistics_gradients(call, rows, lse, entropy, upstream, wanted), input)


def _fake_statistics_backward(
    d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor,
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, entropy: Tensor, lse: Tensor,
    objective: str, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Three:  # fmt: skip
    return fake_gradients((input, weight, bias), wanted, input)


def _save_statistics_backward(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    *tensors, _, _, ctx.objective, _, ctx.dtype, ctx.wanted = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_statistics_backward(ctx: Any, *above: Tensor) -> tuple[Any, ...]:
    """By the formula, which holds the logits."""
    *upstream, input, weight, bias, labels = ctx.saved_tensors
    rows, wanted = LinearRows(input, weight, bias, labels, None), ctx.wanted
    objective = Objective.from_text(ctx.objective)

    def gradients(d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
        given = linear_formula.joined(rows, arguments).to(ctx.dtype)
        return linear_formula.explicit_statistics_gradients(given, (d_log_prob, d_entropy, d_lse), objective, wanted)

    differentiate = torch.func.vjp(gradients, *upstream, *linear_formula.real(rows))[1]
    found = differentiate(tuple(t for t, want in zip(above, wanted, strict=True) if want))
    return *found[:3], *linear_formula.spread(rows, found[3:])[:4], *[None] * 6


STATISTICS = Operator(
    "linear_statistics",
    _statistics,
    _fake_statistics,
    _save_statistics,
    _differentiate_statistics,
    by_rows=(0, 3),
    products=lambda *a: flops(1, a[0], a[1]),
)
STATISTICS_BACKWARD = Operator(
    "linear_statistics_backward",
    _statistics_backward,
    _fake_statistics_backward,
    _save_statistics_backward,
    _differentiate_statistics_backward,
    products=lambda *a: flops(1 + sum(a[12][:2]), a[3], a[4]),
)
