"""The elementwise terms of the sums in `information`, without checks, and the exponentials of a softmax.

Each term keeps its relative accuracy where the textbook expression loses it, and produces no NaN in the branch of a
`where` that is not taken, which automatic differentiation would propagate.
"""

from __future__ import annotations

import math
from typing import Any

import array_api_compat

from xent.arrays import Array
from xent.errors import ArgumentError, message


def checked_base(base: float) -> float:
    """Return the base; ArgumentError unless it is a positive number other than 1."""
    try:
        usable = bool(0 < base < math.inf and base != 1)
    except (TypeError, ValueError):  # not a number
        usable = False
    if not usable:
        problem = f"found base {base!r}, expected a positive number other than 1"
        raise ArgumentError(message("xent.information", "base", problem, "Use math.e for nats or 2 for bits"))
    return base


def logarithm(xp: Any, x: Array, base: float) -> Array:
    """Return the logarithm to a base. The library's log2 and log10 are exact at powers, where a quotient is not."""
    if checked_base(base) == math.e:
        return xp.log(x)
    if base == 2:
        return xp.log2(x)
    if base == 10:
        return xp.log10(x)
    return xp.log(x) / nats_per_unit(xp, x, base)


def nats_per_unit(xp: Any, x: Array, base: float) -> Any:
    """Return log(base), as accurate as the dtype of x: a float, or an array for longdouble, which has 11 bits more."""
    if checked_base(base) == math.e:
        return 1.0
    return xp.log(full_like(xp, x, base)) if _is_longdouble(xp, x) else math.log(base)


def _is_longdouble(xp: Any, x: Array) -> bool:
    return bool(xp.finfo(x.dtype).eps < 2.0**-52)


def _one_of_quotients(xp: Any, x: Array) -> Any:
    """Return 1 as the numerator of constants: a float, or for longdouble, which has more digits, an array."""
    return full_like(xp, x, 1.0) if _is_longdouble(xp, x) else 1.0


def full_like(xp: Any, x: Array, value: float) -> Array:
    """Return a number as an array with the library, dtype and device of x."""
    return xp.asarray(value, dtype=x.dtype, device=array_api_compat.device(x))


def where_positive(xp: Any, x: Array) -> Array:
    """Return x where it is positive, else 1: an argument of the logarithm whose gradient is never NaN."""
    return xp.where(x > 0, x, full_like(xp, x, 1.0))


def cross_terms(xp: Any, p: Array, q: Array, base: float) -> Array:
    """Return -p log q: 0 where p = 0, and +inf where q = 0 but p > 0."""
    terms = -p * logarithm(xp, where_positive(xp, q), base) + 0.0
    return xp.where((p > 0) & (q == 0), full_like(xp, terms, math.inf), terms)


def divergence_terms(xp: Any, p: Array, q: Array) -> Array:
    """Return p log(p / q) - p + q in nats: the term of the KL divergence, accurate near p = q and never negative.

    With s = (q - p) / (q + p) the term is ``p * phi`` where, since log(q / p) = 2 artanh(s),

        phi = (q - p) / p - log(q / p) = 2 s^2 / (1 - s) - 2 (s^3 / 3 + s^5 / 5 + ...)

    The series is used for |s| <= 1/3, that is p / 2 <= q <= 2 p; elsewhere the formula loses less than three bits.
    """
    one, zero = full_like(xp, p, 1.0), full_like(xp, p, 0.0)
    both = (p > 0) & (q > 0)
    a, b = xp.where(both, p, one), xp.where(both, q, one)
    near = (b <= 2 * a) & (a <= 2 * b)

    # a + b can be subnormal but not 0; a quotient of the two is as accurate as they are.
    s = xp.where(near, (b - a) / (a + b), zero)
    square = s * s
    series = zero + 0 * s
    for k in range(_series_terms(xp, p), 0, -1):
        series = series * square + _one_of_quotients(xp, p) / (2 * k + 1)
    near_term = a * (2 * square * (1 / (1 - s) - s * series))

    # a / b overflows only for the smallest q, where the logarithms are far apart and do not cancel.
    overflows = b <= a * (4 / xp.finfo(a.dtype).max)
    ratio = xp.where(near | overflows, one, a) / xp.where(near | overflows, one, b)
    log_ratio = xp.where(overflows, xp.log(a) - xp.log(b), xp.log(ratio))
    far_term = a * log_ratio + (b - a)

    term = xp.where(near, near_term, far_term)
    # p = 0 leaves q, also for q = 0; p > 0 with q = 0 is impossible and costs infinity.
    return xp.where(both, term, xp.where(p > 0, full_like(xp, p, math.inf), q + 0 * p))


