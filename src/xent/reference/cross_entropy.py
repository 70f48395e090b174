"""Softmax cross-entropy of logits, and its gradient, in float64.

    z        = softcap * tanh(logit_scale * x / softcap)          softcapped logits; without a softcap logit_scale * x
    q        = exp(z - lse),  lse = log(sum(exp(z)))              softmax
    t        = weight * ((1 - label_smoothing) * p + label_smoothing / classes)   weight of each class in the loss
    loss     = sum(t * (lse - z)) + z_loss * lse**2
    dloss/dz = (sum(t) + 2 * z_loss * lse) * q - t
    focal    = (1 - q[y])**focal_gamma * loss,  times its derivative by -log q[y]: of the loss of a label y
    dz/dx    = logit_scale * (1 - tanh(logit_scale * x / softcap)**2)

The textbook form of the gradient cancels where q is near t, which is where training leads. It is written here as

    sum(t) * q[j] - t[j] = (sum of the other t) * q[j] - t[j] * (sum of the other q)

which, for one label without smoothing, has no subtraction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xent.focal import focal_loss, focal_slope
from xent.objective import Objective
from xent.terms import exp_below_maximum

Float64 = NDArray[np.float64]
Target = NDArray[np.generic]
"""Class indices (rows,), or class probabilities (rows, classes)."""


def cross_entropy(logits: Float64, target: Target, objective: Objective) -> tuple[Float64, Float64]:
    """Return loss and log-sum-exp of each row. The loss of ignored rows is exactly 0, whatever their logits are."""
    t = target_weights(target, logits.shape[1], objective)
    z = softcapped_logits(logits, objective)
    minus_log_q, lse = negative_log_softmax(z)
    # 0 log 0 = 0: a class of weight 0 may be impossible. NaN remains.
    zero = (t == 0) & np.isposinf(minus_log_q)
    terms = t * np.where(zero, 0.0, minus_log_q)
    loss = terms.sum(axis=1) + z_loss_term(lse, objective)
    if objective.focal_gamma:
        loss = t.sum(axis=1) * focal_loss(of_label(t, minus_log_q), objective.focal_gamma, np)
    return np.where(ignored(target, objective), 0.0, loss), lse


def cross_entropy_gradient(logits: Float64, target: Target, objective: Objective) -> Float64:
    """Return the gradient of each row's loss with respect to its logits."""
    t = target_weights(target, logits.shape[1], objective)
    z = softcapped_logits(logits, objective)
    q, other_q = softmax_and_complement(z)
    gradient = sum_of_others(t) * q - t * other_q
    if objective.z_loss:
        _, lse = negative_log_softmax(z)
        gradient = gradient + z_loss_slope(lse, objective)[:, None] * q
    if objective.focal_gamma:
        slope = focal_slope(of_label(t, negative_log_softmax(z)[0]), objective.focal_gamma, np)
        gradient = slope[:, None] * gradient
    gradient = gradient * softcapped_logits_derivative(logits, objective)
    return np.where(ignored(target, objective)[:, None], 0.0, gradient)


def of_label(t: Float64, minus_log_q: Float64) -> Float64:
    """Return -log q of each row's label, which alone has a part in t; 0 where it weighs nothing."""
    surprise: Float64 = np.where(t > 0, minus_log_q, 0.0).sum(axis=1)
    return surprise


def ignored(target: Target, objective: Objective) -> NDArray[np.bool_]:
    """Return which rows are ignored: those labelled `ignore_index`."""
    if target.ndim == 2:
        return np.zeros(target.shape[0], dtype=bool)
    return np.asarray(target == objective.ignore_index)


def target_distribution(target: Target, classes: int, objective: Objective) -> Float64:
    """Return the smoothed target (1 - label_smoothing) * p + label_smoothing / classes; 0 for ignored rows."""
    if target.ndim == 2:
        p = target.astype(np.float64)
    else:
        p = (target[:, None] == np.arange(classes)).astype(np.float64)
    smoothing = objective.label_smoothing
    if smoothing:
        p = (1 - smoothing) * p + smoothing / classes
    return np.where(ignored(target, objective)[:, None], 0.0, p)


def target_weights(target: Target, classes: int, objective: Objective) -> Float64:
    """Return t of the equations above: the smoothed target times the class weights."""
    p = target_distribution(target, classes, objective)
    return p if objective.weight is None else p * np.asarray(objective.weight, dtype=np.float64)


def z_loss_term(lse: Float64, objective: Objective) -> Float64:
    """Return z_loss * lse**2; 0 without a z-loss, where 0 * inf would be NaN."""
    return objective.z_loss * lse**2 if objective.z_loss else np.zeros_like(lse)


def z_loss_slope(lse: Float64, objective: Objective) -> Float64:
    """Return 2 * z_loss * lse; the largest number where that overflows, since inf * 0 would make the gradient NaN."""
    largest = np.finfo(np.float64).max
    with np.errstate(over="ignore"):
        return np.clip(2 * objective.z_loss * lse, -largest, largest)


def softcapped_logits(logits: Float64, objective: Objective) -> Float64:
    """Return z of the equations above. -inf (a masked class) is preserved; +inf, not a legal logit, becomes NaN."""
    if objective.softcap is None:
        return objective.logit_scale * logits
    z = objective.softcap * np.tanh(objective.logit_scale * logits / objective.softcap)
    return np.where(np.isneginf(logits), -np.inf, np.where(np.isposinf(logits), np.nan, z))


def softcapped_logits_derivative(logits: Float64, objective: Objective) -> Float64:
    """Return dz/dx, with 1 - tanh(u)**2 = 1 / cosh(u)**2, which does not cancel for large u; 0 for a masked class."""
    if objective.softcap is None:
        return np.full_like(logits, objective.logit_scale)
    with np.errstate(over="ignore"):
        return objective.logit_scale / np.cosh(objective.logit_scale * logits / objective.softcap) ** 2


def negative_log_softmax(z: Float64) -> tuple[Float64, Float64]:
    """Return (lse - z, lse). The largest exponential is separated, so that the logarithm of q near 1 is accurate."""
    shifted, exponentials, is_maximum = exp_below_maximum(np, z, 1)
    log_rest = np.log1p(np.where(is_maximum, 0.0 * exponentials, exponentials).sum(axis=1, keepdims=True))
    lse = z.max(axis=1, keepdims=True) + log_rest
    return log_rest - shifted, lse[:, 0]


def softmax_and_complement(z: Float64) -> tuple[Float64, Float64]:
    """Return q = softmax(z) and 1 - q, both with full relative accuracy."""
    exponentials = exp_below_maximum(np, z, 1)[1]
    total = exponentials.sum(axis=1, keepdims=True)
    return exponentials / total, sum_of_others(exponentials) / total


def sum_of_others(values: Float64) -> Float64:
    """Return for each entry the sum of the others in its row.

    Subtracting an entry from the total loses digits only for the largest entry; for it the others are summed.
    """
    others: Float64 = values.sum(axis=1, keepdims=True) - values
    largest = np.arange(len(values)), np.abs(values).argmax(axis=1)
    without = values.copy()
    without[largest] = 0.0
    # A row that has NaN becomes NaN throughout.
    others[largest] = without.sum(axis=1) + 0.0 * others.sum(axis=1)
    return others
