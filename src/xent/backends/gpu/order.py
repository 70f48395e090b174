"""What statistics need beside the log-sum-exp: the first maximum, how many logits are above the label's, entropy."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from xent.backends.gpu.primitives import exp, raise_maximum
from xent.backends.gpu.tile import DONE, Normal, finite, load, logits_of, transform

LAST: tl.constexpr = tl.constexpr(2**31 - 1)


class Order(NamedTuple):
    """Of the logits as they are, the first maximum and how many are above the label's.

    slope = sum(exp(z - reference) * (z - reference)).
    """

    normal: Normal
    best_at: Any
    above: Any
    slope: Any


@triton.jit
def order_and_slope(
    inputs, terms, at, label_x, SWITCHES: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """One visit for the statistics. The logits are read also where the label is none: entropy and argmax need none."""
    highest = tl.full([ROWS], float("-inf"), WIDE)
    best = highest
    total = tl.zeros([ROWS], tl.float64)
    slope = tl.zeros([ROWS], tl.float64)
    above = tl.zeros([ROWS], tl.int32)
    best_at = tl.zeros([ROWS], tl.int32)
    for start in range(0, inputs.classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = (j < inputs.classes)[None, :] & at.inside[:, None]
        x = load(logits_of(inputs), inputs, at.g, j, inside, DONE, WIDE)
        above += tl.sum((x > label_x[:, None]).to(tl.int32), axis=1)
        m = tl.max(x, axis=1)
        if tl.max((m > best).to(tl.int32), axis=0) > 0:  # in few blocks
            first = tl.min(tl.where(x == m[:, None], j[None, :], LAST), axis=1)
            best_at = tl.where(m > best, first, best_at)
            best = tl.where(m > best, m, best)
        z, _ = transform(x, terms, SWITCHES)
        before = highest
        highest, total = raise_maximum(highest, total, tl.max(z, axis=1))
        down = tl.where(total != 0.0, before.to(tl.float64) - highest.to(tl.float64), 0.0)
        if tl.min(down, axis=0) < 0.0:
            slope = slope * exp(down) + total * down
        reference = finite(highest)
        # A masked class adds 0, not 0 * -inf; the comparison is false for NaN.
        below = z - reference[:, None]
        below = tl.where(below < -1000.0, -1000.0, below)
        e = exp(below)
        total += tl.sum(e, axis=1).to(tl.float64)
        slope += tl.sum(e * below, axis=1).to(tl.float64)
    total = tl.where(highest == float("-inf"), float("nan"), total)
    zero = tl.zeros([ROWS], tl.float64)
    if tl.max((total != total).to(tl.int32), axis=0) > 0:
        nan_at = first_nan(inputs, at, WIDE, ROWS, BLOCK)
        best_at = tl.where(nan_at < inputs.classes, nan_at, best_at)
    return Order(Normal(highest, total, zero, zero), best_at, above, slope)


@triton.jit
def first_nan(inputs, at, WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """The first logit of each position that is NaN; without one, something above all classes."""
    found = tl.full([ROWS], LAST, tl.int32)
    for start in range(0, inputs.classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        inside = (j < inputs.classes)[None, :] & at.inside[:, None]
        x = load(logits_of(inputs), inputs, at.g, j, inside, DONE, WIDE)
        found = tl.minimum(found, tl.min(tl.where(x != x, j[None, :], LAST), axis=1))
    return found
