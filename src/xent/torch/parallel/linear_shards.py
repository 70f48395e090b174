"""The linear loss on a shard of the classes under torch's automatic differentiation, on the CPU.

A sum or a mean makes its gradients together with the loss, as linear_autograd.py does, and for the same reasons: the
logits of a chunk are made once. Backward multiplies what is ready by the gradient from above, and adds up the
gradients of the input over the ranks: one sum of features * rows numbers, which any layer that is cut by its
outputs needs. 16-bit shares are added up in float32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xent.backends import formula_shards as shard_formulas
from xent.backends.cpu.shards import Local
from xent.linear import shards as linear
from xent.linear.driver import NOTHING, Wanted
from xent.linear.host import Method
from xent.linear.plan import Plan
from xent.torch import linear_kernels
from xent.torch.linear_kernels import Array, Call
from xent.torch.parallel.combine import (
    Sharded,
    ignored_rows,
    local_labels,
    summed,
    without_label,
    write_statistics_gradient,
)
from xent.torch.rows import LinearRows

Gradients = list[Tensor | None]


@dataclass(frozen=True)
class LinearSharded:
    """A call on a shard, and how its work is cut."""

    call: Call
    sharded: Sharded
    method: Method
    plan: Plan


class CrossEntropy(torch.autograd.Function):
    """Of (input, weight, bias, target, class weight, call, scale): the losses of the rows, float64.

    With a `scale`, it is what each row's loss will be multiplied by, and gradients are made for it at once.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        rows, (call, scale) = LinearRows(*arguments[:5]), arguments[5:]
        wanted = Wanted(*ctx.needs_input_grad[:3])
        ctx.call, ctx.scale, ctx.ready = call, scale, None
        host = _host(linear.ShardHost, call, rows)
        at_once = scale is not None and any(wanted)
        host.row_scale = scale if at_once else 1.0
        found = _run(host, call, wanted if at_once else NOTHING)
        ctx.found = host.found
        if at_once:
            ctx.ready = linear_kernels.tensors_of(found, rows)
        ctx.save_for_backward(*rows)
        return torch.from_numpy(host.found.loss.copy())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, call, wanted = LinearRows(*ctx.saved_tensors), ctx.call, Wanted(*ctx.needs_input_grad[:3])
        ready, ctx.ready = ctx.ready, None
        found: Gradients = [None, None, None]
        if any(wanted):
            factor = _factor(upstream, ctx.scale, ready)
            found = call.sharded.ranks.done(lambda: _gradients(ctx, rows, wanted, upstream, ready, factor))
            _sum_input(found, call)
        dtarget = None
        if ctx.needs_input_grad[3]:
            dtarget = _target_gradient(rows, call, ctx.found, upstream)
        return (*found, dtarget, None, None, None)


