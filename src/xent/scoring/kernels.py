"""The loops over rows of predictions: what each row scores, and sums over rows.

    loss      -log q[label], or -sum(t * log q) for a soft label t; +inf for an impossible label (nats)
    Brier     sum((q - t)**2) over the classes, 0 to 2

Sums come as flat arrays of pairs (high, low): `high` is the running float64 sum and `low` adds up what each addition
rounded away (Knuth's two-sum), so that n additions leave an error of about n**2 * 2**-106. That is why the order of the
rows, and how they were divided, does not show in a score. All arithmetic is in float64: np.float64() widens a float32,
which float() leaves as it is in compiled code.

Histograms have fixed bins, so that those of two parts can be added. Bins of a probability are by octaves, four to each,
counted from 0 up to 1/2 and from 1 down to 1/2: a logarithmic loss needs resolution where it is steep.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.compilation import device, kernel
from xent.backends.cpu.primitives import add_in_any_order, float_bits, log, maximum

Array = NDArray[Any]

VALID, NOT_A_PROBABILITY, WRONG_SUM, WRONG_LABEL, WRONG_WEIGHT = range(5)
REASONS = (
    "",
    "a value that is no probability",
    "a sum other than 1",
    "a label that is no distribution",
    "a bad weight",
)

TOTALS = (
    "rows",
    "impossible_rows",
    "clipped_rows",
    "weight",
    "weight_squared",
    "impossible_weight",
    "loss",
    "loss_squared",
    "weighted_loss",
    "weighted_loss_squared",
    "brier",
    "correct",
    "entropy",
)
"""Sums over rows. All but the first three are weighted; `weighted_loss` is sum(weight**2 * loss). Losses that are
infinite are in `impossible_weight` and not in the sums."""
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
) = range(len(TOTALS))

CLASS_TOTALS = ("weight", "loss", "impossible_weight", "correct", "predicted")
"""Sums for each class: over the rows that have it as their label, but for `predicted`, over those predicted so."""

FIELDS, CLASS_FIELDS = len(TOTALS), len(CLASS_TOTALS)

SMALLEST_NORMAL = 2.0**-1022
LONG_ROW, BLOCK = 64, 256
OCTAVES, STEPS = 20, 4
PROBABILITY_BINS = 2 * OCTAVES * STEPS
CONFIDENCE_BINS = 20
LOSS_STEPS, LOSS_LOWEST, LOSS_HIGHEST = 8, -24, 10
LOSS_BINS = (LOSS_HIGHEST - LOSS_LOWEST) * LOSS_STEPS
"""Bins of the loss: eight to each octave from 2**-24 to 2**10 nats; what lies outside is in the first or last."""
CLIPS = np.array([1e-3, 2.0**-10, 1e-6, 2.0**-23, 1e-12, 1e-15, 2.0**-52])
"""Smallest probabilities whose effect is shown; 2**-10, 2**-23 and 2**-52 are the eps of float16, float32, float64."""


@device
def add(sums: Any, place: int, value: float) -> None:
    """Add a number to the compensated sum at this place of a flat array of pairs.

    Flat, and counted without a sign: views of pairs made the histograms five times as slow.
    """
    at = np.uint64(place) * np.uint64(2)
    high = sums[at]
    total = high + value
    back = total - high
    sums[at + np.uint64(1)] += (high - (total - back)) + (value - back)
    sums[at] = total


@device
def probability_bin(p: float) -> int:
    """The bin of a probability."""
    small = p if p < 0.5 else 1.0 - p
    octave = (float_bits(small) >> np.int64(50)) - np.int64((1022 - OCTAVES) * STEPS)
    octave = min(max(octave, np.int64(0)), np.int64(OCTAVES * STEPS - 1))
    return octave if p < 0.5 else np.int64(PROBABILITY_BINS - 1) - octave


@device
def loss_bin(loss: float) -> int:
    """The bin of a finite loss."""
    octave = (float_bits(loss) >> np.int64(49)) - np.int64((1023 + LOSS_LOWEST) * LOSS_STEPS)
    return min(max(octave, np.int64(0)), np.int64(LOSS_BINS - 1))


@device
def short_row(p: Any, y: int) -> tuple[float, float, float, int, bool]:
    """Sum, Brier score, largest probability and its first class, and whether all are 0 or more: of few classes."""
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
    """Sum, sum of squares, largest and minus smallest of a part of a row; NaN if there is a NaN."""
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
    """The same as `short_row`, in loops that become vector instructions; by blocks, to find the largest again.

    The label's own probability is left out of the sum of squares, and not subtracted, which would cancel.
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
    """Whether a row is a distribution, or what is wrong with it."""
    return (VALID if abs(total - 1.0) <= tolerance else WRONG_SUM) if possible else NOT_A_PROBABILITY


