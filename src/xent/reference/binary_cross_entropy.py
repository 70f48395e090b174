"""Binary cross-entropy of logits, and its gradient, in float64: elementwise, for targets between 0 and 1.

    z        = softcap * tanh(logit_scale * x / softcap)          softcapped logits; without a softcap logit_scale * x
    q        = 1 / (1 + exp(-z))                                  sigmoid, the probability of 1
    y'       = (1 - label_smoothing) * y + label_smoothing / 2
    loss     = weight * (pos_weight * y' * softplus(-z) + (1 - y') * softplus(z)),  softplus(z) = log(1 + exp(z))
    dloss/dz = weight * ((1 - y') * q - pos_weight * y' * (1 - q))
    focal    = weight * pos_weight**y * (1 - p)**focal_gamma * -log(p),  p the probability of the label y, 0 or 1

With e = exp(-|z|) every probability is e / (1 + e) or 1 / (1 + e), and softplus is log1p(e), or |z| more: so nothing
cancels for a label of 0 or 1. Minus infinity is certainly 0, plus infinity certainly 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xent.focal import focal_loss, focal_slope
from xent.objective import Objective

Float64 = NDArray[np.float64]


def binary_cross_entropy(
    logits: Float64, target: Float64, objective: Objective, weight: Float64 | float, pos_weight: Float64 | float
) -> Float64:
    """Return the loss of each element. 0 where the target is `ignore_index`, NaN where it is outside [0, 1].

    `weight` and `pos_weight` broadcast against the logits; nothing of weight 0 is infinite.
    """
    known, positive, negative, z = _parts(logits, target, objective, pos_weight)
    if objective.focal_gamma:
        surprise = np.where(positive > 0, softplus(-z), softplus(z))
        loss = _times(positive + negative, focal_loss(surprise, objective.focal_gamma, np))
    else:
        loss = _times(positive, softplus(-z)) + _times(negative, softplus(z))
    return np.where(known, _times(np.broadcast_to(weight, loss.shape), loss), 0.0)


def binary_cross_entropy_gradient(
    logits: Float64, target: Float64, objective: Objective, weight: Float64 | float, pos_weight: Float64 | float
) -> Float64:
    """Return the gradient of the loss of each element with respect to its logit."""
    known, positive, negative, z = _parts(logits, target, objective, pos_weight)
    slope = negative * sigmoid(z) - positive * sigmoid(-z)
    if objective.focal_gamma:
        surprise = np.where(positive > 0, softplus(-z), softplus(z))
        slope = slope * focal_slope(surprise, objective.focal_gamma, np)
    gradient = weight * slope * _derivative(np.where(known, logits, 0.0), objective)
    return np.where(known, gradient, 0.0)


def softplus(z: Float64) -> Float64:
    """Return log(1 + exp(z)), to its own last digits also where exp(z) is small."""
    return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))


def sigmoid(z: Float64) -> Float64:
    """Return 1 / (1 + exp(-z)), to its own last digits also where it is small."""
    e = np.exp(-np.abs(z))
    return np.where(z < 0, e, np.where(np.isnan(z), z, 1.0)) / (1.0 + e)


def ignored_targets(target: NDArray[np.generic], objective: Objective) -> NDArray[np.bool_]:
    """Return which elements are ignored: those whose target is `ignore_index`."""
    return np.asarray(target == objective.ignore_index)


def _parts(
    logits: Float64, target: Float64, objective: Objective, pos_weight: Float64 | float
) -> tuple[NDArray[np.bool_], Float64, Float64, Float64]:
    """Return which elements count, the weights of both outcomes, and z; 0 for ignored elements."""
    known = ~ignored_targets(target, objective)
    inside = (target >= 0) & (target <= 1)
    if objective.focal_gamma:
        inside = (target == 0) | (target == 1)
    y = np.where(inside, target, np.where(known, np.nan, 0.0))
    y = (1.0 - objective.label_smoothing) * y + objective.label_smoothing / 2
    return known, pos_weight * y, 1.0 - y, _softcapped(np.where(known, logits, 0.0), objective)


def _softcapped(x: Float64, objective: Objective) -> Float64:
    if objective.softcap is None:
        return objective.logit_scale * x
    z = objective.softcap * np.tanh(objective.logit_scale * x / objective.softcap)
    return np.where(np.isinf(x), x, z)


def _derivative(x: Float64, objective: Objective) -> Float64 | float:
    """dz/dx, with 1 - tanh(u)**2 = 1 / cosh(u)**2, which does not cancel for large u; 0 at both infinities."""
    if objective.softcap is None:
        return objective.logit_scale
    with np.errstate(over="ignore"):
        return objective.logit_scale / np.cosh(objective.logit_scale * x / objective.softcap) ** 2


def _times(share: Float64, loss: Float64) -> Float64:
    """Return share * loss, where 0 times infinity is 0."""
    return share * np.where((share == 0) & np.isinf(loss), 0.0, loss)
