"""Pairs of rows for the tests of the divergences, what they are by mpmath, and how far a result may be off."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
from comparison import ULPS, assert_within, eps
from mpmath import mpf
from mpmath_oracle import bent, exactly, numbers, softmax

from xent import reference
from xent.divergence import Divergence

INF = np.inf

KINDS: dict[str, dict[str, Any]] = {
    "forward": {},
    "reverse": {"direction": "reverse"},
    "js": {"beta": 0.5},
    "tenth": {"beta": 0.1},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 2.5, "temperature_squared": True},
    "everything": {"temperature": 2.0, "logit_scale": 0.75, "softcap": 4.0, "z_loss": 0.01},
}


def loss_of(kind: str) -> str:
    """The name of the public call."""
    return "js_divergence" if "beta" in KINDS[kind] else "kl_divergence"


def divergence(kind: str, options: dict[str, Any] | None = None) -> Divergence:
    return Divergence.of_loss("test", loss_of(kind), {**KINDS[kind], **(options or {})})


def pairs(classes: int = 9) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Student and teacher: far apart, near, a hair apart, with an offset, confident, and with masked classes."""
    rng = np.random.default_rng(classes)
    s = 3 * rng.normal(size=(3, classes))
    noise = rng.normal(size=(3, classes))
    masked = s.copy()
    masked[:, 1] = -INF
    sure = s.copy()
    sure[:, 2] += 40.0
    return {
        "far": (s, 4 * noise),
        "near": (s, s + 0.1 * noise),
        "a hair": (s, s + 2.0**-12 * noise),
        "offset": (s, s + 100.0 + 0.5 * noise),
        "sure": (sure, s),
        "masked": (masked, np.where(masked == -INF, -INF, s + noise)),
        "student covers more": (s, np.where(masked == -INF, -INF, s + noise)),
    }


def by_mpmath(s: np.ndarray, t: np.ndarray, options: Divergence) -> tuple[float, np.ndarray]:
    """The textbook's loss of a row and its gradient by s: of logarithms of quotients, without a trick."""
    with exactly(60):
        (z, slope), (y, _) = (bent(numbers(x), options.logit_scale, options.softcap) for x in (s, t))
        (p, lse), (q, _) = softmax(z), softmax(y)
        beta = mpf(options.beta)
        if options.kind == "js":
            m = [beta * b + (1 - beta) * a for a, b in zip(p, q, strict=True)]
            loss = beta * kl(q, m) + (1 - beta) * kl(p, m)
            pulls = [(1 - beta) * (mpmath.log(a / c) if a else mpf(0)) for a, c in zip(p, m, strict=True)]
        elif options.kind == "forward":
            loss = kl(q, p)
            pulls = None
        else:
            loss = kl(p, q)
            pulls = [mpmath.log(a / b) if a and b else mpf(0) for a, b in zip(p, q, strict=True)]
        if pulls is None:
            dz = [a - b for a, b in zip(p, q, strict=True)]
        else:
            mean = mpmath.fsum(a * c for a, c in zip(p, pulls, strict=True))
            dz = [a * (c - mean) for a, c in zip(p, pulls, strict=True)]
        z_loss = mpf(options.z_loss)
        total = mpf(options.factor) * loss + (z_loss * lse**2 if z_loss else 0)
        found = [(mpf(options.factor) * g + 2 * z_loss * lse * a) * h for g, a, h in zip(dz, p, slope, strict=True)]
        return float(total), np.array([float(g) for g in found])


def kl(a: list[mpf], b: list[mpf]) -> mpf:
    if any(x > 0 and y == 0 for x, y in zip(a, b, strict=True)):
        return mpf("inf")
    return mpmath.fsum(x * mpmath.log(x / y) for x, y in zip(a, b, strict=True) if x > 0)


def bounds(s: np.ndarray, t: np.ndarray, options: Divergence, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """How far losses and gradients may be off, for an ordinary computation in the dtype.

    A loss is off by a few of its own roundings, and by those of its softcapped or scaled logits (each of eps * |z|)
    times its gradients by them. A log-sum-exp that is off by eps moves a loss in the second order only, and a
    gradient by eps * p; the exponents of probabilities are rounded too.
    """
    unit = ULPS * eps(dtype)
    s, t = (x.astype(np.float64) for x in (s, t))
    is_bent = options.softcap is not None or options.logit_scale != 1.0
    z = [np.where(np.isfinite(x), reference.softcapped_logits(x, options), 0.0) for x in (s, t)]
    size = np.maximum(*(np.abs(x).max(axis=1) for x in z)) * is_bent
    p, q = (np.exp(-reference.negative_log_softmax(reference.softcapped_logits(x, options))[0]) for x in (s, t))
    one, other = reference.divergence(s, t, None, options), options.of_teacher
    slopes = np.abs(reference.divergence_gradient(s, t, None, options)).sum(axis=1)
    slopes = slopes + np.abs(reference.divergence_gradient(t, s, None, other)).sum(axis=1)
    slopes = slopes / options.logit_scale if options.softcap is None else slopes / options.logit_scale * 2
    finite = np.where(np.isfinite(one), one, 0.0)
    loss = unit * (finite + size * slopes) + unit**2 * options.factor
    with np.errstate(divide="ignore", invalid="ignore"):
        d = np.abs(np.log(p) - np.log(q))
        exponent = np.abs(np.log(np.where(p > 0, p, 1.0)))
    d = np.where(np.isfinite(d), d, 0.0)
    weights = p if options.kind != "forward" else p + q
    rounding = 1 + size[:, None] + exponent + d + (p * d).sum(axis=1, keepdims=True) * (1 + exponent)
    normal = 2 * options.z_loss * np.abs(reference.negative_log_softmax(z[0])[1])[:, None]
    return loss, unit * options.logit_scale * (options.factor + normal) * weights * rounding


def check(
    s: np.ndarray, t: np.ndarray, options: Divergence, losses: Any, gradient: Any, dtype: Any, stored: Any = None
) -> None:
    """Losses and gradients of rows are the reference's; `stored`: torch's finfo of what a gradient is kept in."""
    wide = s.astype(np.float64), t.astype(np.float64)
    wanted, slope = reference.divergence(*wide, None, options), reference.divergence_gradient(*wide, None, options)
    of_loss, of_gradient = bounds(s, t, options, dtype)
    tiny = float(np.finfo(dtype).tiny)
    assert_within(losses, wanted, of_loss + tiny, "loss")
    if stored is not None:
        of_gradient = of_gradient + stored.eps * np.abs(slope) + stored.smallest_normal * stored.eps
    assert_within(gradient, slope, of_gradient + tiny, "gradient")
