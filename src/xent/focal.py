"""The focal loss (Lin et al., 2017): a function of the loss that a row has without it.

With the probability p of the label and s = -log(p), which is the plain loss of the row,

    focal  = (1 - p)**gamma * s
    d/ds   = (1 - p)**gamma + gamma * (1 - p)**(gamma - 1) * p * s

so that it needs no kernels of its own: whatever computes s, and its gradients, computes these.
"""

from __future__ import annotations

from typing import Any

CERTAIN = 64.0
"""From here on p is below 2e-28, and the factor 1 in any dtype."""


def focal_loss(surprise: Any, gamma: float, xp: Any) -> Any:
    """The focal losses of rows, from their plain losses; `xp` is numpy or torch."""
    s, usual = _usual(surprise, xp)
    return xp.where(usual, (-xp.expm1(-s)) ** gamma * s, surprise)


def focal_slope(surprise: Any, gamma: float, xp: Any) -> Any:
    """The derivative of the focal loss by the plain loss: 0 at 0, and 1 at infinity."""
    s, usual = _usual(surprise, xp)
    rest = -xp.expm1(-s)
    slope = rest**gamma + gamma * rest ** (gamma - 1) * xp.exp(-s) * s
    certain = xp.where(surprise == 0, 0.0, xp.where(surprise > 0, 1.0, surprise))  # the last is NaN
    return xp.where(usual, slope, certain)


def _usual(surprise: Any, xp: Any) -> tuple[Any, Any]:
    """The losses with 1 in place of those whose formula has 0 times infinity, and which are not among these."""
    usual = (surprise > 0) & (surprise < CERTAIN)
    return xp.where(usual, surprise, 1.0), usual
