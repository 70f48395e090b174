"""The linear loss and its statistics as formulas of torch operations, which hold logits.

For devices without kernels, for forward mode, and for second derivatives: torch sees through all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from xent.backends.formula import FORMULA, target_gradient, weight_gradient
from xent.backends.protocol import Statistics
from xent.objective import Objective
from xent.torch.rows import LinearRows, PairRows

CHUNK_ROWS = 256
Rows = TypeVar("Rows", LinearRows, PairRows)


def losses(rows: LinearRows, objective: Objective) -> Tensor:
    """The loss of each row, some rows at a time: without a graph the logits of those are all that is held."""
    weighted = objective.weighted(rows.class_weight)
    return torch.cat([FORMULA.forward(_logits(part), part.target, weighted)[0] for part in _parts(rows)])


def statistics(rows: LinearRows, objective: Objective) -> Statistics:
    """The statistics of each row, some rows at a time."""
    parts = [FORMULA.statistics(_logits(part), part.target, objective) for part in _parts(rows)]
    return Statistics(*(torch.cat(numbers) for numbers in zip(*parts, strict=True)))


def gradient_of_target(rows: LinearRows, row_scale: Tensor, objective: Objective, lse: Tensor | None) -> Tensor:
    """The gradient by class probabilities (rows, classes), some rows at a time; `lse` is that of all shards."""
    weighted, found = objective.weighted(rows.class_weight), []
    for place, part in zip(places(rows), _parts(rows), strict=True):
        known = None if lse is None else lse[place]
        found.append(target_gradient(_logits(part), part.target, row_scale[place], weighted, known))
    return torch.cat(found)


def gradient_of_class_weights(rows: LinearRows, row_scale: Tensor, objective: Objective) -> Tensor:
    """The gradient by the class weights (classes,), some rows at a time."""
    parts = zip(places(rows), _parts(rows), strict=True)
    found = [weight_gradient(_logits(part), part.target, row_scale[place], objective) for place, part in parts]
    total = torch.stack(found).sum(dim=0)
    return total if rows.class_weight is None else total.to(rows.class_weight.dtype)


# --------------------------------------------------- formulas of the gradients themselves, to be differentiated again


def real(rows: Rows) -> list[Tensor]:
    """The tensors that have a derivative."""
    return [tensor for tensor in rows if tensor is not None and tensor.is_floating_point()]


def joined(rows: Rows, tensors: Sequence[Tensor]) -> Rows:
    """The rows with other tensors in place of those that `real` returns."""
    return type(rows)._make(spread(rows, tensors, rows))


def spread(rows: Rows, found: Sequence[Tensor], otherwise: Sequence[Any] | None = None) -> list[Any]:
    """One entry for each tensor of the rows: what was found for those that `real` returns."""
    remaining = iter(found)
    is_real = [tensor is not None and tensor.is_floating_point() for tensor in rows]
    others = (None,) * len(rows) if otherwise is None else otherwise
    return [next(remaining) if there else other for there, other in zip(is_real, others, strict=True)]


def explicit_gradients(
    rows: LinearRows, row_scale: Tensor, objective: Objective, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """The wanted gradients of sum(row_scale * loss) by input, weight and bias."""
    weighted = objective.weighted(rows.class_weight)
    return of_layer(rows, FORMULA.backward(_logits(rows), rows.target, None, row_scale, weighted), wanted)


def explicit_statistics_gradients(
    rows: LinearRows, upstream: tuple[Tensor, Tensor, Tensor], objective: Objective, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """The wanted gradients of the statistics by input, weight and bias."""
    dlogits = FORMULA.statistics_gradient(_logits(rows), rows.target, None, upstream, objective)
    return of_layer(rows, dlogits, wanted)


def of_layer(rows: Rows, dlogits: Tensor, wanted: Sequence[bool]) -> tuple[Tensor, ...]:
    """The wanted gradients by input, weight and bias, from that by the logits."""
    found = []
    if wanted[0]:
        found.append(dlogits @ rows.weight)
    if wanted[1]:
        found.append(dlogits.T @ rows.input)
    if wanted[2]:
        found.append(dlogits.sum(dim=0))
    return tuple(found)


def places(rows: Rows) -> list[slice]:
    """The rows in parts; one, which is empty, of no rows.

    A compiler to which their number is a symbol cannot count parts: there the logits are held.
    """
    count = rows.input.shape[0]
    if isinstance(count, torch.SymInt):
        return [slice(None)]
    return [slice(first, min(first + CHUNK_ROWS, count)) for first in range(0, max(count, 1), CHUNK_ROWS)]


def _parts(rows: LinearRows) -> list[LinearRows]:
    return [rows._replace(input=rows.input[place], target=rows.target[place]) for place in places(rows)]


def _logits(rows: LinearRows) -> Tensor:
    return F.linear(rows.input, rows.weight, rows.bias)
