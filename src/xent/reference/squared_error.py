"""Squared error of the softmax (L2, the Brier score of one row), and its gradient through the softmax, in float64.

    loss     = sum((q - p)**2),  q = softmax(z)
    dloss/dz = 2 * q * ((q - p) - sum(q * (q - p)))

with the softcapped logits z and the smoothed target p of cross_entropy.py. Because of the factor q this loss stalls on
a row that is confidently wrong: where q of the label is tiny, so is the gradient. Differences are again written so that
they do not cancel:

    q[j] - p[j]                   = q[j] * (1 - p[j]) - p[j] * (1 - q[j])
    d[j] - sum(q * d)             = (1 - q[j]) * d[j] - (sum of the other q * d)
"""

from __future__ import annotations

import numpy as np

from xent.objective import Objective
from xent.reference.cross_entropy import (
    Float64,
    Target,
    ignored,
    softcapped_logits,
    softcapped_logits_derivative,
    softmax_and_complement,
    sum_of_others,
    target_distribution,
)


def squared_error(logits: Float64, target: Target, objective: Objective) -> Float64:
    """Return the squared error of each row, between 0 and 2."""
    difference, _, _ = _difference(logits, target, objective)
    return np.where(ignored(target, objective), 0.0, (difference**2).sum(axis=1))


def squared_error_gradient(logits: Float64, target: Target, objective: Objective) -> Float64:
    """Return the gradient of each row's squared error with respect to its logits."""
    difference, q, other_q = _difference(logits, target, objective)
    gradient = 2 * q * (other_q * difference - sum_of_others(q * difference))
    gradient = gradient * softcapped_logits_derivative(logits, objective)
    return np.where(ignored(target, objective)[:, None], 0.0, gradient)


def _difference(logits: Float64, target: Target, objective: Objective) -> tuple[Float64, Float64, Float64]:
    """Return q - p, q and 1 - q."""
    q, other_q = softmax_and_complement(softcapped_logits(logits, objective))
    p = target_distribution(target, logits.shape[1], objective)
    return q * sum_of_others(p) - p * other_q, q, other_q