@device
def information(p: float) -> float:
    """-log p of a probability, +inf for 0. A float32 that rounding left above 1 counts as 1, and wins nothing."""
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
    """Score rows of probabilities against class indices. `log_prob` of the label is used where it is given."""
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
    """Score rows of probabilities against distributions; `log_p`, where it is given, are their logarithms."""
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
    """Add valid rows to the totals of their groups; without groups all rows are of one. Empty arrays count as 0.

    A loss above `clip_loss` is counted and lowered to it.
    """
    for i in range(loss.shape[0]):
        if status[i] != VALID:
            continue
        into = group[i] * FIELDS if group.shape[0] else 0
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
    """Add valid rows to the histogram of the loss, and to the sums of what lies above each of `clips`, which ascend.

    `histogram` and `below` hold (weight, weight * loss) for each bin and clip. The histogram is of losses lowered to
    `clip_loss`; infinite ones are in none of its bins.
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
    """Add valid rows to the histogram of (weight, confidence, correct) by the probability of the predicted class."""
    for i in range(confidence.shape[0]):
        if status[i] != VALID:
            continue
        w, value = weight[i] if weight.shape[0] else 1.0, confidence[i]
        cell = 3 * min(int(value * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)
        add(histogram, cell + 0, w)
        add(histogram, cell + 1, w * value)
        add(histogram, cell + 2, w * correct[i])


@kernel
def add_classes(
    label: Array, predicted: Array, loss: Array, weight: Array, status: Array, clip_loss: float, totals: Array
) -> None:
    """Add valid rows with class indices to the totals of their classes: see CLASS_TOTALS."""
    for i in range(label.shape[0]):
        if status[i] != VALID:
            continue
        w, value = weight[i] if weight.shape[0] else 1.0, min(loss[i], clip_loss)
        into = label[i] * CLASS_FIELDS
        add(totals, into + 0, w)
        if value < np.inf:
            add(totals, into + 1, w * value)
        else:
            add(totals, into + 2, w)
        if predicted[i] == label[i]:
            add(totals, into + 3, w)
        add(totals, predicted[i] * CLASS_FIELDS + 4, w)


@kernel
def add_soft_classes(p: Array, target: Array, predicted: Array, weight: Array, status: Array, totals: Array) -> None:
    """Add valid rows with soft labels: each class has its share t[j] of a row, with the loss -log q[j]."""
    for i in range(p.shape[0]):
        if status[i] != VALID:
            continue
        w = weight[i] if weight.shape[0] else 1.0
        for j in range(p.shape[1]):
            share = w * target[i, j]
            if share > 0.0:
                add(totals, j * CLASS_FIELDS + 0, share)
                if p[i, j] > 0.0:
                    add(totals, j * CLASS_FIELDS + 1, share * (0.0 - math.log(min(np.float64(p[i, j]), 1.0))))
                else:
                    add(totals, j * CLASS_FIELDS + 2, share)
        add(totals, predicted[i] * CLASS_FIELDS + 3, w * target[i, predicted[i]])
        add(totals, predicted[i] * CLASS_FIELDS + 4, w)


@kernel
def add_one_vs_rest(p: Array, label: Array, target: Array, weight: Array, status: Array, histogram: Array) -> None:
    """Add valid rows to each class's histogram of (weight, probability, label) by the probability of that class."""
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
