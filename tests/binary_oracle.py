"""The binary cross-entropy with 60 digits, what an ordinary computation may be off by, and the grid of cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mpmath
import numpy as np
from comparison import assert_within, eps

LOGITS = [-1000.0, -95.0, -30.0, -5.0, -0.3125, 0.0, 2.0**-27, 0.3125, 1.75, 5.0, 30.0, 95.0, 1000.0, -np.inf, np.inf]
HARD, SOFT = [0.0, 1.0], [0.0, 2.0**-12, 0.25, 0.5, 1 - 2.0**-12, 1.0]


@dataclass(frozen=True)
class Grid:
    """Each of LOGITS with each target: rows of targets, columns of logits, and weights that broadcast."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    targets: tuple[float, ...] = tuple(SOFT)
    weight: float = 1.0
    pos_weight: float = 1.0

    def __repr__(self) -> str:
        return self.name

    def arrays(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Logits and targets."""
        shape = (len(self.targets), len(LOGITS))
        logits = np.broadcast_to(np.array(LOGITS, dtype), shape)
        return np.array(logits), np.array(np.broadcast_to(np.array(self.targets, dtype)[:, None], shape))

    def arguments(self) -> dict[str, Any]:
        """Options and weights."""
        weights = {"weight": np.array([self.weight]), "pos_weight": np.array(self.pos_weight)}
        return {**self.options, **(weights if (self.weight, self.pos_weight) != (1.0, 1.0) else {})}


GRIDS = [
    Grid("plain"),
    Grid("weights", weight=2.5, pos_weight=0.75),
    Grid("nothing-positive", pos_weight=0.0),
    Grid("nothing", weight=0.0),
    Grid("smoothed", {"label_smoothing": 0.125}),
    Grid("scaled", {"logit_scale": 0.75}, weight=0.5),
    Grid("everything", {"label_smoothing": 0.25, "softcap": 4.0, "logit_scale": 0.5}, pos_weight=3.0),
    Grid("focal", {"focal_gamma": 2.0}, tuple(HARD)),
    Grid("focal-everything", {"focal_gamma": 0.5, "softcap": 8.0}, tuple(HARD), weight=2.0, pos_weight=3.0),
]


@dataclass(frozen=True)
class Exact:
    """Losses and gradients, and the terms of both, whose roundings an ordinary computation has."""

    loss: np.ndarray
    gradient: np.ndarray
    loss_bound: np.ndarray
    gradient_bound: np.ndarray


def exact(grid: Grid, dtype: str, ulps: float) -> Exact:
    """Of all elements, for float32 or float64; bounds are so many roundings of that dtype."""
    logits, targets = grid.arrays(dtype)
    found = [
        _element(float(x), float(y), grid, dtype == "float64")
        for x, y in zip(logits.ravel(), targets.ravel(), strict=True)
    ]
    loss, gradient, loss_terms, gradient_terms = np.array(found).T.reshape(4, *logits.shape)
    tiny = float(np.finfo(dtype).tiny) * 4 * (grid.weight * max(grid.pos_weight, 1.0))
    unit = ulps * eps(dtype)
    return Exact(loss, gradient, unit * loss_terms + tiny, unit * gradient_terms + tiny)


def _element(x: float, y: float, grid: Grid, is_double: bool) -> tuple[float, float, float, float]:
    """Loss and gradient, and the terms of both. A focal factor is made in float64, whose exponent is rounded."""
    with mpmath.workdps(60):
        scale, cap = mpmath.mpf(grid.options.get("logit_scale", 1.0)), grid.options.get("softcap")
        z, derivative, bent = scale * mpmath.mpf(x), scale, mpmath.mpf(0)
        if cap is not None and not np.isinf(x):
            u = z / cap
            z, derivative = cap * mpmath.tanh(u), scale / mpmath.cosh(u) ** 2
            bent = abs(z) + 2 * abs(u)  # the rounding of z, and that of u in the derivative
        elif cap is not None:
            derivative = mpmath.mpf(0)
        elif scale != 1:
            bent = abs(z)
        e = mpmath.mpf(grid.options.get("label_smoothing", 0.0))
        smoothed = (1 - e) * mpmath.mpf(y) + e / 2
        up, down = smoothed * grid.pos_weight * grid.weight, (1 - smoothed) * grid.weight
        bent = bent if mpmath.isfinite(bent) else mpmath.mpf(0)
        gamma = mpmath.mpf(grid.options.get("focal_gamma", 0.0))
        exponent = gamma * mpmath.log1p(mpmath.exp(z if y == 1 else -z)) / 4 if is_double and gamma else mpmath.mpf(0)
        exponent = exponent if mpmath.isfinite(exponent) else mpmath.mpf(0)
        loss, slope, terms = _of_logit(z, up, down, gamma)
        size = (loss if loss < mpmath.inf else 0) * (1 + exponent) + terms * bent
        pull = terms * derivative * (1 + bent + exponent)
        return float(loss), float(slope * derivative), float(size), float(pull)


def _of_logit(z: Any, up: Any, down: Any, gamma: Any) -> tuple[Any, Any, Any]:
    """The loss, its derivative by z, and the size of the derivative's terms."""
    if mpmath.isinf(z):
        wrong = down if z > 0 else up
        return (mpmath.inf if wrong else mpmath.mpf(0)), (wrong if z > 0 else -wrong), wrong
    p, other = 1 / (1 + mpmath.exp(-z)), 1 / (1 + mpmath.exp(z))
    one, zero = mpmath.log1p(mpmath.exp(-z)), mpmath.log1p(mpmath.exp(z))
    if not gamma:
        return up * one + down * zero, down * p - up * other, down * p + up * other
    slope_one = -(other**gamma) * (gamma * p * one + other)
    slope_zero = p**gamma * (gamma * other * zero + p)
    terms = up * abs(slope_one) + down * slope_zero
    return up * other**gamma * one + down * p**gamma * zero, up * slope_one + down * slope_zero, terms * (1 + gamma)


def check(call: Any, grid: Grid, dtype: str, ulps: float) -> None:
    """Losses and gradients of `call(logits, target, reduction="none", ...)`; none of the losses is negative."""
    wanted = exact(grid, dtype, ulps)
    losses, gradient = call(*grid.arrays(dtype), reduction="none", **grid.arguments())
    assert_within(losses, wanted.loss, wanted.loss_bound, f"losses of {grid}")
    assert_within(gradient, wanted.gradient, wanted.gradient_bound, f"gradient of {grid}")
    assert not (np.asarray(losses) < 0).any()