def mixture_divergence_terms(xp: Any, p: Array, q: Array) -> Array:
    """Return 4 times the term of the JS divergence in nats, (p + q) * ((1 + t) log(1 + t) + (1 - t) log(1 - t)).

    Here t = (q - p) / (p + q), so that 1 + t = q / m and 1 - t = p / m with the mixture m. For |t| <= 1/3 the second
    factor is the series t^2 + t^4 / 6 + t^6 / 15 + ... with the terms t^(2k) / (k (2k - 1)); elsewhere little cancels.
    """
    one, zero = full_like(xp, p, 1.0), full_like(xp, p, 0.0)
    total = p + q
    present = total > 0
    total = xp.where(present, total, one)
    t = (q - p) / total
    near = xp.abs(t) <= 1 / 3
    square = xp.where(near, t * t, zero)
    series = zero + 0 * t
    for k in range(_series_terms(xp, p), 0, -1):
        series = (series + _one_of_quotients(xp, p) / (k * (2 * k - 1))) * square
    up, down = where_positive(xp, 2 * (q / total)), where_positive(xp, 2 * (p / total))
    # where_positive turned 0 into 1, for which x log x is 0 as well.
    factor = xp.where(near, series, up * xp.log(up) + down * xp.log(down))
    return xp.where(present, total * factor, zero)


def kl_terms(xp: Any, p: Array, q: Array, d: Array) -> Array:
    """Return p * (d - 1 + exp(-d)), 0 or more: the terms of KL(p || q), where d = log p - log q is given for itself.

    For |d| < 1 it is the series d^2 / 2! - d^3 / 3! + ..., in which nothing cancels; elsewhere p * (d - 1) + q. Where p
    is 0 it is q. `xp` is numpy or torch.
    """
    near, zero = xp.abs(d) < 1.0, p == 0
    x = xp.where(near, d, 0.0)
    series = 0.0 * x
    for k in range(_EXPONENTIAL_TERMS, 1, -1):
        series = 1.0 / math.factorial(k) - x * series
    far = p * (xp.where(near | zero, 1.0, d) - 1.0) + q
    return xp.where(zero, q, xp.where(near, p * (x * x * series), xp.where(far < 0.0, 0.0, far)))


_EXPONENTIAL_TERMS = 20
"""1 / 20! is below the rounding of float64."""


def log_and_excess(xp: Any, ratio: Array, less_one: Array) -> tuple[Array, Array]:
    """Return log r and r log r - (r - 1), 0 or more, of ratios r given with r - 1; 0 and 1 - r for a ratio of 0.

    With s = (r - 1) / (r + 1), log r = 2 artanh(s) = 2 (s + S), S = s^3 / 3 + s^5 / 5 + ..., and for |r - 1| <= 1/4

        r log r - (r - 1) = 2 (s^2 + (1 + s) S) / (1 - s)

    `xp` is numpy or torch.
    """
    near = xp.abs(less_one) <= 0.25
    x = xp.where(near, less_one, 0.0)
    s = x / (2.0 + x)
    square = s * s
    series = 0.0 * s
    for k in range(_ARTANH_TERMS, 0, -1):
        series = (series + 1.0 / (2 * k + 1)) * square
    log_near, excess_near = 2.0 * s * (1.0 + series), 2.0 * (square + (1.0 + s) * s * series) / (1.0 - s)
    positive = xp.where(near | (ratio == 0), 1.0, ratio)
    log_far = xp.log(positive)
    excess_far = ratio * log_far - less_one
    return xp.where(near, log_near, log_far), xp.where(near, excess_near, excess_far)


_ARTANH_TERMS = 10
"""(1/7)^20 is below the rounding of float64."""


def _series_terms(xp: Any, x: Array) -> int:
    """Return the number of terms k for which (1/9)^k is below the rounding of the dtype."""
    return math.ceil(-math.log(xp.finfo(x.dtype).eps) / math.log(9))


def exp_below_maximum(xp: Any, logits: Array, axis: int) -> tuple[Array, Array, Array]:
    """Return x - max x, exp(x - max x), and a mask of one maximum per row, for softmax and log_softmax.

    The subtraction rounds, and exp turns that absolute error into a relative one that grows with |x|. The error is a
    floating point number itself (Knuth's two-sum), so that exp(d + error) = exp(d) * (1 + error) corrects for it.
    """
    labels = xp.argmax(logits, axis=axis, keepdims=True)
    positions = xp.arange(logits.shape[axis], dtype=labels.dtype, device=array_api_compat.device(logits))
    shape = [1] * logits.ndim
    shape[axis] = -1
    is_maximum = xp.reshape(positions, tuple(shape)) == labels
    # The maximum is selected by its index, so that its derivative goes to that one logit even if others are equal.
    maximum = xp.sum(xp.where(is_maximum, logits, full_like(xp, logits, 0.0)), axis=axis, keepdims=True)
    # A row that has NaN or +inf, or only -inf, has no softmax: this row becomes NaN, and no other.
    usable = xp.isfinite(maximum)
    offset = xp.where(usable, maximum, full_like(xp, logits, 0.0))
    shifted = xp.where(usable, logits - offset, full_like(xp, logits, math.nan))

    summand = xp.where(xp.isfinite(shifted), logits, offset)
    difference = summand - offset
    back = difference - summand
    error = (summand - (difference - back)) - (offset + back)
    return shifted, xp.exp(shifted) * (1 + error), is_maximum
