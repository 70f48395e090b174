"""What the compiled loops over rows share: reasons, the places of sums, compensated addition, and bins.

rows.py scores each row, tallies.py adds rows up, one_vs_rest.py all probabilities.

Sums are flat arrays of pairs (high, low): `high` is the running float64 sum, and `low` accumulates the rounding error
of each addition (Knuth's two-sum), so that n additions leave an error of about n**2 * 2**-106. A score therefore does
not depend on the order of the rows or on how they were divided. All arithmetic is in float64: np.float64() widens a
float32, where float() would have no effect in compiled code.

Histograms have fixed bins, so that the histograms of two parts can be added. Probabilities are binned by octaves, four
bins each, from 0 up to 1/2 and from 1 down to 1/2: a logarithmic loss needs resolution where it is steep.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.cpu.compilation import device
from xent.backends.cpu.primitives import float_bits

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

ROWS_AT_ONCE = 256
"""Rows that a loop visits together, so that what it needs of them stays in the first-level cache."""
FEW_CLASSES = 100
"""Up to this many classes, each has a histogram of its own; otherwise only the predicted class has one."""
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
