"""Compiled loops over all probabilities of all rows: the histogram of each class against the rest.

A row has as many probabilities as classes, so that most of the time of a score is spent here. Without weights, the sums
in a bin are made of whole numbers, which need no compensation: all probabilities of a bin (or what they lack of 1, from
1/2 on) have the same first bits, so that a bin holds how many there are, and the sum of their other 50 bits. The
outermost bins are no steps of an octave, but all that is left; what is in those is added as floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.compilation import device, kernel
from xent.backends.cpu.primitives import bits_float, float_bits
from xent.scoring.loops import (
    LOWEST_STEP,
    OCTAVES,
    PROBABILITY_BINS,
    ROWS_AT_ONCE,
    STEPS,
    VALID,
    add,
    add_count,
    copy_column,
    octave_step,
    probability_bin,
)

Array = NDArray[Any]

SMALL_BINS = OCTAVES * STEPS
"""Bins of the probabilities below 1/2."""
OTHER_BITS = 2**50 - 1
MOST_ROWS = 2**13
"""The other bits of so many numbers have a sum below 2**63."""
OUTSIDE = PROBABILITY_BINS
"""A place behind the bins, for numbers that are not counted with them."""


@device
def add_row(p: Any, w: float, weighted: bool, target: Any, soft: bool, histogram: Any) -> None:
    """Add (weight, probability, label) of each class of a row, of which hard labels are added elsewhere."""
    for j in range(p.shape[0]):
        value = np.float64(p[j])
        cell = 3 * (j * PROBABILITY_BINS + probability_bin(value))
        add_count(histogram, cell, w, not weighted)
        add(histogram, cell + 1, w * value)
        if soft:
            add(histogram, cell + 2, w * target[j])


@device
def cell_of_label(p: Any, y: int) -> int:
    """Return the place of the sum of labels in the bin of a row's label."""
    return 3 * (y * PROBABILITY_BINS + probability_bin(np.float64(p[y]))) + 2


@kernel
def add_one_vs_rest(p: Array, label: Array, target: Array, weight: Array, status: Array, histogram: Array) -> None:
    """Add valid rows to the histogram of (weight, probability, label) of each class, over its probability."""
    soft, weighted = target.shape[0] > 0, weight.shape[0] > 0
    for i in range(p.shape[0]):
        if status[i] != VALID:
            continue
        w = weight[i] if weighted else 1.0
        if soft:
            add_row(p[i], w, weighted, target[i], True, histogram)
        else:
            add_row(p[i], w, weighted, p[i], False, histogram)
            add(histogram, cell_of_label(p[i], label[i]), w)


@kernel
def count_one_vs_rest(p: Array, label: Array, status: Array, histogram: Array) -> None:
    """The same for class indices without weights."""
    rows, classes = p.shape
    table = np.zeros((classes, PROBABILITY_BINS + 1, 2), np.int64)
    column, bins, bits = np.empty(ROWS_AT_ONCE), np.empty(ROWS_AT_ONCE, np.int64), np.empty(ROWS_AT_ONCE, np.int64)
    for first in range(0, rows, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, rows)
        part, y, valid, count = p[first:last], label[first:last], status[first:last], last - first
        usable = 0
        for r in range(count):
            if valid[r] == VALID:
                usable += 1
                add_count(histogram, cell_of_label(part[r], y[r]), 1.0, True)
        if usable == count:
            for j in range(classes):
                copy_column(part, j, column[:count])
                if place_numbers(column[:count], bins[:count], bits[:count]):
                    add_outermost(column[:count], bins[:count], 3 * j * PROBABILITY_BINS, histogram)
                count_numbers(bins[:count], bits[:count], table[j])
        else:
            for r in range(count):
                if valid[r] == VALID:
                    add_row(part[r], 1.0, False, part[r], False, histogram)
        if last % MOST_ROWS == 0 or last == rows:
            add_table(table, histogram)


@device
def place_numbers(column: Any, bins: Any, bits: Any) -> bool:
    """Find the bin of each number and its other bits; return whether some are outside of the octaves."""
    any_outside = np.int64(0)
    for r in range(column.shape[0]):
        is_small = column[r] < 0.5
        small = column[r] if is_small else 1.0 - column[r]
        step = octave_step(small)
        outside = step | (np.int64(SMALL_BINS - 1) - step)  # below 0 if one of them is
        any_outside |= outside
        place = step if is_small else np.int64(PROBABILITY_BINS - 1) - step
        bins[r] = np.int64(OUTSIDE) if outside < 0 else place
        bits[r] = float_bits(small) & np.int64(OTHER_BITS)
    return any_outside < 0


@device
def count_numbers(bins: Any, bits: Any, table: Any) -> None:
    """Add numbers to the counts and the sums of bits of their bins."""
    for r in range(bins.shape[0]):
        k = np.uint64(bins[r])
        table[k, 0] += 1
        table[k, 1] += bits[r]


@device
def add_outermost(column: Any, bins: Any, first: int, histogram: Any) -> None:
    """Add the numbers outside of the octaves to the cells of a class, of which the first is given."""
    for r in range(column.shape[0]):
        if bins[r] == OUTSIDE:
            cell = first + 3 * probability_bin(column[r])
            add_count(histogram, cell, 1.0, True)
            add(histogram, cell + 1, column[r])


@device
def add_table(table: Any, histogram: Any) -> None:
    """Add the counts and sums of the bins to the histograms, and begin anew."""
    for j in range(table.shape[0]):
        for k in range(PROBABILITY_BINS):
            if table[j, k, 0]:
                small = np.int64(k if k < SMALL_BINS else PROBABILITY_BINS - 1 - k)
                lowest = bits_float((small + np.int64(LOWEST_STEP)) << np.int64(50))
                unit = lowest / (1.0 + (small % STEPS) / STEPS) * 2.0**-52
                count, bits = np.float64(table[j, k, 0]), table[j, k, 1]
                high, low = np.float64(bits >> 32) * 2.0**32, np.float64(bits & (2**32 - 1))
                cell, sign = 3 * (j * PROBABILITY_BINS + k), 1.0 if k < SMALL_BINS else -1.0
                add_count(histogram, cell, count, True)
                if k >= SMALL_BINS:
                    add(histogram, cell + 1, count)
                add(histogram, cell + 1, sign * count * lowest)
                add(histogram, cell + 1, sign * high * unit)
                add(histogram, cell + 1, sign * low * unit)
        table[j] = 0


@kernel
def probability_bins(p: Array, bins: Array) -> None:
    """Find the bin of each probability of a matrix."""
    for i in range(p.shape[0]):
        for j in range(p.shape[1]):
            bins[i, j] = probability_bin(p[i, j])
