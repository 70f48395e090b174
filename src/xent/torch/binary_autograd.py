"""The binary cross-entropy under torch's automatic differentiation: one `Function`.

As in autograd.py, a sum or a mean makes its gradient in the visit to the logits that makes the loss, for the upstream
gradient that is expected, and where somebody differentiates the gradient once more, or asks for a batch of gradients,
it is made by the operator of binary_operators.py. If a weight or the target requires a gradient, the losses of elements
are made first, and torch sees what becomes of them.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from xent.backends.binary_protocol import BinaryBackend, Elements, Visited, reduced_visit
from xent.backends.formula import FORMULA, compute_dtype
from xent.backends.formula_binary import FORMULA_BINARY, ignored, pos_weight_gradient, target_gradient, weighted
from xent.checks import check_binary_target
from xent.reduction import reduce
from xent.torch.autograd import EXPECTED, MULTIPLIED, finished, is_seen
from xent.torch.binary_operators import binary_gradient, shared
from xent.torch.reduced import reduced as reduced_losses
from xent.torch.reduced import scale_of
from xent.torch.rows import Call


class BinaryCall(NamedTuple):
    """What a call is beside its tensors."""

    name: str
    backend: BinaryBackend
    targets_are_checked: bool = False


def binary_cross_entropy(call: BinaryCall, elements: Elements) -> Tensor:
    """The reduced loss, or with reduction "none" the losses, shaped like the logits."""
    if not torch.is_grad_enabled():
        return _without_gradient(call, elements)
    learned = (elements.target, elements.weight, elements.pos_weight, elements.sample_weight)
    if not any(tensor is not None and tensor.requires_grad for tensor in learned):
        return _differentiated(call, elements) if elements.logits.requires_grad else _without_gradient(call, elements)
    plain = replace(elements, weight=None, sample_weight=None, objective=elements.objective.of_elements)
    wanted = (elements.logits, elements.target, elements.pos_weight)
    if any(tensor is not None and tensor.requires_grad for tensor in wanted):
        losses = _differentiated(call, plain)
    else:
        losses = _without_gradient(call, plain)
    return reduced_by_formula(losses, elements)


def reduced_by_formula(losses: Tensor, elements: Elements) -> Tensor:
    """What weights and reduction make of losses of elements, by operations that torch sees through."""
    dtype, objective = losses.dtype, elements.objective
    losses = weighted(losses, elements.weight, elements.sample_weight)
    if objective.reduction == "none":
        return losses
    denominator: Any = 1.0
    if objective.reduction == "mean":
        denominator = FORMULA_BINARY.count(elements) if objective.denominator is None else objective.denominator
    return reduced_losses(Call("", objective, FORMULA), losses, denominator, elements.target, 0, dtype)


def _differentiated(call: BinaryCall, elements: Elements) -> Tensor:
    loss: Tensor = BinaryCrossEntropy.apply(  # type: ignore[no-untyped-call]
        elements.logits,
        elements.target,
        elements.pos_weight,
        replace(elements, logits=None, target=None, pos_weight=None),
        call,
    )
    return loss


def _without_gradient(call: BinaryCall, elements: Elements) -> Tensor:
    def visit(scale: None, out: None) -> Visited:
        return call.backend.visit(elements, losses=elements.objective.reduction == "none")

    return _reduced(call, *reduced_visit(call.backend, elements, visit, gradient=False), elements)


def _reduced(call: BinaryCall, visited: Visited, denominator: Any, elements: Elements) -> Tensor:
    """The losses, their sum or their mean; LabelError if a target is why there is a NaN among them."""
    objective, total, dtype = elements.objective, visited.total, compute_dtype(elements.logits.dtype)
    if call.backend.reads_values and total != total and not call.targets_are_checked:
        check_binary_target(call.name, elements.target, ignored(elements.target, objective), objective)
    if objective.reduction == "none":
        losses: Tensor = visited.losses
        return losses
    if isinstance(total, Tensor):
        if isinstance(denominator, Tensor):
            return torch.where(denominator != 0, total / denominator, math.nan).to(dtype)
        return reduce(total, denominator, objective).to(dtype)  # type: ignore[no-any-return]
    # By way of NumPy, which takes half the time of torch.full.
    value = np.array(reduce(total, denominator, objective), np.float64 if dtype == torch.float64 else np.float32)
    return torch.from_numpy(value)


class BinaryCrossEntropy(torch.autograd.Function):
    """Of (logits, target, pos_weight, the rest of the elements, call); weight and sample_weight need no gradient."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, pos_weight: Tensor | None, rest: Elements, call: BinaryCall
    ) -> Tensor:
        elements = replace(rest, logits=logits, target=target, pos_weight=pos_weight)
        objective, backend = elements.objective, call.backend
        ctx.call, ctx.rest, ctx.ready = call, rest, None
        ready = objective.reduction != "none" and backend.one_visit
        if ready:
            is_large = backend.reads_values and logits.numel() >= EXPECTED.LEAST
            ctx.kind = ("binary", logits.shape[-1:], logits.dtype) if is_large else None
            ctx.made_for = EXPECTED.factor(ctx.kind)

        def visit(scale: Any, out: Tensor | None) -> Visited:
            if not ready:
                return backend.visit(elements, losses=objective.reduction == "none")
            return _with_gradient(backend, elements, scale, ctx.made_for, out)

        visited, denominator = reduced_visit(backend, elements, visit, gradient=ready)
        ctx.scale, ctx.ready = scale_of(denominator, objective), visited.gradient
        ctx.save_for_backward(logits, target, pos_weight)
        return _reduced(call, visited, denominator, elements)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        seen = is_seen(upstream)
        ready, ctx.ready = ctx.ready, None
        reads_values = ctx.call.backend.reads_values
        dlogits = finished(ctx, ready, upstream) if ready is not None and reads_values and not seen else None
        # The logits are asked for only if they are needed: they may have been written to since.
        if dlogits is not None:
            return dlogits, None, None, None, None
        logits, target, pos_weight = ctx.saved_tensors
        elements = replace(ctx.rest, logits=logits, target=target, pos_weight=pos_weight)
        dtarget = dpos = None
        if ctx.needs_input_grad[0] and seen:
            scale = _of_elements(ctx, upstream, elements)
            dlogits = binary_gradient(logits, target, pos_weight, scale, elements.objective)
        elif ctx.needs_input_grad[0]:
            dlogits = _made_anew(ctx, ready, upstream, elements)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            scale = _of_elements(ctx, upstream, elements)
            dtarget = target_gradient(elements, scale) if ctx.needs_input_grad[1] else None
            if ctx.needs_input_grad[2]:
                dpos = shared(pos_weight_gradient(elements, scale), pos_weight, True)
        return dlogits, dtarget, dpos, None, None


