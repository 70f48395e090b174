"""Compiled loops over rows besides those of loops.py: confusion, clusters, amounts of text, and bins of a sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.compilation import kernel
from xent.scoring.loops import (
    BYTES,
    FIELDS,
    PER_AMOUNT,
    VALID,
    add,
    probability_bin,
)

Array = NDArray[Any]

GROUP_LOSS, GROUP_WEIGHT, GROUP_AMOUNTS = range(3)
GROUP_FIELDS = 4
"""Places of the sums of a cluster: weight * loss, weight, weight * bytes, weight * characters."""


@kernel
def add_confusion(
    label: Array,
    target: Array,
    predicted: Array,
    weight: Array,
    status: Array,
    classes: int,
    confusion: Array,
) -> None:
    """Add valid rows to the matrix of weights, a row for each label and a column for each predicted class.

    A row with a soft label counts with its share of each class.
    """
    for i in range(predicted.shape[0]):
        if status[i] != VALID:
            continue
        w = weight[i] if weight.shape[0] else 1.0
        if target.shape[0]:
            for j in range(classes):
                add(confusion, j * classes + predicted[i], w * target[i, j])
        else:
            add(confusion, label[i] * classes + predicted[i], w)


@kernel
def add_amounts(
    amounts: Array, loss: Array, weight: Array, group: Array, status: Array, clip_loss: float, totals: Array
) -> None:
    """Add bytes and characters, the rows of `amounts`, to the totals of the groups, as add_rows adds losses."""
    for i in range(loss.shape[0]):
        if status[i] != VALID:
            continue
        into = group[i] * FIELDS if group.shape[0] else 0
        w, value = weight[i] if weight.shape[0] else 1.0, min(loss[i], clip_loss)
        for k in range(amounts.shape[0]):
            place, amount = into + BYTES + k * PER_AMOUNT, w * amounts[k, i]
            add(totals, place, amount)
            add(totals, place + 1, amount * amount)
            if value < np.inf:
                add(totals, place + 2, w * value * amount)


@kernel
def add_groups(amounts: Array, loss: Array, weight: Array, group: Array, clip_loss: float, sums: Array) -> None:
    """Add rows to the sums of their clusters; an infinite loss, of which no interval is made, to none."""
    for i in range(loss.shape[0]):
        into = group[i] * GROUP_FIELDS
        w, value = weight[i] if weight.shape[0] else 1.0, min(loss[i], clip_loss)
        if value < np.inf:
            add(sums, into + GROUP_LOSS, w * value)
        add(sums, into + GROUP_WEIGHT, w)
        for k in range(amounts.shape[0]):
            add(sums, into + GROUP_AMOUNTS + k, w * amounts[k, i])


@kernel
def probability_bins(p: Array, bins: Array) -> None:
    """Find the bin of each probability of a matrix."""
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            bins[i, j] = probability_bin(p[i, j])
