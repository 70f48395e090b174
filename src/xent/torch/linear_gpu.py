"""The linear loss on a GPU under torch's automatic differentiation: xent.linear's driver over the steps of xent.backends.gpu.

As on the CPU (linear_autograd.py), but nothing waits for the device (gpu_autograd.py). The gradients that were made
with the loss, for an upstream gradient of 1, are multiplied by what arrives: the device looks whether that is 1, and
then does nothing. For bfloat16 this is one more rounding unless it is a power of two. float16 gradients may have
underflowed by then, so that they are made in backward, with the logits made once more.

The workspace holds the logits of a chunk. Sums in float32 for a 16-bit weight come beside it where there are several
chunks: a GPU is for workspaces of a gigabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from xent.backends.formula import compute_dtype, reduced
from xent.backends.gpu import linear as gpu
from xent.backends.gpu import on_chip
from xent.backends.gpu.cross_entropy import Statistics
from xent.backends.gpu.linear_statistics import StatisticsDevice
from xent.linear import driver
from xent.linear.driver import NOTHING, Wanted
from xent.linear.plan import Plan, Sizes, make_plan
from xent.reduction import gradient_scale
from xent.torch import gpu_autograd
from xent.torch import linear_composed as composed
from xent.torch.gpu_autograd import with_weight
from xent.torch.linear_kernels import Call
from xent.torch.rows import LinearRows

Gradients = list[Tensor | None]
Steps = TypeVar("Steps", bound=gpu.Device)


def cross_entropy(call: Call, rows: LinearRows) -> Tensor:
    """The reduced loss, or with reduction "none" the losses (rows,)."""
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in rows[:4]):
        loss: Tensor = _CrossEntropy.apply(*rows, call)  # type: ignore[no-untyped-call]
        return loss
    return loss_and_gradients(call, rows, NOTHING)[0]


def loss_and_gradients(call: Call, rows: LinearRows, wanted: Sequence[bool]) -> tuple[Tensor, Gradients, Any]:
    """The reduced loss, the wanted gradients for an upstream gradient of 1, and what that means for each row."""
    denominator = denominator_of(call, rows)
    scale = gradient_scale(denominator, call.objective)
    found: Gradients = [None, None, None]
    if any(wanted):
        losses, found = forward_backward(call, rows, scale, wanted)
    else:
        losses = forward(call, rows)
    return reduced(losses, denominator, call.objective), found, scale


def statistics(call: Call, rows: LinearRows) -> tuple[Tensor, ...]:
    """(log_prob, entropy, lse, argmax, rank) of each row."""
    found: tuple[Tensor, ...] = _Statistics.apply(*rows[:4], call)  # type: ignore[no-untyped-call]
    return found


class _CrossEntropy(torch.autograd.Function):
    """Of (input, weight, bias, target, class weight, call)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        rows, call = LinearRows(*arguments[:-1]), arguments[-1]
        later = call.objective.reduction == "none" or call.dtype == torch.float16
        wanted = NOTHING if later else Wanted(*ctx.needs_input_grad[:3])
        loss, ready, ctx.scale = loss_and_gradients(call, rows, wanted)
        ctx.call, ctx.ready = call, ready if any(wanted) else None
        ctx.save_for_backward(*rows)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, call, wanted = LinearRows(*ctx.saved_tensors), ctx.call, ctx.needs_input_grad[:3]
        ready, ctx.ready = ctx.ready, None
        row_scale = upstream if upstream.ndim else upstream.double() * ctx.scale
        above = row_scale if upstream.ndim else row_scale.to(rows.input.dtype).expand(len(rows.input))
        if torch.is_grad_enabled():
            # Somebody will differentiate these gradients: they have to be formulas that torch can see through.
            apart = composed.apart(rows)
            losses = composed.cross_entropy_rows(apart.to(call.dtype), call.objective)
            return (*composed.gradients([losses], apart, [above], ctx.needs_input_grad[:4]), None, None)
        found: Gradients = [None, None, None]
        if ready is not None:
            gpu.scale(ready, upstream)
            found = ready
        elif any(wanted):
            found = forward_backward(call, rows, row_scale, wanted)[1]
        dtarget = None
        if ctx.needs_input_grad[3]:
            dtarget = composed.target_gradient(rows.to(call.dtype), above, call.objective, rows.target.dtype)
        return (*found, dtarget, None, None)


