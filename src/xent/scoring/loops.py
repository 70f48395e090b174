"""The compiled loops over rows: the score of each row, and sums and histograms over rows.

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
LONG_ROW, BLOCK = 64, 256
OCTAVES, STEPS = 20, 4
PROBABILITY_BINS = 2 * OCTAVES * STEPS
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
def probability_bin(p: float) -> int:
    """Return the bin of a probability."""
    small = p if p < 0.5 else 1.0 - p
    octave = (float_bits(small) >> np.int64(50)) - np.int64((1022 - OCTAVES) * STEPS)
    octave = min(max(octave, np.int64(0)), np.int64(OCTAVES * STEPS - 1))
    return octave if p < 0.5 else np.int64(PROBABILITY_BINS - 1) - octave


@device
def loss_bin(loss: float) -> int:
    """Return the bin of a finite loss."""
    octave = (float_bits(loss) >> np.int64(49)) - np.int64((1023 + LOSS_LOWEST) * LOSS_STEPS)
    return min(max(octave, np.int64(0)), np.int64(LOSS_BINS - 1))


@device
def short_row(p: Any, y: int) -> tuple[float, float, float, int, bool]:
    """Sum, Brier score, largest probability and its first class, and whether all are 0 or more; for few classes."""
    total, squares, best, place, possible = 0.0, 0.0, -1.0, 0, True
    for j in range(p.shape[0]):
        value = np.float64(p[j])
        possible &= value >= 0.0
        total += value
        if value > best:
            best, place = value, j
        difference = 1.0 - value if j == y else value
        squares += difference * difference
    return total, squares, best, place, possible


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
    """The same as `short_row`, in loops that vectorise; the blocks narrow the search for the largest probability.

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
    status: Array,
) -> None:
    """Score rows of probabilities against class indices; `log_prob`, unless empty, is that of each label."""
    for i in range(p.shape[0]):
        loss[i] = 0.0 - log_prob[i] if log_prob.shape[0] else information(np.float64(p[i, label[i]]))
    if p.shape[1] >= LONG_ROW:
        for i in range(p.shape[0]):
            total, brier[i], confidence[i], predicted[i], possible = long_row(p[i], label[i])
            status[i] = status_of(total, possible, tolerance)
    else:
        for i in range(p.shape[0]):
            total, brier[i], confidence[i], predicted[i], possible = short_row(p[i], label[i])
            status[i] = status_of(total, possible, tolerance)


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
    """Add valid rows to the totals of their groups. Optional arrays are empty; without `group` there is one group.

    A loss above `clip_loss` is counted and lowered to it.
    """
    for i in range(loss.shape[0]):
        into = group[i] * FIELDS if group.shape[0] else 0
        if status[i] == NO_WEIGHT:
            add(totals, into + ROWS_WITHOUT_WEIGHT, 1.0)
        if status[i] != VALID:
            continue
        w = weight[i] if weight.shape[0] else 1.0
        value = loss[i]
        add(totals, into + ROWS, 1.0)
        if value == np.inf:
            add(totals, into + IMPOSSIBLE_ROWS, 1.0)
        if value > clip_loss:
            add(totals, into + CLIPPED_ROWS, 1.0)
            value = clip_loss
        add(totals, into + WEIGHT, w)
        add(totals, into + WEIGHT_SQUARED, w * w)
        if value == np.inf:
            add(totals, into + IMPOSSIBLE_WEIGHT, w)
        else:
            add(totals, into + LOSS, w * value)
            add(totals, into + LOSS_SQUARED, w * value * value)
            add(totals, into + WEIGHTED_LOSS, w * w * value)
            add(totals, into + WEIGHTED_LOSS_SQUARED, w * w * value * value)
        if brier.shape[0]:
            add(totals, into + BRIER, w * brier[i])
            add(totals, into + CORRECT, w * correct[i])
        if entropy.shape[0]:
            add(totals, into + ENTROPY, w * entropy[i])


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
            add(histogram, cell + 0, w)
            add(histogram, cell + 1, w * counted)
        for k in range(clips.shape[0]):
            if value <= clips[k]:
                break
            add(below, 2 * k + 0, w)
            if value < np.inf:
                add(below, 2 * k + 1, w * value)


@kernel
def add_confidence(confidence: Array, correct: Array, weight: Array, status: Array, histogram: Array) -> None:
    """Add valid rows to the histogram of (weight, confidence, correct, weight**2) over the confidence.

    The confidence is the probability of the predicted class, or of class 1 of two.
    """
    for i in range(confidence.shape[0]):
        if status[i] != VALID:
            continue
        w, value = weight[i] if weight.shape[0] else 1.0, confidence[i]
        cell = 4 * min(int(value * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)
        add(histogram, cell + 0, w)
        add(histogram, cell + 1, w * value)
        add(histogram, cell + 2, w * correct[i])
        add(histogram, cell + 3, w * w)


@kernel
def add_classes(
    label: Array, predicted: Array, loss: Array, weight: Array, status: Array, clip_loss: float, totals: Array
) -> None:
    """Add valid rows with class indices to the totals of their classes."""
    for i in range(label.shape[0]):
        if status[i] != VALID:
            continue
        w, value = weight[i] if weight.shape[0] else 1.0, min(loss[i], clip_loss)
        into = label[i] * CLASS_FIELDS
        add(totals, into + CLASS_WEIGHT, w)
        if value < np.inf:
            add(totals, into + CLASS_LOSS, w * value)
        else:
            add(totals, into + CLASS_IMPOSSIBLE_WEIGHT, w)
        if predicted[i] == label[i]:
            add(totals, into + CLASS_CORRECT, w)
        add(totals, predicted[i] * CLASS_FIELDS + CLASS_PREDICTED, w)


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
def add_one_vs_rest(p: Array, label: Array, target: Array, weight: Array, status: Array, histogram: Array) -> None:
    """Add valid rows to the histogram of (weight, probability, label) of each class, over its probability."""
    soft, weighted = target.shape[0] > 0, weight.shape[0] > 0
    for i in range(p.shape[0]):
        if status[i] != VALID:
            continue
        w = weight[i] if weighted else 1.0
        for j in range(p.shape[1]):
            value = np.float64(p[i, j])
            cell = 3 * (j * PROBABILITY_BINS + probability_bin(value))
            if weighted:
                add(histogram, cell, w)
            else:
                histogram[np.uint64(cell) * np.uint64(2)] += 1.0  # exact
            add(histogram, cell + 1, w * value)
            if soft:
                add(histogram, cell + 2, w * target[i, j])
        if not soft:
            y = label[i]
            add(histogram, 3 * (y * PROBABILITY_BINS + probability_bin(np.float64(p[i, y]))) + 2, w)
