"""Compiled loops that add rows up: sums, histograms, confusion, clusters and amounts of text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.compilation import device, kernel
from xent.backends.cpu.primitives import add_in_any_order
from xent.scoring.loops import (
    BRIER,
    BYTES,
    CLASS_CORRECT,
    CLASS_FIELDS,
    CLASS_IMPOSSIBLE_WEIGHT,
    CLASS_LOSS,
    CLASS_PREDICTED,
    CLASS_WEIGHT,
    CLIPPED_ROWS,
    CONFIDENCE_BINS,
    CORRECT,
    ENTROPY,
    FIELDS,
    IMPOSSIBLE_ROWS,
    IMPOSSIBLE_WEIGHT,
    LOSS,
    LOSS_SQUARED,
    NO_WEIGHT,
    PER_AMOUNT,
    ROWS,
    ROWS_AT_ONCE,
    ROWS_WITHOUT_WEIGHT,
    VALID,
    WEIGHT,
    WEIGHT_SQUARED,
    WEIGHTED_LOSS,
    WEIGHTED_LOSS_SQUARED,
    add,
    add_count,
    loss_bin,
)

Array = NDArray[Any]

GROUP_LOSS, GROUP_WEIGHT, GROUP_AMOUNTS = range(3)
GROUP_FIELDS = 4
"""Places of the sums of a cluster: weight * loss, weight, weight * bytes, weight * characters."""


@device
def fill_terms(
    loss: Any, brier: Any, correct: Any, entropy: Any, weight: Any, status: Any, clip_loss: float, terms: Any
) -> None:
    """Write what each of some rows adds to each sum; rows that are not valid add 0. Optional arrays are empty.

    A loss above `clip_loss` is counted and lowered to it.
    """
    rows = loss.shape[0]
    for r in range(rows):
        terms[ROWS_WITHOUT_WEIGHT, r] = 1.0 if status[r] == NO_WEIGHT else 0.0
        terms[ROWS, r] = 1.0 if status[r] == VALID else 0.0
    for r in range(rows):
        terms[IMPOSSIBLE_ROWS, r] = terms[ROWS, r] if loss[r] == np.inf else 0.0
        terms[CLIPPED_ROWS, r] = terms[ROWS, r] if loss[r] > clip_loss else 0.0
    for r in range(rows):
        w = weight[r] if weight.shape[0] else 1.0
        w = w if status[r] == VALID else 0.0
        terms[WEIGHT, r] = w
        terms[WEIGHT_SQUARED, r] = w * w
    for r in range(rows):
        value, w = min(loss[r], clip_loss), terms[WEIGHT, r]
        terms[IMPOSSIBLE_WEIGHT, r] = w if value == np.inf else 0.0
        value = value if value < np.inf and status[r] == VALID else 0.0
        terms[LOSS, r] = w * value
        terms[LOSS_SQUARED, r] = w * value * value
        terms[WEIGHTED_LOSS, r] = w * w * value
        terms[WEIGHTED_LOSS_SQUARED, r] = w * w * value * value
    for r in range(rows):
        valid = status[r] == VALID
        terms[BRIER, r] = terms[WEIGHT, r] * brier[r] if valid and brier.shape[0] else 0.0
        terms[CORRECT, r] = terms[WEIGHT, r] * correct[r] if valid and brier.shape[0] else 0.0
        terms[ENTROPY, r] = terms[WEIGHT, r] * entropy[r] if valid and entropy.shape[0] else 0.0


@device
def halve(values: Any, errors: Any, half: int) -> None:
    """Add the second half of some numbers to the first, and what rounding loses to the errors of the first."""
    a, b, error_a, error_b = values[:half], values[half : 2 * half], errors[:half], errors[half : 2 * half]
    for k in range(half):
        x, y = a[k], b[k]
        total = x + y
        back = total - x
        error_a[k] += error_b[k] + ((x - (total - back)) + (y - back))
        a[k] = total


@device
def add_block(sums: Any, place: int, values: Any, errors: Any, whole: bool) -> None:
    """Add ROWS_AT_ONCE numbers to a compensated sum; they and the errors, which are 0, are overwritten."""
    total = 0.0
    if whole:
        for k in range(ROWS_AT_ONCE):
            total = add_in_any_order(total, values[k])
        sums[2 * place] += total
        return
    half = ROWS_AT_ONCE // 2
    while half:
        halve(values, errors, half)
        half //= 2
    add(sums, place, values[0])
    sums[2 * place + 1] += errors[0]
    for k in range(ROWS_AT_ONCE):
        errors[k] = 0.0


@kernel
def add_rows(
    loss: Array,
    brier: Array,
    correct: Array,
    entropy: Array,
    weight: Array,
    group: Array,
    status: Array,
    clip_loss: float,
    totals: Array,
) -> None:
    """Add valid rows to the totals of their groups. Optional arrays are empty; without `group` there is one group."""
    rows = loss.shape[0]
    terms, errors = np.zeros((BYTES, ROWS_AT_ONCE)), np.zeros(ROWS_AT_ONCE)
    for first in range(0, rows, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, rows)
        fill_terms(
            loss[first:last], brier[first:last], correct[first:last], entropy[first:last], weight[first:last],
            status[first:last], clip_loss, terms,
        )  # fmt: skip
        if group.shape[0]:
            for r in range(last - first):
                for place in range(BYTES):
                    if terms[place, r] != 0.0:
                        add(totals, group[first + r] * FIELDS + place, terms[place, r])
        else:
            terms[:, last - first :] = 0.0
            for place in range(BYTES):
                absent = not brier.shape[0] and place in (BRIER, CORRECT)
                absent |= not entropy.shape[0] and place == ENTROPY
                whole = place < WEIGHT or place == ROWS_WITHOUT_WEIGHT or (place < LOSS and not weight.shape[0])
                if not absent:
                    add_block(totals, place, terms[place], errors, whole)


@kernel
def add_losses(
    loss: Array, weight: Array, status: Array, clip_loss: float, clips: Array, histogram: Array, below: Array
) -> None:
    """Add valid rows to the histogram of the loss, and to the sums over losses above each of `clips` (ascending).

    `histogram` and `below` hold (weight, weight * loss) for each bin and each clip. The histogram has the losses
    lowered to `clip_loss`, without infinite ones.
    """
    for i in range(loss.shape[0]):
        if status[i] != VALID:
            continue
        w, value = weight[i] if weight.shape[0] else 1.0, loss[i]
        counted = min(value, clip_loss)
        if counted < np.inf:
            cell = 2 * loss_bin(counted)
            add_count(histogram, cell + 0, w, not weight.shape[0])
            add(histogram, cell + 1, w * counted)
        for k in range(clips.shape[0]):
            if value <= clips[k]:
                break
            add(below, 2 * k + 0, w)
            if value < np.inf:
                add(below, 2 * k + 1, w * value)


@kernel
def add_confidence(
    confidence: Array, correct: Array, weight: Array, status: Array, whole: bool, histogram: Array
) -> None:
    """Add valid rows to the histogram of (weight, confidence, correct, weight**2) over the confidence.

    The confidence is the probability of the predicted class, or of class 1 of two. `whole` says that `correct` is 0 or
    1, and that there are no weights.
    """
    for i in range(confidence.shape[0]):
        if status[i] != VALID:
            continue
        w, value = weight[i] if weight.shape[0] else 1.0, confidence[i]
        cell = 4 * min(int(value * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)
        add_count(histogram, cell + 0, w, whole)
        add(histogram, cell + 1, w * value)
        add_count(histogram, cell + 2, w * correct[i], whole)
        add_count(histogram, cell + 3, w * w, whole)


@kernel
def add_classes(
    label: Array, predicted: Array, loss: Array, weight: Array, status: Array, clip_loss: float, totals: Array
) -> None:
    """Add valid rows with class indices to the totals of their classes."""
    whole = not weight.shape[0]
    for i in range(label.shape[0]):
        if status[i] != VALID:
            continue
        w, value = weight[i] if weight.shape[0] else 1.0, min(loss[i], clip_loss)
        into = label[i] * CLASS_FIELDS
        add_count(totals, into + CLASS_WEIGHT, w, whole)
        if value < np.inf:
            add(totals, into + CLASS_LOSS, w * value)
        else:
            add(totals, into + CLASS_IMPOSSIBLE_WEIGHT, w)
        if predicted[i] == label[i]:
            add_count(totals, into + CLASS_CORRECT, w, whole)
        add_count(totals, predicted[i] * CLASS_FIELDS + CLASS_PREDICTED, w, whole)


@kernel
def add_soft_classes(p: Array, target: Array, predicted: Array, weight: Array, status: Array, totals: Array) -> None:
    """Add valid rows with soft labels: class j gets the share t[j] of a row, with the loss -log q[j]."""
    for i in range(p.shape[0]):
        if status[i] != VALID:
            continue
        w = weight[i] if weight.shape[0] else 1.0
        for j in range(p.shape[1]):
            share = w * target[i, j]
            if share > 0.0:
                add(totals, j * CLASS_FIELDS + CLASS_WEIGHT, share)
                if p[i, j] > 0.0:
                    add(totals, j * CLASS_FIELDS + CLASS_LOSS, share * (0.0 - math.log(min(np.float64(p[i, j]), 1.0))))
                else:
                    add(totals, j * CLASS_FIELDS + CLASS_IMPOSSIBLE_WEIGHT, share)
        add(totals, predicted[i] * CLASS_FIELDS + CLASS_CORRECT, w * target[i, predicted[i]])
        add(totals, predicted[i] * CLASS_FIELDS + CLASS_PREDICTED, w)


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
            add_count(confusion, label[i] * classes + predicted[i], w, not weight.shape[0])


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
