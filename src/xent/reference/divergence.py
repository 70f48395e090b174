"""KL and Jensen-Shannon divergences of two rows of logits, and their gradient by the first, in float64.

    p_s, p_t = softmax(z of s), softmax(z of t)      z: the softcapped, scaled logits of cross_entropy.py
    forward    sum(p_t * (d - 1 + exp(-d)))          d = log p_t - log p_s; = KL(p_t || p_s), as both sum to 1
    reverse    sum(p_s * (d - 1 + exp(-d)))          d = log p_s - log p_t; = KL(p_s || p_t)
    js         sum(m * (beta * e(p_t / m) + (1 - beta) * e(p_s / m)))      e(r) = r log r - r + 1
               m = beta * p_t + (1 - beta) * p_s

No term is negative, and each has its relative accuracy (terms.py). The gradients by z of s are

    forward    p_s - p_t                              = p_t * (exp(-d) - 1)
    reverse    p_s * (d - sum(p_s * d))
    js         (1 - beta) * p_s * (log(p_s / m) - KL(p_s || m))

and factor * that + 2 * z_loss * lse * p_s, times dz/dx. Where p_t has no mass but p_s has, the reverse divergence is
+inf; its gradient is that of the other classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from xent.divergence import Divergence
from xent.reference.cross_entropy import (
    Float64,
    negative_log_softmax,
    softcapped_logits,
    softcapped_logits_derivative,
    z_loss_slope,
    z_loss_term,
)
from xent.terms import kl_terms, log_and_excess

Labels = NDArray[np.generic] | None
"""One for each row, of which `ignore_index` alone has a meaning: the row counts for nothing."""


def divergence(student: Float64, teacher: Float64, labels: Labels, options: Divergence) -> Float64:
    """Return the loss of each row of logits (rows, classes)."""
    with np.errstate(all="ignore"):
        pair = _pair(student, teacher, options)
        if options.kind == "js":
            _, of_teacher, of_student = _of_mixture(pair, options.beta)
            terms = of_teacher + of_student
        else:
            p, q, d = (pair.q, pair.p, pair.d) if options.kind == "forward" else (pair.p, pair.q, -pair.d)
            terms = kl_terms(np, p, q, d)
        loss = options.factor * (terms.sum(axis=1) + 0.0 * (pair.lse + pair.other_lse))
        loss = loss + z_loss_term(pair.lse, options)
    return loss if labels is None else np.where(labels == options.ignore_index, 0.0, loss)


def divergence_gradient(student: Float64, teacher: Float64, labels: Labels, options: Divergence) -> Float64:
    """Return the gradient of each row's loss with respect to the student's logits."""
    with np.errstate(all="ignore"):
        pair = _pair(student, teacher, options)
        if options.kind == "forward":
            near = np.abs(pair.d) < 1
            gradient = np.where(near, pair.q * np.expm1(-np.where(near, pair.d, 0.0)), pair.p - pair.q)
        elif options.kind == "reverse":
            d = np.where((pair.p == 0) | (pair.d == -np.inf), 0.0, -pair.d)
            gradient = pair.p * (d - (pair.p * d).sum(axis=1, keepdims=True))
        else:
            log_ratio, _, _ = _of_mixture(pair, options.beta)
            log_ratio = np.where(pair.p == 0, 0.0, log_ratio)
            mean = (pair.p * log_ratio).sum(axis=1, keepdims=True)
            gradient = (1 - options.beta) * pair.p * (log_ratio - mean)
        gradient = options.factor * gradient
        if options.z_loss:
            gradient = gradient + z_loss_slope(pair.lse, options)[:, None] * pair.p
        gradient = gradient * softcapped_logits_derivative(student, options)
        gradient = gradient + 0.0 * (pair.lse + pair.other_lse)[:, None]  # a row that is NaN is so throughout
    return gradient if labels is None else np.where((labels == options.ignore_index)[:, None], 0.0, gradient)


class _Pair(NamedTuple):
    """Both distributions of each row: p the student's, q the teacher's, and d = log q - log p."""

    p: Float64
    q: Float64
    d: Float64
    lse: Float64
    other_lse: Float64


def _pair(student: Float64, teacher: Float64, options: Divergence) -> _Pair:
    s, t = softcapped_logits(student, options), softcapped_logits(teacher, options)
    (minus_log_p, lse), (minus_log_q, other_lse) = negative_log_softmax(s), negative_log_softmax(t)
    d = log_ratio(t, s, minus_log_q.min(axis=1), minus_log_p.min(axis=1))
    return _Pair(np.exp(-minus_log_p), np.exp(-minus_log_q), d, lse, other_lse)


def log_ratio(t: Float64, s: Float64, rest_t: Float64, rest_s: Float64) -> Float64:
    """Return (t - lse_t) - (s - lse_s), where lse = max + rest: an offset that a row has in common costs no digits."""
    difference, error = _difference(t, s)
    offset, offset_error = _difference(t.max(axis=1), s.max(axis=1))
    small = error - offset_error[:, None]
    return (difference - offset[:, None]) + (small - (rest_t - rest_s)[:, None])


def _difference(a: Float64, b: Float64) -> tuple[Float64, Float64]:
    """Return a - b, and what it rounds away (Knuth's two-sum)."""
    difference = a - b
    back = difference - a
    error = (a - (difference - back)) - (b + back)
    return difference, np.where(np.isfinite(difference), error, 0.0)


def _of_mixture(pair: _Pair, beta: float) -> tuple[Float64, Float64, Float64]:
    """Return log(p / m), and the teacher's and the student's terms of the JS divergence."""
    near = np.abs(pair.d) < 1
    difference = np.where(near, -pair.q * np.expm1(-np.where(near, pair.d, 0.0)), pair.q - pair.p)
    m = beta * pair.q + (1 - beta) * pair.p
    m_or_1 = np.where(m == 0, 1.0, m)
    _, of_teacher = log_and_excess(np, pair.q / m_or_1, (1 - beta) * difference / m_or_1)
    log_of_student, of_student = log_and_excess(np, pair.p / m_or_1, -beta * difference / m_or_1)
    return log_of_student, beta * m * of_teacher, (1 - beta) * m * of_student
