"""The functions of one number of the binary cross-entropy: log1p on [0, 1], and what softplus and sigmoid are made of.

With e = exp(-|z|), which is never above 1,

    softplus(|z|) = |z| + log1p(e)     sigmoid(|z|)  = 1 / (1 + e)
    softplus(-|z|) = log1p(e)          sigmoid(-|z|) = e / (1 + e)

so that small probabilities and small losses keep their digits: nothing is subtracted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from xent.backends.cpu.compilation import OPTIONS, device
from xent.backends.cpu.primitives import exp, fused_multiply_add

# log1p(e) = e P(e) in float32, P of degree 10: relative error 7.5e-10. In float64
# log1p(e) = 2 artanh(s) = 2 s Q(s**2) with s = e / (2 + e), at most 1/3, and Q of degree 10: relative error 1.3e-18.
# Minimax coefficients by Remez exchange for the relative error, with 60 digits.
F32_LOG1P = tuple(
    np.float32(c)
    for c in (
        0.99999999926,
        -0.499999814848,
        0.333325608812,
        -0.249872827515,
        0.198908035302,
        -0.161058353005,
        0.124186419009,
        -0.0824432219771,
        0.0414784459164,
        -0.0134072158274,
        0.00203010594455,
    )
)
F64_ARTANH = (
    1.0000000000000000012,
    0.33333333333333067173,
    0.20000000000095149286,
    0.14285714272463818669,
    0.11111112055827905402,
    0.09090869895412950195,
    0.076933177028944715025,
    0.066500514786199714011,
    0.060561233548812824042,
    0.041578447873287112605,
    0.085300300084251676671,
)


def log1p_of_share(e: Any) -> Any:
    """log(1 + e) of a number in [0, 1], as accurate as e; NaN for NaN."""
    raise NotImplementedError("for compiled code")


@overload(log1p_of_share, jit_options=OPTIONS, strict=False)
def _(e: Any) -> Any:
    if e == types.float32:

        def log1p(e: Any) -> Any:
            p = fused_multiply_add(F32_LOG1P[10], e, F32_LOG1P[9])
            p = fused_multiply_add(p, e, F32_LOG1P[8])
            p = fused_multiply_add(p, e, F32_LOG1P[7])
            p = fused_multiply_add(p, e, F32_LOG1P[6])
            p = fused_multiply_add(p, e, F32_LOG1P[5])
            p = fused_multiply_add(p, e, F32_LOG1P[4])
            p = fused_multiply_add(p, e, F32_LOG1P[3])
            p = fused_multiply_add(p, e, F32_LOG1P[2])
            p = fused_multiply_add(p, e, F32_LOG1P[1])
            p = fused_multiply_add(p, e, F32_LOG1P[0])
            return p * e

        return log1p

    def log1p(e: Any) -> Any:
        s = e / (2.0 + e)
        t = s * s
        p = fused_multiply_add(F64_ARTANH[10], t, F64_ARTANH[9])
        p = fused_multiply_add(p, t, F64_ARTANH[8])
        p = fused_multiply_add(p, t, F64_ARTANH[7])
        p = fused_multiply_add(p, t, F64_ARTANH[6])
        p = fused_multiply_add(p, t, F64_ARTANH[5])
        p = fused_multiply_add(p, t, F64_ARTANH[4])
        p = fused_multiply_add(p, t, F64_ARTANH[3])
        p = fused_multiply_add(p, t, F64_ARTANH[2])
        p = fused_multiply_add(p, t, F64_ARTANH[1])
        p = fused_multiply_add(p, t, F64_ARTANH[0])
        return (s + s) * p

    return log1p


@device
def binary_loss_and_slope(z: Any, positive: Any, negative: Any) -> Any:
    """Return positive * softplus(-z) + negative * softplus(z), where 0 * inf is 0, and its derivative by z.

    NaN if any argument is; at both infinities the loss may be infinite, and the derivative is finite.
    """
    zero, one = type(z)(0), type(z)(1)
    distance = abs(z)
    e = exp(-distance)
    is_positive = z > 0
    near = positive if is_positive else negative  # of the outcome that z is for
    far = negative if is_positive else positive
    beyond = far * distance
    loss = (near + far) * log1p_of_share(e) + (beyond if far != zero else zero)
    slope = (far - near * e) / (one + e)
    return loss, (slope if is_positive else -slope)


@device
def focal_loss_and_slope(z: float, gamma: float) -> Any:
    """Return (1 - p)**gamma * -log(p), of the probability p = sigmoid(z), and its derivative by z; in float64.

    With f = (1 - p)**gamma = exp(-gamma * softplus(z)) and s = softplus(-z) the derivative is
    -f * (gamma * p * s + 1 - p): as in the loss, nothing is subtracted. (xent/focal.py has the equation.)
    """
    distance = abs(z)
    e = exp(-distance)
    log1p, inverse = log1p_of_share(e), 1.0 / (1.0 + e)
    is_positive = z > 0
    surprise = log1p if is_positive else distance + log1p
    p = inverse if is_positive else e * inverse
    other = e * inverse if is_positive else inverse
    share = 0.0 if surprise == np.inf else p * surprise
    factor = exp(-gamma * (distance + log1p if is_positive else log1p))
    return factor * surprise, -factor * (gamma * share + other)