class _Statistics(torch.autograd.Function):
    """Of (input, weight, bias, labels, call)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        rows, call = LinearRows._make((*arguments[:-1], None)), arguments[-1]
        found = forward_statistics(call, rows)
        # The caller may write to what he gets; the gradient needs the log-sum-exp in float64 and the entropy as it is.
        ctx.call, ctx.lse, ctx.entropy = call, found.lse, found.entropy.clone()
        ctx.save_for_backward(*rows[:4])
        ctx.mark_non_differentiable(*found[3:])
        ctx.set_materialize_grads(False)
        return tuple(found._replace(lse=found.lse.to(found.log_prob.dtype, copy=True)))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        rows, call, wanted = LinearRows._make((*ctx.saved_tensors, None)), ctx.call, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            apart = composed.apart(rows)
            values = composed.statistics_rows(apart.to(call.dtype), call.objective)[:3]
            return (*composed.gradients(values, apart, upstream[:3], wanted), None, None)
        return (*backward_statistics(call, rows, ctx.lse, ctx.entropy, upstream[:3], wanted), None, None)


def forward(call: Call, rows: LinearRows) -> Tensor:
    """The losses."""
    problem = problem_of(call, rows)
    if on_chip.is_chosen(problem):
        return on_chip.forward(problem)[0]
    device, plan = _prepared(gpu.Device, call, problem, NOTHING)
    driver.forward(device, plan)
    return device.losses


def forward_backward(
    call: Call, rows: LinearRows, row_scale: Tensor | float, wanted: Sequence[bool]
) -> tuple[Tensor, Gradients]:
    """The losses, and the wanted gradients of sum(row_scale * loss) in the dtypes of the arguments."""
    asked = Wanted(*wanted)
    device, plan = _prepared(gpu.Device, call, problem_of(call, rows), asked, row_scale)
    driver.forward_backward(device, plan, asked)
    return device.losses, _gradients(device, rows)


def forward_statistics(call: Call, rows: LinearRows) -> Statistics:
    """The statistics of each row, with the log-sum-exp in float64."""
    device, plan = _prepared(StatisticsDevice, call, problem_of(call, rows), NOTHING)
    found = device.make_room()
    driver.forward(device, plan)
    return found


def backward_statistics(
    call: Call,
    rows: LinearRows,
    lse: Tensor,
    entropy: Tensor,
    upstream: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> Gradients:
    """The wanted gradients of the statistics by input, weight and bias."""
    asked = Wanted(*wanted)
    device, plan = _prepared(StatisticsDevice, call, problem_of(call, rows), asked)
    device.lse, device.entropy = lse, entropy
    d_log_prob, d_entropy, d_lse = (torch.zeros_like(entropy) if above is None else above for above in upstream)
    device.upstream = d_log_prob, d_entropy, d_lse
    driver.forward_backward(device, plan, asked)
    return _gradients(device, rows)


def problem_of(call: Call, rows: LinearRows) -> gpu.Problem:
    """The arguments as the steps take them."""
    of = LinearRows._make(None if tensor is None else tensor.detach() for tensor in rows)
    own = of.to(call.dtype)
    objective = with_weight(call.objective, of.class_weight, own.input)
    compute = compute_dtype(call.dtype)
    kept = rows.weight.dtype if rows.weight.dtype == compute else call.dtype
    return gpu.Problem(own.input, own.weight, own.bias, _target(of), objective, kept)


def _prepared(
    kind: type[Steps], call: Call, problem: gpu.Problem, wanted: Wanted, row_scale: Tensor | float = 1.0
) -> tuple[Steps, Plan]:
    """The steps of a call, and how it is cut."""
    sizes = Sizes(len(problem.input), len(problem.weight), problem.row_bytes)
    plan = make_plan(call.name, sizes, call.workspace)
    return kind(problem, plan.chunks, plan.parts, row_scale, **wanted._asdict()), plan


def _gradients(device: gpu.Device, rows: LinearRows) -> Gradients:
    """In the dtypes of the arguments."""
    found = (device.of_input, device.of_weight, device.bias_sums)
    return [
        None if gradient is None or argument is None else gradient.to(argument.dtype)
        for gradient, argument in zip(found, rows[:3], strict=True)
    ]


def denominator_of(call: Call, rows: LinearRows) -> Any:
    """What a mean divides by, on the device where it has to be counted."""
    return gpu_autograd.denominator_of(len(rows.input), _target(rows), rows.class_weight, call.objective)


def _target(rows: LinearRows) -> Tensor:
    """Class probabilities as they are, labels as int64: torch compares few other integers."""
    return rows.target if rows.target.is_floating_point() else rows.target.to(torch.int64)
