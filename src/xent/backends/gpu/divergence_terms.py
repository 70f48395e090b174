"""The terms of the divergences on a block of two rows, and what makes them: those of xent.backends.cpu, in Triton.

With reference = max(z), inverse = 1 / sum(exp(z - reference)):  p = exp(z - reference) * inverse;  d: log p_t - log p_s
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from xent.backends.gpu.primitives import exp, log, raise_maximum
from xent.backends.gpu.tile import Strided, finite, load, transform


class Pair(NamedTuple):
    """The arrays of a call: the logits of both with their strides, and the labels, or None. Flat, as `Inputs`."""

    student: Any
    student_outer: Any
    student_along: Any
    student_inner: Any
    teacher: Any
    teacher_outer: Any
    teacher_along: Any
    teacher_inner: Any
    rows: Any
    classes: Any
    inner: Any
    labels: Any


class PairSwitches(NamedTuple):
    """What is in use, known when a kernel is compiled; the last three are those of `Switches`."""

    reverse: bool
    mixture: bool
    scaled: bool
    capped: bool
    normalised: bool


class PairTerms(NamedTuple):
    """What the options mean for every row."""

    scale: Any
    softcap: Any
    z_loss: Any
    beta: Any
    factor: Any
    ignore_index: Any


class Rows(NamedTuple):
    """Which rows; `readable`: those that are not ignored."""

    g: Any
    inside: Any
    readable: Any


class Side(NamedTuple):
    """What makes probabilities of the z of a row."""

    reference: Any
    inverse: Any
    log_total: Any


@triton.jit
def student_of(pair):
    """The student's logits with their strides."""
    return Strided(pair.student, pair.student_outer, pair.student_along, pair.student_inner)


@triton.jit
def teacher_of(pair):
    """The teacher's."""
    return Strided(pair.teacher, pair.teacher_outer, pair.teacher_along, pair.teacher_inner)


@triton.jit
def side_of(
    logits,
    pair,
    terms,
    at,
    EVICT: tl.constexpr,
    SWITCHES: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One visit for the log-sum-exp of each row; a row of masked classes alone is NaN."""
    highest = tl.full([ROWS], float("-inf"), WIDE)
    total = tl.zeros([ROWS], tl.float64)
    for start in range(0, pair.classes, BLOCK):
        j = start + tl.arange(0, BLOCK)
        mask = at.readable[:, None] & (j < pair.classes)[None, :]
        z, _ = transform(load(logits, pair, at.g, j, mask, EVICT, WIDE), terms, SWITCHES)
        highest, total = raise_maximum(highest, total, tl.max(z, axis=1))
        total += tl.sum(exp(z - finite(highest)[:, None]), axis=1).to(tl.float64)
    total = tl.where(highest == float("-inf"), float("nan"), total)
    return Side(finite(highest), (1.0 / total).to(WIDE), log(total))


@triton.jit
def shift_between(student, teacher, WIDE: tl.constexpr):
    """lse_t - lse_s in two numbers of the computing type."""
    t, s, logs = (
        teacher.reference.to(tl.float64),
        student.reference.to(tl.float64),
        teacher.log_total - student.log_total,
    )
    whole = t - s
    total = whole + logs
    rest = rounded_away(t, -s, whole) + rounded_away(whole, logs, total)
    high = total.to(WIDE)
    return high, ((total - high.to(tl.float64)) + rest).to(WIDE)


@triton.jit
def rounded_away(a, b, total):
    """a + b - total, where total is a + b (Knuth's two-sum)."""
    back = total - a
    return (a - (total - back)) + (b - back)


@triton.jit
def log_ratio(t, s, high, low):
    """(t - lse_t) - (s - lse_s). What t - s rounds away is added back, so that a common offset costs no digits."""
    difference = t - s
    back = difference - t
    error = (t - (difference - back)) - (s + back)
    error = tl.where(tl.abs(difference) < float("inf"), error, 0.0)
    return (difference - high[:, None]) + (error - low[:, None])


@triton.jit
def excess_near(d):
    """d - 1 + exp(-d) for |d| < 1: d^2 / 2 (1 - d/3 (1 - d/4 (1 - ...))), in which nothing cancels."""
    LAST: tl.constexpr = 20 if d.dtype == tl.float64 else 12
    series = tl.zeros_like(d) + 1.0
    for i in tl.static_range(LAST - 2):
        series = 1.0 - d * (1.0 / (LAST - i)) * series
    return 0.5 * d * d * series


@triton.jit
def kl_term(q, p, d):
    """The term of KL(q || p) with d = log q - log p, +inf where p alone is 0; and p - q."""
    above = excess_near(d)
    near = tl.abs(d) < 1.0
    term = tl.where(near, q * above, q * (d - 1.0) + p)
    term = tl.where(term < 0.0, 0.0, term)  # false for NaN
    return tl.where(q == 0.0, p, term), tl.where(near, q * (above - d), p - q)


@triton.jit
def slope_of(p, d):
    """p * d; 0 of an impossible class, and of one that the teacher excludes."""
    return tl.where((p == 0.0) | (d == float("inf")), 0.0, p * d)


@triton.jit
def log_and_excess(r, x):
    """log r and r log r - x, where x = r - 1 is given for itself; the logarithm of 0 is taken as 0."""
    s = x / (2.0 + x)
    square = s * s
    series = tl.zeros_like(s) + 1.0 / 21
    for i in tl.static_range(9):
        series = series * square + 1.0 / (19 - 2 * i)
    series *= square
    near = tl.abs(x) <= 0.25
    far = log(tl.where(r == 0.0, 1.0, r))
    excess = 2.0 * (square + (1.0 + s) * s * series) / (1.0 - s)
    return tl.where(near, 2.0 * s * (1.0 + series), far), tl.where(near, excess, r * far - x)


@triton.jit
def mixture_terms(p, q, d, beta):
    """log(p_s / m), and the term of the JS divergence."""
    difference = tl.where(tl.abs(d) < 1.0, q * (d - excess_near(d)), q - p)
    m = beta * q + (1.0 - beta) * p
    usable = tl.where(m == 0.0, 1.0, m)
    log_of_student, of_student = log_and_excess(p / usable, -beta * difference / usable)
    _, of_teacher = log_and_excess(q / usable, (1.0 - beta) * difference / usable)
    term = m * (beta * of_teacher + (1.0 - beta) * of_student)
    return log_of_student, tl.where(term < 0.0, 0.0, term)
