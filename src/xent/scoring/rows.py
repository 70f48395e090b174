"""The compiled loops that score each row.

    loss      -log q[label], or -sum(t * log q) for a soft label t; +inf for an impossible label (nats)
    Brier     sum((q - t)**2) over the classes, 0 to 2

Rows of few classes are scored class by class, some at once, so that one instruction scores several rows; their
probabilities are counted in the same visit, as reading them takes as long as that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.compilation import device, kernel
from xent.backends.cpu.primitives import add_in_any_order, log, maximum
from xent.scoring.loops import (
    FEW_CLASSES,
    NOT_A_PROBABILITY,
    PROBABILITY_BINS,
    ROWS_AT_ONCE,
    VALID,
    WRONG_LABEL,
    WRONG_SUM,
)
from xent.scoring.one_vs_rest import MOST_ROWS, add_table, count_block

Array = NDArray[Any]

SMALLEST_NORMAL = 2.0**-1022
BLOCK = 256


@device
def add_class(column: Any, label: Any, j: int, total: Any, lowest: Any, squares: Any, best: Any, place: Any) -> None:
    """Take the probabilities of class j into account, of some rows; each loop is short enough to vectorise."""
    for r in range(column.shape[0]):
        value, low = column[r], lowest[r]
        total[r] += value
        lowest[r] = value if value < low else low
    for r in range(column.shape[0]):
        difference = 1.0 - column[r] if label[r] == j else column[r]
        squares[r] += difference * difference
    for r in range(column.shape[0]):
        value, high, before = column[r], best[r], place[r]
        place[r] = j if value > high else before
        best[r] = value if value > high else high


@device
def copy_column(p: Any, column: Any) -> None:
    """Copy some probabilities of a class as float64."""
    for r in range(p.shape[0]):
        column[r] = np.float64(p[r])


@device
def short_rows(
    columns: Any, label: Any, tolerance: float, brier: Any, confidence: Any, predicted: Any, status: Any, scratch: Any
) -> None:
    """Score some rows of few classes, whose probabilities are the columns of a matrix."""
    rows = label.shape[0]
    total, lowest = scratch[0, :rows], scratch[1, :rows]
    for r in range(rows):
        total[r], lowest[r], brier[r], confidence[r], predicted[r] = 0.0, 0.0, 0.0, -1.0, 0
    for j in range(columns.shape[0]):
        add_class(columns[j, :rows], label, j, total, lowest, brier, confidence, predicted)
    for r in range(rows):
        # A NaN is in no minimum, but in the sum.
        status[r] = status_of(total[r], lowest[r] >= 0.0 and total[r] == total[r], tolerance)


@device
def part_of_row(p: Any, first: int, last: int) -> tuple[float, float, float, float]:
    """Sum, sum of squares, maximum and negated minimum of a part of a row; NaN if there is a NaN."""
    total, squares, largest, smallest = 0.0, 0.0, -np.inf, -np.inf
    for j in range(first, last):
        value = np.float64(p[j])
        total = add_in_any_order(total, value)
        squares = add_in_any_order(squares, value * value)
        largest = maximum(largest, value)
        smallest = maximum(smallest, -value)
    return total, squares, largest, smallest


@device
def long_row(p: Any, y: int) -> tuple[float, float, float, int, bool]:
    """Sum, Brier score, largest probability and its first class, and whether all are 0 or more; for many classes.

    The blocks narrow the search for the largest probability. That of the label is left out of the sum of squares
    instead of being subtracted, which would cancel.
    """
    classes, picked = p.shape[0], np.float64(p[y])
    total, squares = picked, (1.0 - picked) * (1.0 - picked)
    best, block, possible = picked, y - y % BLOCK, picked >= 0.0
    for first in range(0, classes, BLOCK):
        last = min(first + BLOCK, classes)
        middle = y if first <= y < last else last
        for begin, end in ((first, middle), (middle + 1, last)):
            part, part_squares, largest, smallest = part_of_row(p, begin, end)
            total += part
            squares += part_squares
            possible &= smallest <= 0.0
            if largest > best or (largest == best and first < block):
                best, block = largest, first
    place = block
    while place < classes - 1 and np.float64(p[place]) != best:
        place += 1
    return total, squares, best, place, possible


@device
def status_of(total: float, possible: bool, tolerance: float) -> int:
    """VALID for a distribution, otherwise what is wrong with it."""
    return (VALID if abs(total - 1.0) <= tolerance else WRONG_SUM) if possible else NOT_A_PROBABILITY


@device
def information(p: float) -> float:
    """-log p of a probability, +inf for 0. A float32 that rounding left above 1 counts as 1."""
    if p >= 1.0:
        return 0.0
    if p < SMALLEST_NORMAL:
        return -math.log(p) if p > 0.0 else np.inf
    return -log(p)


@device
def label_losses(p: Any, label: Any, loss: Any) -> None:
    """Find -log q[label] of some rows; if one of them is too small for `log`, once more, one by one."""
    too_small = False
    for i in range(p.shape[0]):
        loss[i] = np.float64(p[i, label[i]])
    for i in range(p.shape[0]):
        value = loss[i]
        too_small |= value < SMALLEST_NORMAL
        value = 1.0 if value > 1.0 else value
        loss[i] = 0.0 - log(SMALLEST_NORMAL if value < SMALLEST_NORMAL else value)
    if too_small:
        for i in range(p.shape[0]):
            loss[i] = information(np.float64(p[i, label[i]]))


@kernel
def hard_rows(
    p: Array,
    label: Array,
    log_prob: Array,
    tolerance: float,
    loss: Array,
    brier: Array,
    confidence: Array,
    predicted: Array,
    correct: Array,
    status: Array,
    histogram: Array,
) -> None:
    """Score rows of probabilities against class indices; `log_prob`, unless empty, is that of each label.

    `histogram`, unless empty, gets (1, probability, label) of each class of all rows, valid or not.
    """
    rows, classes = p.shape
    few, counted = classes <= FEW_CLASSES, histogram.shape[0] > 0
    columns, scratch = np.empty((classes if few else 0, ROWS_AT_ONCE)), np.empty((2, ROWS_AT_ONCE))
    table = np.zeros((classes if counted else 0, PROBABILITY_BINS + 1, 2), np.int64)
    places = np.empty((2, ROWS_AT_ONCE), np.int64)
    for first in range(0, rows, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, rows)
        part, y, of_label = p[first:last], label[first:last], loss[first:last]
        if few:
            for j in range(classes):
                copy_column(p[:, j][first:last], columns[j])
            squares, best, place = brier[first:last], confidence[first:last], predicted[first:last]
            short_rows(columns, y, tolerance, squares, best, place, status[first:last], scratch)
        else:
            for i in range(first, last):
                total, brier[i], confidence[i], predicted[i], possible = long_row(p[i], label[i])
                status[i] = status_of(total, possible, tolerance)
        if log_prob.shape[0]:
            for r in range(last - first):
                of_label[r] = 0.0 - log_prob[first + r]
        else:
            label_losses(part, y, of_label)
        for i in range(first, last):
            correct[i] = 1 if predicted[i] == label[i] else 0
        if counted:
            count_block(columns, y, places, table, histogram)
            if last % MOST_ROWS == 0 or last == rows:
                add_table(table, histogram)


@kernel
def soft_rows(
    p: Array,
    target: Array,
    log_p: Array,
    tolerance: float,
    loss: Array,
    brier: Array,
    confidence: Array,
    predicted: Array,
    entropy: Array,
    correct: Array,
    status: Array,
) -> None:
    """Score rows of probabilities against distributions; `log_p`, unless empty, holds the logarithms."""
    for i in range(p.shape[0]):
        total, all_target, squares, best, place = 0.0, 0.0, 0.0, -1.0, 0
        wrong, wrong_target, lost, uncertain = False, False, 0.0, 0.0
        for j in range(p.shape[1]):
            value, t = np.float64(p[i, j]), np.float64(target[i, j])
            wrong |= not (value >= 0.0)
            wrong_target |= not (t >= 0.0)
            total += value
            all_target += t
            if value > best:
                best, place = value, j
            squares += (value - t) * (value - t)
            if t > 0.0:
                uncertain -= t * math.log(t)
                if log_p.shape[0]:
                    lost -= t * log_p[i, j]
                else:
                    lost += t * (0.0 - math.log(min(value, 1.0))) if value > 0.0 else np.inf
        status[i] = NOT_A_PROBABILITY if wrong else (VALID if abs(total - 1.0) <= tolerance else WRONG_SUM)
        if wrong_target or not abs(all_target - 1.0) <= tolerance:
            status[i] = WRONG_LABEL
        predicted[i], confidence[i], brier[i] = place, best, squares
        loss[i], entropy[i], correct[i] = lost, uncertain, np.float64(target[i, place])
