"""The terms of the divergences on one block of two rows, and the functions of one number that they are built from.

With the softcapped logits z of student and teacher in two blocks of scratch, p = exp(z - reference) * inverse (`Side`)
and d = log p_t - log p_s, the steps here return the sum of the terms, and may leave the gradient by the student's z in
the place of its z. The equations are those of xent/reference/divergence.py.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from xent.backends.cpu.compilation import OPTIONS, device
from xent.backends.cpu.primitives import add_in_any_order, exp, fused_multiply_add, log


class Side(NamedTuple):
    """What makes probabilities of the z of a row: p = exp(z - reference) * inverse, log p = z - reference - log_total.

    `known` is 0, or NaN for a row that has no softmax.
    """

    reference: Any
    inverse: Any
    log_total: float
    known: float


class Shift(NamedTuple):
    """The difference of both log-sum-exps, in two numbers of the computing type."""

    high: Any
    low: Any


@device
def shift_between(student: Any, teacher: Any) -> Any:
    """lse_t - lse_s. In float64 the difference of the references is exact with what it rounds away (two-sum)."""
    t, s = np.float64(teacher.reference), np.float64(student.reference)
    whole = t - s
    back = whole - t
    rest = (t - (whole - back)) - (s + back)
    total = whole + (teacher.log_total - student.log_total)
    back = total - whole
    rest += (whole - (total - back)) + ((teacher.log_total - student.log_total) - back)
    high = type(student.reference)(total)
    return Shift(high, type(student.reference)((total - np.float64(high)) + rest))


@device
def log_ratio(t: Any, s: Any, shift: Any) -> Any:
    """(t - lse_t) - (s - lse_s). What t - s rounds away is added back, so that a common offset costs no digits."""
    difference = t - s
    back = difference - t
    error = (t - (difference - back)) - (s + back)
    # Of an infinite difference the error is NaN.
    return (difference - shift.high) + ((error if abs(difference) < np.inf else type(t)(0)) - shift.low)


# --------------------------------------------------------------------------------------------------------------- excess
#
#     excess(d) = d - 1 + exp(-d) = d^2 (1/2! - d/3! + d^2/4! - ...)        |d| < 1: nothing cancels

SINGLE = tuple(np.float32(1 / math.factorial(k)) for k in range(2, 13))
DOUBLE = tuple(1 / math.factorial(k) for k in range(2, 21))


def _series(x: Any) -> Any:
    """1/2! - x/3! + x^2/4! - ..."""
    raise NotImplementedError("for compiled code")


@overload(_series, jit_options=OPTIONS, strict=False)
def _(x: Any) -> Any:
    if x == types.float32:

        def series(x: Any) -> Any:
            s = SINGLE[10]
            s = fused_multiply_add(s, -x, SINGLE[9])
            s = fused_multiply_add(s, -x, SINGLE[8])
            s = fused_multiply_add(s, -x, SINGLE[7])
            s = fused_multiply_add(s, -x, SINGLE[6])
            s = fused_multiply_add(s, -x, SINGLE[5])
            s = fused_multiply_add(s, -x, SINGLE[4])
            s = fused_multiply_add(s, -x, SINGLE[3])
            s = fused_multiply_add(s, -x, SINGLE[2])
            s = fused_multiply_add(s, -x, SINGLE[1])
            return fused_multiply_add(s, -x, SINGLE[0])

        return series

    def series(x: Any) -> Any:
        s = DOUBLE[18]
        s = fused_multiply_add(s, -x, DOUBLE[17])
        s = fused_multiply_add(s, -x, DOUBLE[16])
        s = fused_multiply_add(s, -x, DOUBLE[15])
        s = fused_multiply_add(s, -x, DOUBLE[14])
        s = fused_multiply_add(s, -x, DOUBLE[13])
        s = fused_multiply_add(s, -x, DOUBLE[12])
        s = fused_multiply_add(s, -x, DOUBLE[11])
        s = fused_multiply_add(s, -x, DOUBLE[10])
        s = fused_multiply_add(s, -x, DOUBLE[9])
        s = fused_multiply_add(s, -x, DOUBLE[8])
        s = fused_multiply_add(s, -x, DOUBLE[7])
        s = fused_multiply_add(s, -x, DOUBLE[6])
        s = fused_multiply_add(s, -x, DOUBLE[5])
        s = fused_multiply_add(s, -x, DOUBLE[4])
        s = fused_multiply_add(s, -x, DOUBLE[3])
        s = fused_multiply_add(s, -x, DOUBLE[2])
        s = fused_multiply_add(s, -x, DOUBLE[1])
        return fused_multiply_add(s, -x, DOUBLE[0])

    return series


@device
def kl_term(q: Any, p: Any, d: Any) -> Any:
    """The term of KL(q || p) where d = log q - log p, and p - q: q * excess(d), +inf where p alone is 0."""
    zero, one = type(q)(0), type(q)(1)
    above = _series(d) * d * d
    near = abs(d) < one
    term = q * above if near else fused_multiply_add(q, d - one, p)
    term = zero if term < zero else term  # false for NaN
    return (p if q == zero else term), (q * (above - d) if near else p - q)


@device
def forward_terms(s: Any, t: Any, student: Any, teacher: Any, shift: Any) -> float:
    """s = p_s - p_t, the gradient of KL(p_t || p_s) by z; returns the sum of its terms."""
    total = s.dtype.type(0)
    for i in range(len(s)):
        d = log_ratio(t[i], s[i], shift)
        p = exp(s[i] - student.reference) * student.inverse
        q = exp(t[i] - teacher.reference) * teacher.inverse
        term, s[i] = kl_term(q, p, d)
        total = add_in_any_order(total, term)
    return np.float64(total)


@device
def reverse_terms(s: Any, t: Any, student: Any, teacher: Any, shift: Any) -> Any:
    """The sum of the terms of KL(p_s || p_t), and sum(p_s * (log p_s - log p_t)) without infinite terms."""
    total = mean = s.dtype.type(0)
    for i in range(len(s)):
        d = -log_ratio(t[i], s[i], shift)
        p = exp(s[i] - student.reference) * student.inverse
        q = exp(t[i] - teacher.reference) * teacher.inverse
        term, _ = kl_term(p, q, d)
        total = add_in_any_order(total, term)
        mean = add_in_any_order(mean, _slope(p, d))
    return np.float64(total), np.float64(mean)


@device
def _slope(p: Any, d: Any) -> Any:
    """p * d; 0 of an impossible class, and of one that the teacher excludes."""
    return type(p)(0) if p == 0 or d == np.inf else p * d


@device
def reverse_gradient(s: Any, t: Any, student: Any, shift: Any, mean: Any) -> None:
    """s = p_s * (log p_s - log p_t - mean): the gradient of KL(p_s || p_t) by z."""
    for i in range(len(s)):
        d = -log_ratio(t[i], s[i], shift)
        p = exp(s[i] - student.reference) * student.inverse
        s[i] = fused_multiply_add(p, -mean, _slope(p, d))


# ------------------------------------------------------------------------------------------------------------- mixtures
#
#     excess of a ratio: r log r - (r - 1), 0 or more; with x = r - 1, s = x / (2 + x), S = s^3/3 + s^5/5 + ...
#     log r = 2 (s + S),   r log r - x = 2 (s^2 + (1 + s) S) / (1 - s)          |x| <= 1/4: nothing cancels

ARTANH = tuple(1 / (2 * k + 1) for k in range(1, 11))


@device
def log_and_excess(r: float, x: float) -> Any:
    """log r and r log r - x, where x = r - 1 is given for itself; -inf-like numbers never: log of 0 is taken as 0."""
    s = x / (2.0 + x)
    square = s * s
    series = ARTANH[9]
    series = fused_multiply_add(series, square, ARTANH[8])
    series = fused_multiply_add(series, square, ARTANH[7])
    series = fused_multiply_add(series, square, ARTANH[6])
    series = fused_multiply_add(series, square, ARTANH[5])
    series = fused_multiply_add(series, square, ARTANH[4])
    series = fused_multiply_add(series, square, ARTANH[3])
    series = fused_multiply_add(series, square, ARTANH[2])
    series = fused_multiply_add(series, square, ARTANH[1])
    series = fused_multiply_add(series, square, ARTANH[0]) * square
    near = abs(x) <= 0.25
    far = log(1.0 if r == 0.0 else r)
    return (
        2.0 * s * (1.0 + series) if near else far,
        2.0 * (square + (1.0 + s) * s * series) / (1.0 - s) if near else r * far - x,
    )


@device
def mixture_at(s: Any, t: Any, student: Any, teacher: Any, shift: Any, beta: float) -> Any:
    """p_s, log(p_s / m) and the term of the JS divergence, in float64."""
    d = log_ratio(t, s, shift)
    p = exp(s - student.reference) * student.inverse
    q = exp(t - teacher.reference) * teacher.inverse
    difference = q * (d - _series(d) * d * d) if abs(d) < 1 else q - p
    p, q, difference = np.float64(p), np.float64(q), np.float64(difference)
    m = beta * q + (1.0 - beta) * p
    inverse = 1.0 / (m if m != 0.0 else 1.0)
    log_of_student, of_student = log_and_excess(p * inverse, -beta * difference * inverse)
    _, of_teacher = log_and_excess(q * inverse, (1.0 - beta) * difference * inverse)
    return p, log_of_student, m * (beta * of_teacher + (1.0 - beta) * of_student)


@device
def mixture_terms(s: Any, t: Any, student: Any, teacher: Any, shift: Any, beta: float) -> Any:
    """The sum of the terms of the JS divergence, and KL(p_s || m)."""
    total = mean = 0.0
    for i in range(len(s)):
        p, log_of_student, term = mixture_at(s[i], t[i], student, teacher, shift, beta)
        total = add_in_any_order(total, 0.0 if term < 0.0 else term)
        mean = add_in_any_order(mean, p * log_of_student)
    return total, mean


@device
def mixture_gradient(s: Any, t: Any, student: Any, teacher: Any, shift: Any, beta: float, mean: float) -> None:
    """s = (1 - beta) * p_s * (log(p_s / m) - mean): the gradient of the JS divergence by z."""
    for i in range(len(s)):
        p, log_of_student, _ = mixture_at(s[i], t[i], student, teacher, shift, beta)
        s[i] = (1.0 - beta) * p * (log_of_student - mean)


@device
def add_probabilities(gradient: Any, z: Any, student: Any, factor: Any) -> None:
    """gradient += factor * p_s: the share of a z-loss."""
    for i in range(len(gradient)):
        gradient[i] = fused_multiply_add(factor * student.inverse, exp(z[i] - student.reference), gradient[i])
