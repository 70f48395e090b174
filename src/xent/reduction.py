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


def weighted_count(
    labels: Any,
    weight: Any,
    ignore_index: int,
    sample_weight: Any = None,
    take: Callable[[Any, Any, Any], Any] = lambda w, i, ok: w[i] * ok,
) -> Any:
    """The sum of weight[label] over the labels that are not `ignore_index`; without weights (None) their number.

    With a `sample_weight` for each label, 0 for those to ignore, the sum of the products. `take` gives the weights of
    labels, 0 where they are not valid.
    """
    if weight is None:
        return (labels != ignore_index).sum() if sample_weight is None else sample_weight.sum()
    valid = labels != ignore_index
    # A label out of range is refused elsewhere, or makes its row NaN; here it must only not be read out of bounds.
    taken = take(weight, (labels * valid).clip(0, len(weight) - 1), valid)
    return (taken if sample_weight is None else taken * sample_weight.reshape(taken.shape)).sum()


def mean_denominator(
    target: Any,
    weight: Any,
    rows: int,
    objective: Objective,
    count: Callable[..., Any] = weighted_count,
    sample_weight: Any = None,
) -> Any:
    """What a mean over these rows divides by: a number, or an array of one where it has to be counted.

    1 for other reductions, which do not need it. The target holds labels, or is None for class probabilities. `count`
    may be a faster `weighted_count`. `sample_weight` has the weights of rows in float64.
    """
    if objective.reduction != "mean":
        return 1.0
    if objective.denominator is not None:
        return objective.denominator
    if target is None:
        return rows if sample_weight is None else sample_weight.sum()
    more = () if sample_weight is None else (sample_weight,)
    return count(target, weight, objective.ignore_index, *more)


def reduce(total: Any, denominator: Any, objective: Objective) -> Any:
    """Return the sum of the losses, or their mean. A mean over nothing is 0 / 0: NaN, as in torch."""
    if objective.reduction == "sum":
        return total
    if isinstance(total, float):
        # Python and NumPy would stop or warn at a division by zero, for which there is no cause.
        return total / denominator if denominator else math.nan
    return total / denominator if denominator else total * 0.0 + math.nan


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
