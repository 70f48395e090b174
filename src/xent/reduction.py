"""From one loss per row to what is returned: the only place where a denominator is chosen.

    none   the losses as they are
    sum    sum_i loss_i
    mean   sum_i loss_i / denominator

The denominator of a mean is what the caller gave; else for class indices the sum of weight[label] over the rows that
are not ignored (their number, without weights), and for class probabilities the number of rows. That is torch's rule.

The functions use only what NumPy arrays and torch tensors have in common, so both fronts call them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

from xent.objective import Objective


def count_other(labels: Any, ignore_index: int) -> Any:
    """Count the labels that are not to be ignored."""
    return (labels != ignore_index).sum()


def mean_denominator(
    target: Any,
    weight: Any,
    soft: bool,
    rows: int,
    objective: Objective,
    count: Callable[[Any, int], Any] = count_other,
) -> Any:
    """What a mean over these rows divides by: a number, or an array of one where it has to be counted.

    1 for other reductions, which do not ask. `count` may be a faster `count_other`.
    """
    if objective.reduction != "mean":
        return 1.0
    if objective.denominator is not None:
        return objective.denominator
    if soft:
        return rows
    if weight is None:
        return count(target, objective.ignore_index)
    counted = target != objective.ignore_index
    # A label out of range is refused elsewhere, or makes its row NaN; here it must only not be read out of bounds.
    return (weight[(target * counted).clip(0, len(weight) - 1)] * counted).sum()


def reduce(total: Any, denominator: Any, objective: Objective) -> Any:
    """Return the sum of the losses, or their mean. A mean over nothing is 0 / 0: NaN, as in torch."""
    if objective.reduction == "sum":
        return total
    if isinstance(total, float):
        # Python and NumPy would stop or warn at a division by zero, for which there is no cause.
        return total / denominator if denominator else total * math.inf
    return total / denominator


@overload
def gradient_scale(denominator: float, objective: Objective) -> float: ...
@overload
def gradient_scale(denominator: Any, objective: Objective) -> Any: ...
def gradient_scale(denominator: Any, objective: Objective) -> Any:
    """d(reduced loss) / d(loss of one row); 0 for a mean without anything to count, so that its gradient is zero.

    A number, or of a denominator that lies on a device an array there: nobody waits for it.
    """
    if objective.reduction != "mean":
        return 1.0
    if isinstance(denominator, float | int):
        return 1.0 / denominator if denominator else 0.0
    counts = denominator != 0
    return counts / (denominator + ~counts)
