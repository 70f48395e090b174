"""The linear loss on a GPU under torch's automatic differentiation: xent.linear's driver over the steps of xent.gpu.

As on the CPU (linear_autograd.py), but nothing waits for the device (gpu_autograd.py). The gradients that were made
with the loss, for an upstream gradient of 1, are multiplied by what arrives: the device looks whether that is 1, and
then does nothing. For bfloat16 this is one more rounding unless it is a power of two. float16 gradients may have
underflowed by then, so that they are made in backward, with the logits made once more.

The workspace holds the logits of a chunk. Sums in float32 for a 16-bit weight come beside it where there are several
chunks: a GPU is for workspaces of a gigabyte.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xent.gpu import linear as gpu
from xent.linear import driver
from xent.linear.driver import Wanted
from xent.linear.plan import Sizes, make_plan
from xent.reduction import gradient_scale
from xent.torch import linear_composed as composed
from xent.torch.composed import compute_dtype, reduced
from xent.torch.gpu_autograd import denominator_of, with_weight
from xent.torch.linear_kernels import Call
from xent.torch.rows import LinearRows

Gradients = list[Tensor | None]


def cross_entropy(call: Call, rows: LinearRows) -> Tensor:
    """The reduced loss, or with reduction "none" the losses (rows,)."""
    if not rows.target.is_floating_point():
        rows = rows._replace(target=rows.target.to(torch.int64))
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in rows[:4]):
        loss: Tensor = _CrossEntropy.apply(*rows, call)  # type: ignore[no-untyped-call]
        return loss
    return reduced(forward(call, rows), _denominator(call, rows), call.objective)


class _CrossEntropy(torch.autograd.Function):
    """Of (input, weight, bias, target, class weight, call)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        rows, call = LinearRows(*arguments[:-1]), arguments[-1]
        denominator = _denominator(call, rows)
        ctx.call, ctx.scale, ctx.ready = call, gradient_scale(denominator, call.objective), None
        wanted = ctx.needs_input_grad[:3]
        if call.objective.reduction == "none" or call.dtype == torch.float16 or not any(wanted):
            losses = forward(call, rows)
        else:
            losses, ctx.ready = forward_backward(call, rows, ctx.scale, wanted)
        ctx.save_for_backward(*rows)
        return reduced(losses, denominator, call.objective)

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


def forward(call: Call, rows: LinearRows) -> Tensor:
    """The losses."""
    device, plan = _prepared(call, rows, Wanted(input=False, weight=False, bias=False), 1.0)
    driver.forward(device, plan)
    return device.losses


def forward_backward(
    call: Call, rows: LinearRows, row_scale: Tensor | float, wanted: Sequence[bool]
) -> tuple[Tensor, Gradients]:
    """The losses, and the wanted gradients of sum(row_scale * loss) in the dtypes of the arguments."""
    asked = Wanted(*wanted)
    device, plan = _prepared(call, rows, asked, row_scale)
    driver.forward_backward(device, plan, asked)
    found = [device.of_input, device.of_weight, device.bias_sums]
    return device.losses, [
        None if gradient is None or argument is None else gradient.to(argument.dtype)
        for gradient, argument in zip(found, rows[:3], strict=True)
    ]


def _prepared(call: Call, rows: LinearRows, wanted: Wanted, row_scale: Tensor | float) -> tuple[gpu.Device, Any]:
    """The steps of a call, and how it is cut."""
    of = LinearRows._make(None if tensor is None else tensor.detach() for tensor in rows)
    own = of.to(call.dtype)
    objective = with_weight(call.objective, of.class_weight, own.input)
    compute = compute_dtype(call.dtype)
    kept = rows.weight.dtype if rows.weight.dtype == compute else call.dtype
    problem = gpu.Problem(own.input, own.weight, own.bias, of.target, objective, kept)
    sizes = Sizes(len(own.input), len(own.weight), problem.row_bytes)
    plan = make_plan(call.name, sizes, call.workspace)
    return gpu.Device(problem, plan.chunks, plan.parts, row_scale, **wanted._asdict()), plan


def _denominator(call: Call, rows: LinearRows) -> Any:
    return denominator_of(len(rows.input), rows.target, rows.class_weight, call.objective)