def _with_gradient(
    backend: BinaryBackend, elements: Elements, scale: Any, factor: float, out: Tensor | None
) -> Visited:
    """The visit whose gradient is for an upstream gradient, as if that had multiplied the one for 1."""
    if factor == 1.0 or elements.logits.dtype not in MULTIPLIED:
        return backend.visit(elements, scale if factor == 1.0 else factor * scale, out=out)
    return backend.visit(elements, scale, out=out, after=factor)


def _made_anew(ctx: Any, ready: Tensor | None, upstream: Tensor, elements: Elements) -> Tensor:
    """The gradient, in the memory of one that is ready for another upstream gradient, if there is one."""
    backend = ctx.call.backend
    gradient: Tensor
    if upstream.ndim or not backend.one_visit:
        gradient = backend.visit(elements, upstream if upstream.ndim else upstream.double() * ctx.scale).gradient
    elif backend.reads_values:
        gradient = _with_gradient(backend, elements, ctx.scale, upstream.item(), ready).gradient
    else:  # the device finds out itself whether the one that is ready is the right one
        more = {} if ready is None else {"finished": upstream}
        gradient = backend.visit(elements, upstream.double() * ctx.scale, out=ready, **more).gradient
    return gradient


def _of_elements(ctx: Any, upstream: Tensor, elements: Elements) -> Tensor:
    """The factor of the loss of each element before weights, shaped like the logits."""
    dtype = compute_dtype(elements.logits.dtype)
    scale = (upstream if upstream.ndim else upstream * ctx.scale).to(dtype)
    for weight in (elements.weight, elements.sample_weight):
        scale = scale if weight is None else scale * weight.to(dtype)
    return scale.expand(elements.logits.shape)
