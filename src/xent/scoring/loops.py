"""What all compiled loops over rows share, and those that score each row; tallies.py and one_vs_rest.py add rows up.

    loss      -log q[label], or -sum(t * log q) for a soft label t; +inf for an impossible label (nats)
    Brier     sum((q - t)**2) over the classes, 0 to 2

Sums are flat arrays of pairs (high, low): `high` is the running float64 sum, and `low` accumulates the rounding error
of each addition (Knuth's two-sum), so that n additions leave an error of about n**2 * 2**-106. A score therefore does
not depend on the order of the rows or on how they were divided. All arithmetic is in float64: np.float64() widens a
float32, where float() would have no effect in compiled code.

Histograms have fixed bins, so that the histograms of two parts can be added. Probabilities are binned by octaves, four
bins each, from 0 up to 1/2 and from 1 down to 1/2: a logarithmic loss needs resolution where it is steep.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.compilation import device, kernel
from xent.backends.cpu.primitives import add_in_any_order, float_bits, log, maximum

Array = NDArray[Any]

NO_WEIGHT, VALID, NOT_A_PROBABILITY, WRONG_SUM, WRONG_LABEL, WRONG_WEIGHT = range(-1, 5)
NO_LABEL, UNKNOWN_LABEL, NO_ID, REPEATED_ID = range(5, 9)
"""The status of a row. A weight of 0 leaves it out of everything; what is above VALID makes it invalid."""
REASONS = (
    "",
    "a value that is not a probability",
    "a sum other than 1",
    "a label that is not a distribution",
    "a bad weight",
    "no label",
    "a label that is none of the classes",
    "no id",
    "the id of an earlier row",
)

(
    ROWS,
    IMPOSSIBLE_ROWS,
    CLIPPED_ROWS,
    WEIGHT,
    WEIGHT_SQUARED,
    IMPOSSIBLE_WEIGHT,
    LOSS,
    LOSS_SQUARED,
    WEIGHTED_LOSS,
    WEIGHTED_LOSS_SQUARED,
    BRIER,
    CORRECT,
    ENTROPY,
    ROWS_WITHOUT_WEIGHT,
    BYTES,
) = range(15)
"""Places of the sums over rows. The first three and ROWS_WITHOUT_WEIGHT are counts, the others are weighted;
WEIGHTED_LOSS is sum(weight**2 * loss). Infinite losses count in IMPOSSIBLE_WEIGHT and in none of the sums of losses.
Rows of weight 0 count in their own place and in no other. From BYTES on there are three places each for the bytes and
the characters a of rows: sum(weight * a), sum((weight * a)**2) and sum(weight**2 * loss * a)."""
PER_AMOUNT = 3
FIELDS = BYTES + 2 * PER_AMOUNT

CLASS_WEIGHT, CLASS_LOSS, CLASS_IMPOSSIBLE_WEIGHT, CLASS_CORRECT, CLASS_PREDICTED = range(5)
"""Places of the sums for each class: over the rows labelled with it, and for the last over the rows predicted as it."""
CLASS_FIELDS = 5

SMALLEST_NORMAL = 2.0**-1022
LONG_ROW, BLOCK, ROWS_AT_ONCE = 64, 256, 256
OCTAVES, STEPS = 20, 4
PROBABILITY_BINS, LOWEST_STEP = 2 * OCTAVES * STEPS, (1022 - OCTAVES) * STEPS
CONFIDENCE_BINS = 20
LOSS_STEPS, LOSS_LOWEST, LOSS_HIGHEST = 8, -24, 10
LOSS_BINS = (LOSS_HIGHEST - LOSS_LOWEST) * LOSS_STEPS
"""Bins of the loss: eight per octave from 2**-24 to 2**10 nats; losses outside go to the first or the last bin."""
CLIPS = np.array([1e-3, 2.0**-10, 1e-6, 2.0**-23, 1e-12, 1e-15, 2.0**-52])
"""Clips whose effect is reported; 2**-10, 2**-23 and 2**-52 are the eps of float16, float32 and float64."""


@device
def add(sums: Any, place: int, value: float) -> None:
    """Add a number to the compensated sum at this place of a flat array of pairs.

    The array is flat and the index unsigned, because views of pairs made the histograms five times as slow.
    """
    at = np.uint64(place) * np.uint64(2)
    high = sums[at]
    total = high + value
    back = total - high
    sums[at + np.uint64(1)] += (high - (total - back)) + (value - back)
    sums[at] = total


@device
def add_count(sums: Any, place: int, value: float, whole: bool) -> None:
    """Add a number to a compensated sum; where all are whole numbers, there is no rounding error to look for."""
    if whole:
        sums[np.uint64(place) * np.uint64(2)] += value
    else:
        add(sums, place, value)


@device
def octave_step(small: float) -> int:
    """Return in which step of which octave a number is, from 0 for 2**-(OCTAVES + 1) on; below 0 for smaller ones."""
    return (float_bits(small) >> np.int64(50)) - np.int64(LOWEST_STEP)


@device
def probability_bin(p: float) -> int:
    """Return the bin of a probability."""
    step = octave_step(p if p < 0.5 else 1.0 - p)
    step = min(max(step, np.int64(0)), np.int64(OCTAVES * STEPS - 1))
    return step if p < 0.5 else np.int64(PROBABILITY_BINS - 1) - step


@device
def loss_bin(loss: float) -> int:
    """Return the bin of a finite loss."""
    octave = (float_bits(loss) >> np.int64(49)) - np.int64((1023 + LOSS_LOWEST) * LOSS_STEPS)
    return min(max(octave, np.int64(0)), np.int64(LOSS_BINS - 1))


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
def copy_column(p: Any, j: int, column: Any) -> None:
    """Copy the probabilities of class j, of some rows, as float64."""
    for r in range(p.shape[0]):
        column[r] = np.float64(p[r, j])


@device
def short_rows(
    p: Any, label: Any, tolerance: float, brier: Any, confidence: Any, predicted: Any, status: Any, scratch: Any
) -> None:
    """Score up to ROWS_AT_ONCE rows of few classes, class by class, so that one instruction scores several rows."""
    rows, classes = p.shape
    column, total, lowest = scratch[0, :rows], scratch[1, :rows], scratch[2, :rows]
    for r in range(rows):
        total[r], lowest[r], brier[r], confidence[r], predicted[r] = 0.0, 0.0, 0.0, -1.0, 0
    for j in range(classes):
        copy_column(p, j, column)
        add_class(column, label, j, total, lowest, brier, confidence, predicted)
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

    The blocks narrow the search for the largest probability.

    The probability of the label is left out of the sum of squares instead of being subtracted, which would cancel.
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
) -> None:
    """Score rows of probabilities against class indices; `log_prob`, unless empty, is that of each label."""
    rows = p.shape[0]
    scratch = np.empty((3, ROWS_AT_ONCE))
    for first in range(0, rows, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, rows)
        part, y, of_label = p[first:last], label[first:last], loss[first:last]
        if log_prob.shape[0]:
            for r in range(last - first):
                of_label[r] = 0.0 - log_prob[first + r]
        else:
            label_losses(part, y, of_label)
        if p.shape[1] < LONG_ROW:
            squares, best, place = brier[first:last], confidence[first:last], predicted[first:last]
            short_rows(part, y, tolerance, squares, best, place, status[first:last], scratch)
        else:
            for i in range(first, last):
                total, brier[i], confidence[i], predicted[i], possible = long_row(p[i], label[i])
                status[i] = status_of(total, possible, tolerance)
        for i in range(first, last):
            correct[i] = 1.0 if predicted[i] == label[i] else 0.0


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
