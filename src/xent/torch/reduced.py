"""From the losses of the rows to what a call returns, on any device."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xent.backends.formula import FORMULA
from xent.checks import check_labels
from xent.focal import focal_loss
from xent.objective import Objective
from xent.reduction import gradient_scale, mean_denominator, reduce
from xent.sparse import is_sparse
from xent.torch.rows import Call, weighted


def denominator_of(call: Call, target: Tensor, weight: Tensor | None) -> Any:
    """What a mean divides by; on a device where it has to be counted there."""
    of_rows = None if call.sample_weight is None else call.sample_weight.double()
    labels = None if target.is_floating_point() else target
    if labels is not None:
        rows = labels.numel()
    else:
        rows = target.shape[0] if is_sparse(target) else target.shape[0] * target.shape[2:].numel()
    found = mean_denominator(labels, weight, rows, call.objective, call.backend.count, of_rows)
    return found.item() if isinstance(found, Tensor) and call.backend.reads_values else found


def scale_of(denominator: Any, objective: Objective) -> Any:
    """`gradient_scale`, with fewer launches for a denominator on a device: each takes longer than what it does."""
    if objective.reduction == "mean" and isinstance(denominator, Tensor):
        return denominator.reciprocal().nan_to_num(math.nan, 0.0, 0.0)
    if objective.reduction == "mean" and isinstance(denominator, torch.SymInt):  # the number of rows, to a compiler
        return 1.0 / torch.sym_max(denominator, 1)  # type: ignore[no-untyped-call]
    return gradient_scale(denominator, objective)


def reduced(call: Call, losses: Tensor, denominator: Any, target: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """What the reduction makes of the losses; LabelError if a label is why there is a NaN among them.

    So labels are looked at only where something is wrong: backends give NaN for a label out of range.
    """
    objective, backend = call.objective, call.backend
    dtype = backend.compute_dtype(dtype)
    losses = weighted(losses, call.sample_weight)
    if not backend.reads_values:
        if objective.reduction == "none":
            return losses.to(dtype)
        total = backend.total(losses)
        if not isinstance(denominator, Tensor):
            return reduce(total, denominator, objective).to(dtype)  # type: ignore[no-any-return]
        counts = denominator != 0
        if backend is FORMULA:
            # Of nothing to count the value is NaN and its derivatives are 0, even where a loss is infinite.
            total, denominator = torch.where(counts, total, 0.0), torch.where(counts, denominator, 1.0)
        return torch.where(counts, total / denominator, math.nan).to(dtype)
    total = backend.total(losses)
    if total != total and not (target.is_floating_point() or call.labels_are_checked):
        check_labels(call.name, target, classes, objective.ignore_index)
    if objective.reduction == "none":
        return losses.to(dtype)
    # By way of NumPy, which takes half the time of torch.full.
    value = np.array(reduce(total, denominator, objective), np.float64 if dtype == torch.float64 else np.float32)
    return torch.from_numpy(value)


def reduced_by_formula(
    losses: Tensor, target: Tensor, weight: Tensor | None, objective: Objective, sample_weight: Tensor | None = None
) -> Tensor:
    """What the reduction makes of losses by operations that torch sees through, and does not wait for."""
    dtype = losses.dtype
    if objective.focal_gamma:
        losses = focal_loss(losses.double(), objective.focal_gamma, torch)
    call = Call("", objective, FORMULA, sample_weight=sample_weight)
    return reduced(call, losses, denominator_of(call, target, weight), target, 0, dtype)


def of_rows(numbers: Tensor, logits: Tensor) -> Tensor:
    """One number for each row, (N,) or (N, S), in the dtype of losses; of one number if there is only one."""
    shape = logits.shape[:1] + logits.shape[2:]
    wide = numbers.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)
    return wide.reshape(shape) if wide.ndim else wide.expand(shape)