class Statistics(torch.autograd.Function):
    """Of (input, weight, bias, labels, call): log_prob, entropy, lse (float64), argmax, rank."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        rows, call = LinearRows._make((*arguments[:-1], None)), arguments[-1]
        host = _host(linear.ShardStatisticsHost, call, rows)
        _run(host, call, NOTHING)
        values = tuple(torch.from_numpy(array) for array in host.statistics)
        values = without_label(values, ignored_rows(rows.target, call.sharded.objective))
        ctx.call, ctx.statistics = call, values
        ctx.save_for_backward(*rows[:4])
        ctx.mark_non_differentiable(*values[3:])
        return tuple(tensor.clone() if i < 3 else tensor for i, tensor in enumerate(values))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_log_prob: Tensor, d_entropy: Tensor, d_lse: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, call, wanted = LinearRows._make((*ctx.saved_tensors, None)), ctx.call, Wanted(*ctx.needs_input_grad[:3])
        objective = call.sharded.objective
        host = _host(linear.ShardStatisticsHost, call, rows)
        d_log_prob = d_log_prob.masked_fill(ignored_rows(rows.target, objective), 0.0)
        _, entropy, lse, _, _ = ctx.statistics
        labels = local_labels(rows.target, call.sharded)

        def write_gradient(logits: Array, first: int, last: int) -> None:
            part = slice(first, last)
            above = (d_log_prob[part], d_entropy[part], d_lse[part])
            write_statistics_gradient(logits, labels[part], lse[part], entropy[part], above, objective, logits)

        host.write_gradient = write_gradient
        found = call.sharded.ranks.done(lambda: linear_kernels.tensors_of(linear.run(host, wanted), rows))
        _sum_input(found, call)
        return (*found, None, None)


def _host(kind: type[Any], call: LinearSharded, rows: LinearRows) -> Any:
    """The steps on this rank, ready to run."""
    target, sharded = rows.target, call.sharded
    if not target.is_floating_point():
        target = torch.from_numpy(local_labels(target, sharded))
    problem = linear_kernels.problem_of(call.call, rows._replace(target=target))
    host = kind(problem, call.method, call.plan, torch.get_num_threads())
    host.shard = sharded.shard
    count = len(rows.input)
    ignored = ignored_rows(rows.target, sharded.objective)
    host.found = Local(*(np.empty(count) for _ in range(3)))
    host.exchange = lambda found, first, last: Local(
        *(tensor.numpy() for tensor in sharded.loss(found, ignored[first:last]))
    )
    if kind is linear.ShardStatisticsHost:
        host.statistics = [np.empty(count), np.empty(count), np.empty(count), *np.empty((2, count), np.int64)]
        host.exchange_statistics = lambda found, above, first, last: [
            tensor.numpy() for tensor in sharded.statistics(found, lambda x: above(x.numpy()))
        ]
    return host


def _run(host: Any, call: LinearSharded, wanted: Wanted) -> Any:
    """Run the driver; if it fails on this rank, let the others know where they wait for it."""
    try:
        return linear.run(host, wanted)
    except Exception as error:
        awaited = host.awaited()
        if awaited is None:
            raise
        shape = (awaited,) if host.numbers == 1 else (host.numbers, awaited)
        raise call.sharded.ranks.failed(shape, error) from error


def _factor(upstream: Tensor, scale: float | None, ready: Gradients | None) -> float | None:
    """What the gradients that are ready are to be multiplied by; None if they have to be made anew.

    The gradient from above is the same for all rows, scale times that of the reduced loss: `parallel.py` sees to it.
    Nothing in 16 bits is rounded twice.
    """
    if ready is None or scale is None or not len(upstream):
        return None
    factor = upstream[0].item() / scale if scale else 0.0
    dtypes = {tensor.dtype for tensor in ready if tensor is not None}
    is_exact = math.frexp(factor)[0] in (0.5, -0.5) and torch.float16 not in dtypes
    return factor if factor == 1.0 or is_exact or not dtypes & {torch.float16, torch.bfloat16} else None


def _gradients(
    ctx: Any, rows: LinearRows, wanted: Wanted, upstream: Tensor, ready: Gradients | None, factor: float | None
) -> Gradients:
    if ready is not None and factor is not None:
        return ready if factor == 1.0 else [None if tensor is None else tensor.mul_(factor) for tensor in ready]
    host = _host(linear.ShardHost, ctx.call, rows)
    host.found, host.exchanged = ctx.found, len(rows.input)
    host.row_scale = np.ascontiguousarray(upstream.detach().numpy())
    return linear_kernels.tensors_of(linear.run(host, wanted), rows)


def _sum_input(found: Gradients, call: LinearSharded) -> None:
    """Add up the gradient of the input over the ranks, each of which has the share of its classes."""
    if found[0] is not None:
        found[0] = summed(found[0], call.sharded.ranks)


def _target_gradient(rows: LinearRows, call: LinearSharded, found: Local, upstream: Tensor) -> Tensor:
    """The gradient by this rank's class probabilities, some rows at a time."""
    lse, wide = torch.as_tensor(found.lse), rows.to(call.call.dtype)
    out = torch.empty_like(rows.target)
    for first, last in call.plan.chunks:
        part = slice(first, last)
        logits = torch.nn.functional.linear(wide.input[part], wide.weight, wide.bias)
        out[part] = shard_formulas.target_gradient(
            logits, rows.class_weight, lse[part], upstream[part], call.sharded.objective, out.dtype
        )
    return out


def method_and_sizes(call: Call, rows: LinearRows, wanted: Sequence[bool]) -> tuple[Method, list[int]]:
    """Who multiplies here, and what the common plan has to know."""
    labels_or_soft = rows.target if rows.target.is_floating_point() else rows.target.long()
    problem = linear_kernels.problem_of(call, rows._replace(target=labels_or_soft))
    return linear.method_and_sizes(problem, Wanted(*wanted), torch.get_num_threads())
