"""The loss and the statistics of logits under torch's automatic differentiation: one `Function` for each.

A sum or a mean makes its gradient together with the loss, in one visit to the logits, and the first backward hands it
out. It is made for an upstream gradient of 1, as `loss.backward()` passes it, or for the one that came the last two
times (`Expected`): then `loss / steps` and a loss scale cost nothing. Another one multiplies float32 and float64
gradients where they lie, which rounds once more; whether it was expected makes no difference to the bits. 16-bit
gradients are made anew in the same memory, so that they are rounded once, and so are those of a second backward. With
reduction "none" the upstream gradient is not known before backward.

Nothing here waits for a device whose numbers the host cannot read (`Backend.reads_values`): denominators stay on it,
labels are not looked at, and the device itself finds out whether the upstream gradient is 1.

Where somebody differentiates the gradient once more, or asks for a batch of gradients, it is made by the operator of
operators.py, which torch sees. That mechanism costs about 30 microseconds more for each call, as much as the whole loss
of a small batch; so it serves only there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xent.backends.formula import target_gradient, weight_gradient
from xent.backends.protocol import Statistics as RowStatistics
from xent.checks import check_labels
from xent.errors import ArgumentError, message
from xent.objective import Objective
from xent.torch._torch_private import is_batched, is_transformed
from xent.torch.operators import cross_entropy_gradient, statistics_gradient
from xent.torch.reduced import denominator_of, of_rows, reduced, reduced_by_formula, scale_of
from xent.torch.rows import Call

# ------------------------------------------------------------------------------------------------------ loss of logits


def cross_entropy(call: Call, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The reduced loss of rows (N, C) or (N, C, S), or with reduction "none" the losses (rows,)."""
    if reduces_by_torch(call, weight):
        rows = call._replace(objective=call.objective.of_rows, sample_weight=None)
        losses = _cross_entropy(rows, logits, target, weight)
        return reduced_by_formula(losses, target, weight, call.objective, call.sample_weight)
    return _cross_entropy(call, logits, target, weight)


