"""What a linear loss computes forward and backward, on ordinary tensors.

Of a linear layer, making gradients anew would cost three products more: what is ready is multiplied by the upstream
gradient, exactly for a power of two (a loss scale, a mean over 2, 4, 8 ... accumulated batches), with one more rounding
in float32 and float64. Gradients in 16 bits that would be rounded twice, and float16 ones, which may have underflowed
already, are made anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xent.backends.protocol import Statistics as RowStatistics
from xent.linear.driver import Wanted
from xent.torch.reduced import denominator_of, reduced, scale_of
from xent.torch.rows import Call, LinearRows, PairRows

Gradients = list[Tensor | None]
Rows = LinearRows | PairRows
"""The tensors of a layer and its target, or of two layers: then the gradients are the student's."""


def linear_loss(call: Call, rows: Rows, wanted: Wanted) -> tuple[Tensor, Tensor, Gradients | None, Any]:
    """The reduced loss, what is saved of the rows, the gradients for an upstream gradient of 1, and d(loss) / d(row).

    Gradients are None where they are better made in backward. float16 ones may underflow before they are multiplied by
    the upstream gradient, which the host has to look at.
    """
    objective, linear = call.objective.weighted(rows.class_weight), call.linear
    denominator = denominator_of(call, rows.target, rows.class_weight)
    scale, ready = call.scaled(scale_of(denominator, objective)), None
    is_late = objective.reduction == "none" or (call.dtype == torch.float16 and not call.backend.reads_values)
    if is_late or not any(wanted):
        losses, saved = linear.forward(rows.layer(call), objective)
    else:
        losses, saved, gradients = linear.forward_backward(rows.layer(call), scale, objective, wanted)
        ready = _in_dtypes_of(gradients, rows)
    return reduced(call, losses, denominator, rows.target, len(rows.weight), call.dtype), saved, ready, scale


def linear_gradients(
    call: Call, rows: Rows, saved: Tensor | None, row_scale: Tensor | float, wanted: Sequence[bool]
) -> Gradients:
    """The wanted gradients of sum(row_scale * loss), from logits that are made once more."""
    objective = call.objective.weighted(rows.class_weight)
    return _in_dtypes_of(call.linear.backward(rows.layer(call), saved, row_scale, objective, Wanted(*wanted)), rows)


def multiplied(call: Call, ready: Gradients, upstream: Tensor) -> Gradients | None:
    """The gradients that are ready times the upstream gradient, where they lie; None if they have to be made anew."""
    if not call.backend.reads_values:
        for gradient in ready:
            if gradient is not None:
                call.backend.scale(gradient, upstream)  # type: ignore[attr-defined]
        return ready
    factor = upstream.item()
    if factor == 1.0:
        return ready
    dtypes = {call.dtype, *(gradient.dtype for gradient in ready if gradient is not None)}
    return None if _rounds_twice(dtypes, factor) else _times(ready, factor)


def finished(
    call: Call, ready: Sequence[Tensor], upstream: Tensor, wanted: Sequence[bool], made: Sequence[bool]
) -> Gradients | None:
    """Copies of the gradients that an operator has made, for this upstream gradient; None if that has to be anew.

    Copies may be scaled in place: the graph keeps what it has.
    """
    if upstream.ndim or not all(was_made or not want for was_made, want in zip(made, wanted, strict=True)):
        return None
    copies = [gradient.clone() if want else None for gradient, want in zip(ready, wanted, strict=True)]
    return multiplied(call, copies, upstream)


def made_anew(
    call: Call, rows: Rows, saved: Tensor | None, scale: Any, upstream: Tensor, wanted: Sequence[bool]
) -> Gradients:
    """The gradients for an upstream gradient, one number or one for each row, with the bits of `multiplied`."""
    if upstream.ndim:
        return linear_gradients(call, rows, saved, upstream, wanted)
    if not call.backend.reads_values:
        return linear_gradients(call, rows, saved, upstream.double() * scale, wanted)
    factor = upstream.item()
    dtypes = {call.dtype, *(t.dtype for t, want in zip(rows, wanted, strict=False) if want and t is not None)}
    if _rounds_twice(dtypes, factor):
        return linear_gradients(call, rows, saved, factor * scale, wanted)
    return _times(linear_gradients(call, rows, saved, scale, wanted), factor)


def _rounds_twice(dtypes: set[torch.dtype], factor: float) -> bool:
    """Whether gradients of these dtypes must not be multiplied by a factor after they were rounded.

    bfloat16 may by a power of two, float16 not even then: it may have underflowed.
    """
    is_exact = factor == 1.0 or math.frexp(factor)[0] in (0.5, -0.5)
    return factor != 1.0 and (torch.float16 in dtypes or (torch.bfloat16 in dtypes and not is_exact))


def _times(gradients: Gradients, factor: float) -> Gradients:
    return gradients if factor == 1.0 else [None if tensor is None else tensor.mul_(factor) for tensor in gradients]


def linear_statistics_gradients(
    call: Call,
    rows: LinearRows,
    lse: Tensor,
    entropy: Tensor,
    upstream: tuple[Tensor, Tensor, Tensor],
    wanted: Sequence[bool],
) -> Gradients:
    """The wanted gradients of the statistics, from logits that are made once more."""
    statistics = RowStatistics(None, entropy, lse, None, None)
    gradients = call.linear.statistics_gradient(rows.layer(call), statistics, upstream, call.objective, Wanted(*wanted))
    return _in_dtypes_of(gradients, rows)


def _in_dtypes_of(gradients: Sequence[Tensor | None], rows: Rows) -> Gradients:
    """Gradients of input, weight and bias in the dtypes of those."""
    return [
        None if gradient is None or argument is None else gradient.to(argument.dtype)
        for gradient, argument in zip(gradients, rows[:3], strict=True)
    ]
