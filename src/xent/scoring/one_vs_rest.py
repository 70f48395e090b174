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
    STEPS,
    VALID,
    add,
    add_count,
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


@kernel
def add_one_vs_rest(p: Array, label: Array, target: Array, weight: Array, status: Array, histogram: Array) -> None:
    """Add valid rows to the histogram of (weight, probability, label) of each class, over its probability."""
    soft = target.shape[0] > 0
    for i in range(p.shape[0]):
        if status[i] != VALID:
            continue
        w = weight[i] if weight.shape[0] else 1.0
        for j in range(p.shape[1]):
            value = np.float64(p[i, j])
            cell = 3 * (j * PROBABILITY_BINS + probability_bin(value))
            add_count(histogram, cell, w, not weight.shape[0])
            add(histogram, cell + 1, w * value)
            if soft:
                add(histogram, cell + 2, w * target[i, j])
        if not soft:
            y = label[i]
            add(histogram, 3 * (y * PROBABILITY_BINS + probability_bin(np.float64(p[i, y]))) + 2, w)


@device
def count_block(columns: Any, label: Any, places: Any, table: Any, histogram: Any) -> None:
    """Count (1, probability, label) of some rows without weights, given class by class."""
    rows = label.shape[0]
    bins, bits = places[0, :rows], places[1, :rows]
    for j in range(columns.shape[0]):
        column = columns[j, :rows]
        if place_numbers(column, bins, bits):
            add_outermost(column, bins, 3 * j * PROBABILITY_BINS, histogram)
        count_numbers(bins, bits, table[j])
    for r in range(rows):
        cell = 3 * (label[r] * PROBABILITY_BINS + probability_bin(columns[label[r], r]))
        add_count(histogram, cell + 2, 1.0, True)


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
                lowest: float = bits_float((small + np.int64(LOWEST_STEP)) << np.int64(50))
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