def _cross_entropy(call: Call, logits: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """The loss of an objective that backends have, whose gradient by the class weights is that of losses of rows."""
    wanted = (logits.requires_grad, target.requires_grad, weight is not None and weight.requires_grad)
    if torch.is_grad_enabled() and any(wanted):
        loss: Tensor = CrossEntropy.apply(logits, target, weight, call)  # type: ignore[no-untyped-call]
        return loss
    losses, _ = call.backend.forward(logits, target, call.objective.weighted(weight))
    return reduced(call, losses, denominator_of(call, target, weight), target, logits.shape[1], logits.dtype)


def reduces_by_torch(call: Call, weight: Tensor | None) -> bool:
    """Whether torch has to see what becomes of the losses of rows: what is made of them, and gradients of weights."""
    if call.objective.focal_gamma:
        return True
    if not torch.is_grad_enabled():
        return False
    of_rows = call.sample_weight
    if of_rows is not None and (of_rows.requires_grad or call.objective.reduction == "none"):
        return True
    return weight is not None and weight.requires_grad


class Expected:
    """The upstream gradient that a loss will get: the one that came the last two times, else 1.

    It decides when work is done, and nothing else. Kept for large logits, by their dtype and number of classes.
    """

    LEAST = 2**17
    KINDS = 64

    def __init__(self) -> None:
        self.seen: dict[Any, tuple[float, int]] = {}

    def kind(self, logits: Tensor) -> Any:
        """What stands for logits like these; None if they are too few to matter."""
        return (logits.shape[1], logits.dtype) if logits.numel() >= self.LEAST else None

    def factor(self, kind: Any) -> float:
        """The upstream gradient to expect."""
        if kind is None:
            return 1.0
        factor, times = self.seen.get(kind, (1.0, 0))
        return factor if times > 1 else 1.0

    def came(self, kind: Any, factor: float) -> None:
        """Remember what came."""
        if kind is not None:
            before, times = self.seen.get(kind, (1.0, 0))
            if len(self.seen) >= self.KINDS and kind not in self.seen:
                self.seen.clear()
            self.seen[kind] = (factor, times + 1 if factor == before else 1)


EXPECTED = Expected()

MULTIPLIED = (torch.float32, torch.float64)
"""The dtypes of gradients that an upstream gradient multiplies after they were rounded."""


class CrossEntropy(torch.autograd.Function):
    """Of (logits, target, class weights, call)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, call: Call) -> Tensor:
        objective, backend = call.objective.weighted(weight), call.backend
        denominator = denominator_of(call, target, weight)
        ctx.call, ctx.scale, ctx.ready = call, call.scaled(scale_of(denominator, objective)), None
        if objective.reduction == "none" or not ctx.needs_input_grad[0] or not backend.one_visit:
            losses, saved = backend.forward(logits, target, objective)
        else:
            ctx.kind = EXPECTED.kind(logits) if backend.reads_values else None
            ctx.made_for = EXPECTED.factor(ctx.kind)
            losses, saved, ctx.ready = _with_gradient(ctx, logits, target, objective, ctx.made_for)
        needs_saved = ctx.ready is None or ctx.needs_input_grad[1]
        ctx.save_for_backward(logits, target, weight, saved if needs_saved else None)
        return reduced(call, losses, denominator, target, logits.shape[1], logits.dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return differentiated(ctx, _gradients_of_logits, upstream)


def _with_gradient(
    ctx: Any, logits: Tensor, target: Tensor, objective: Objective, factor: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, saved numbers and the gradient for an upstream gradient, as if that had multiplied the one for 1."""
    found: tuple[Tensor, Tensor, Tensor]
    make = ctx.call.backend.forward_backward
    if factor == 1.0 or logits.dtype not in MULTIPLIED:
        scale = ctx.scale if factor == 1.0 else factor * ctx.scale
        found = make(logits, target, scale, objective, out=out)
    else:
        found = make(logits, target, ctx.scale, objective, out=out, after=factor)
    return found


def _gradients_of_logits(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    backend, seen = ctx.call.backend, is_seen(upstream)
    ready, ctx.ready = ctx.ready, None
    dlogits = finished(ctx, ready, upstream) if ready is not None and backend.reads_values and not seen else None
    # The logits are asked for only if they are needed: they may have been written to since.
    if dlogits is not None and not any(ctx.needs_input_grad[1:3]):
        return dlogits, None, None, None
    logits, target, weight, saved = ctx.saved_tensors
    objective = ctx.call.objective.weighted(weight)
    if ctx.needs_input_grad[0] and not seen and dlogits is None:
        dlogits = _made_anew(ctx, ready, upstream, logits, target, saved, objective)
    if dlogits is not None and not any(ctx.needs_input_grad[1:3]):
        return dlogits, None, None, None
    row_scale = of_rows(upstream if upstream.ndim else upstream * ctx.scale, logits)
    if ctx.needs_input_grad[0] and dlogits is None:
        known = saved if saved is not None else backend.forward(logits, target, objective)[1]
        dlogits = cross_entropy_gradient(logits, target, weight, known, row_scale, ctx.call.objective)
    dtarget = dweight = None
    lse = None if seen else saved if backend.has_second_derivatives else saved[0]
    if ctx.needs_input_grad[1]:
        dtarget = target_gradient(logits, target, row_scale, objective, lse)
    if ctx.needs_input_grad[2]:
        dweight = weight_gradient(logits, target, row_scale, objective, lse).to(weight.dtype)
    return dlogits, dtarget, dweight, None


def finished(ctx: Any, ready: Tensor, upstream: Tensor) -> Tensor | None:
    """The gradient that is ready, for this upstream gradient; None if it has to be made anew."""
    factor = upstream.item()
    EXPECTED.came(ctx.kind, factor)
    return finished_for(ready, factor, ctx.made_for)


def finished_for(ready: Tensor, factor: float, made_for: float) -> Tensor | None:
    """The gradient that was made for one upstream gradient, for another; None if it has to be made anew."""
    if factor == made_for:
        return ready
    return ready.mul_(factor) if made_for == 1.0 and ready.dtype in MULTIPLIED else None


def _made_anew(
    ctx: Any,
    ready: Tensor | None,
    upstream: Tensor,
    logits: Tensor,
    target: Tensor,
    saved: Tensor,
    objective: Objective,
) -> Tensor:
    """The gradient by the logits, in the memory of one that is ready for another upstream gradient, if there is one.

    A device whose numbers the host cannot read finds out itself whether it is the right one.
    """
    backend = ctx.call.backend
    gradient: Tensor
    if upstream.ndim or not backend.one_visit:
        row_scale = upstream if upstream.ndim else upstream.double() * ctx.scale
        gradient = backend.backward(logits, target, saved, row_scale, objective)
    elif backend.reads_values:
        gradient = _with_gradient(ctx, logits, target, objective, upstream.item(), out=ready)[2]
    else:
        done = {} if ready is None else {"finished": upstream}
        row_scale = upstream.double() * ctx.scale
        gradient = backend.forward_backward(logits, target, row_scale, objective, out=ready, **done)[2]
    return gradient


# ------------------------------------------------------------------------------------------------ statistics of logits


class Statistics(torch.autograd.Function):
    """Of (logits, labels, call): log_prob, entropy, lse, argmax and rank of each row."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, call: Call) -> tuple[Tensor, ...]:
        statistics = call.backend.statistics(logits, labels, call.objective)
        outputs = handed_out(ctx, call, statistics, labels, logits.shape[1], logits.dtype)
        ctx.save_for_backward(logits, labels, statistics.lse, ctx.entropy)
        return outputs

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        return differentiated(ctx, _gradient_of_statistics, *upstream[:3])


def _gradient_of_statistics(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    logits, labels, lse, entropy = ctx.saved_tensors
    numbers = upstream_of(upstream, entropy)
    statistics = RowStatistics(None, entropy, lse, None, None)
    if is_seen(*upstream):
        wide = tuple(of_rows(number, logits) for number in numbers)
        return statistics_gradient(logits, labels, statistics, wide, ctx.call.objective), None, None
    return ctx.call.backend.statistics_gradient(logits, labels, statistics, numbers, ctx.call.objective), None, None


def handed_out(
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


def upstream_of(upstream: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Zeros where nothing came from above."""
    d_log_prob, d_entropy, d_lse = (torch.zeros_like(like) if number is None else number for number in upstream)
    return d_log_prob, d_entropy, d_lse


# ------------------------------------------------------------------------------------------------------------- shared


def is_seen(*upstream: Tensor | None) -> bool:
    """Whether torch has to see how a gradient is made: somebody differentiates it, or asks for a batch of them."""
    if torch.is_grad_enabled() or is_transformed():
        return True
    return any(tensor is not None and is_batched(tensor) for tensor in upstream)


def differentiated(
    ctx: Any, gradients: Callable[..., tuple[Tensor | None, ...]], *upstream: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients; an error for whoever differentiates or batches them where torch cannot see how they are made."""
    if not ctx.call.backend.has_second_derivatives:
        if is_seen(*upstream) and not torch.is_grad_enabled():
            found = "the gradient of sharded classes is asked for in a batch (is_grads_batched, vectorize, torch.func)"
            raise ArgumentError(message(ctx.call.name, "", found, "Ask for one gradient after the other"))
        if torch.is_grad_enabled():
            return once_differentiable(gradients)(ctx, *upstream)
    return gradients(ctx, *upstream)
