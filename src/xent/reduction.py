"""From one loss per row to what is returned: the only place where a denominator is chosen.

    none   the losses as they are
    sum    sum_i loss_i
    mean   sum_i loss_i / denominator

The denominator of a mean is what the caller gave; else for class indices the sum of weight[label] over the rows that
are not ignored (their number, without weights), and for class probabilities the number of rows. That is torch's rule.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from xent.objective import Objective


def mean_denominator(
    target: np.ndarray, weight: np.ndarray | None, soft: bool, rows: int, objective: Objective
) -> float:
    """What a mean over these rows divides by."""
    if objective.denominator is not None:
        return float(objective.denominator)
    if soft:
        return float(rows)
    counted = target[target != objective.ignore_index]
    return float(counted.size if weight is None else weight[counted].sum())


def reduce(
    losses: np.ndarray, denominator: float, objective: Objective, shape: tuple[int, ...], dtype: npt.DTypeLike
) -> np.ndarray:
    """Return the losses of the rows in `shape`, their sum or their mean, in `dtype`; sums are made in float64."""
    if objective.reduction == "none":
        return losses.reshape(shape).astype(dtype)
    total = float(losses.sum(dtype=np.float64))
    if objective.reduction == "mean":
        # Without anything to count the mean is 0 / 0: NaN, as in torch, and no cause for a warning.
        total = total / denominator if denominator else total * math.inf
    return np.asarray(total, dtype=dtype)[()]


def gradient_scale(denominator: float, objective: Objective) -> float:
    """d(reduced loss) / d(loss of one row); 0 for a mean without anything to count, so that its gradient is zero."""
    if objective.reduction != "mean":
        return 1.0
    return 1.0 / denominator if denominator else 0.0
