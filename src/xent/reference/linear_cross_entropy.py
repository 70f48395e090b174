"""Softmax cross-entropy of a linear layer, and its three gradients, in float64.

    logits       = input @ weight.T + bias
    loss         = cross_entropy(logits, target)
    dinput       = dlogits @ weight
    dweight      = dlogits.T @ input
    dbias        = sum of dlogits over the rows

where dlogits is the gradient of each row times the factor that the reduction gives to the row. The kernels never hold
all logits; this definition does.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from xent.objective import Objective
from xent.reference.cross_entropy import Float64, Target, cross_entropy, cross_entropy_gradient


class Gradients(NamedTuple):
    """Gradients with respect to the arguments of the linear loss; `linear_bias` is None without a bias."""

    input: Float64
    linear_weight: Float64
    linear_bias: Float64 | None


def linear_cross_entropy(
    input: Float64, linear_weight: Float64, linear_bias: Float64 | None, target: Target, objective: Objective
) -> tuple[Float64, Float64]:
    """Return loss and log-sum-exp of each row of `input` (rows, features), with `linear_weight` (classes, features)."""
    return cross_entropy(linear_logits(input, linear_weight, linear_bias), target, objective)


def linear_cross_entropy_gradients(
    input: Float64,
    linear_weight: Float64,
    linear_bias: Float64 | None,
    target: Target,
    row_scale: Float64 | float,
    objective: Objective,
) -> Gradients:
    """Return the gradients of sum(row_scale * loss); `row_scale` is one number or one per row."""
    logits = linear_logits(input, linear_weight, linear_bias)
    dlogits = cross_entropy_gradient(logits, target, objective) * np.reshape(row_scale, (-1, 1))
    dbias = None if linear_bias is None else dlogits.sum(axis=0)
    return Gradients(dlogits @ linear_weight, dlogits.T @ input, dbias)


def linear_logits(input: Float64, linear_weight: Float64, linear_bias: Float64 | None) -> Float64:
    """Return the logits of the linear layer."""
    logits = input @ linear_weight.T
    return logits if linear_bias is None else logits + linear_bias
