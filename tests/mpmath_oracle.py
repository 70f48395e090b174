"""The equations of docs/definitions.md in mpmath, as a textbook writes them: no trick that the code under test uses.

What is subtracted here can cancel down to the smallest float64, 10^-324, so 400 digits leave more than 50 correct ones.
Arguments are floats, taken exactly; results are float64 arrays, rounded once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
from mpmath import mpf

DIGITS = 400
MASKED = mpf("-inf")


@dataclass(frozen=True)
class Row:
    """A row's loss, log-sum-exp and gradient.

    `pull` and `push` are the sizes of the gradient's two terms, whose difference may cancel; `loss_size` is that of the
    loss's terms, and `total` is the sum of the target's weights.
    """

    loss: mpf
    lse: mpf
    gradient: list[mpf]
    pull: list[mpf]
    push: list[mpf]
    loss_size: mpf
    total: mpf


def exactly(digits: int = DIGITS):
    return mpmath.workdps(digits)


def numbers(values: Any) -> list[mpf]:
    return [mpf(float(value)) for value in values]


def bent(x: list[mpf], logit_scale: float, softcap: float | None) -> tuple[list[mpf], list[mpf]]:
    """z and dz/dx. A masked class stays masked; tanh is flat there, so that under a softcap dz/dx is 0."""
    scale = mpf(logit_scale)
    if softcap is None:
        return [scale * v for v in x], [scale] * len(x)
    cap = mpf(softcap)
    z = [v if v == MASKED else cap * mpmath.tanh(scale * v / cap) for v in x]
    return z, [mpf(0) if v == MASKED else scale * (1 - mpmath.tanh(scale * v / cap) ** 2) for v in x]


def softmax(z: list[mpf]) -> tuple[list[mpf], mpf]:
    """q and the log-sum-exp."""
    top = max(z)
    exponentials = [mpf(0) if v == MASKED else mpmath.exp(v - top) for v in z]
    total = mpmath.fsum(exponentials)
    return [e / total for e in exponentials], top + mpmath.log(total)


def smoothed(target: Any, classes: int, label_smoothing: float) -> list[mpf]:
    p = numbers(target) if np.ndim(target) else [mpf(int(j == target)) for j in range(classes)]
    return [(1 - mpf(label_smoothing)) * v + mpf(label_smoothing) / classes for v in p]


def is_ignored(target: Any, ignore_index: int) -> bool:
    return not np.ndim(target) and int(target) == ignore_index


def nothing(classes: int) -> Row:
    zeros = [mpf(0)] * classes
    return Row(mpf(0), mpf(0), zeros, zeros, zeros, mpf(0), mpf(0))


def cross_entropy_row(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Row:
    """The equations of objective.py."""
    classes = len(logits)
    if is_ignored(target, ignore_index):
        return nothing(classes)
    z, dz = bent(numbers(logits), logit_scale, softcap)
    q, lse = softmax(z)
    w = [mpf(1)] * classes if weight is None else numbers(weight)
    t = [a * b for a, b in zip(w, smoothed(target, classes, label_smoothing), strict=True)]
    a, total = mpf(z_loss), mpmath.fsum(t)
    terms = [mpf(0) if t[j] == 0 else t[j] * (lse - z[j]) for j in range(classes)]
    gradient = [((total + 2 * a * lse) * q[j] - t[j]) * dz[j] for j in range(classes)]
    pull = [(total + 2 * a * abs(lse)) * q[j] * dz[j] for j in range(classes)]
    push = [t[j] * dz[j] for j in range(classes)]
    loss = mpmath.fsum(terms) + a * lse**2
    return Row(loss, lse, gradient, pull, push, loss, total)


def squared_error_row(
    logits: Any,
    target: Any,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
) -> Row:
    """sum (q - p)^2 and 2 q ((q - p) - sum q (q - p)); the sizes add up q and p where the value subtracts."""
    classes = len(logits)
    if is_ignored(target, ignore_index):
        return nothing(classes)
    z, dz = bent(numbers(logits), logit_scale, softcap)
    q, lse = softmax(z)
    p = smoothed(target, classes, label_smoothing)
    d, size = [a - b for a, b in zip(q, p, strict=True)], [a + b for a, b in zip(q, p, strict=True)]
    mean, mean_size = mpmath.fdot(q, d), mpmath.fdot(q, size)
    gradient = [2 * q[j] * (d[j] - mean) * dz[j] for j in range(classes)]
    pull = [2 * q[j] * size[j] * dz[j] for j in range(classes)]
    push = [2 * q[j] * mean_size * dz[j] for j in range(classes)]
    return Row(mpmath.fdot(d, d), lse, gradient, pull, push, mpmath.fdot([abs(v) for v in d], size), mpf(1))


def matrix(rows: Any) -> list[list[mpf]]:
    return [numbers(row) for row in rows]


def linear_cross_entropy(input: Any, weight: Any, bias: Any, target: Any, row_scale: Any, options: dict[str, Any]):
    """Losses, the three gradients of sum(row_scale * loss), and the sizes of the gradients' terms; all float64."""
    with exactly(60):  # moderate logits only
        h, w, b = matrix(input), matrix(weight), numbers(bias)
        logits = [[mpmath.fdot(row, column) + b[j] for j, column in enumerate(w)] for row in h]
        rows = [cross_entropy_row_of(logits[i], target[i], options) for i in range(len(h))]
        d = [[mpf(float(row_scale[i])) * v for v in row.gradient] for i, row in enumerate(rows)]
        losses = [row.loss for row in rows]
        values = _linear_products(d, h, w)
        positive = [[[abs(v) for v in row] for row in m] for m in (d, h, w)]
        return floats(losses), *[np.array(floats_2d(m)) for m in (*values, *_linear_products(*positive))]


def cross_entropy_row_of(logits: list[mpf], target: Any, options: dict[str, Any]) -> Row:
    """cross_entropy_row for logits that are no floats; without softcap and scale, which no linear case here uses."""
    assert not {"softcap", "logit_scale"} & set(options)
    classes = len(logits)
    if is_ignored(target, options.get("ignore_index", -100)):
        return nothing(classes)
    q, lse = softmax(logits)
    w = numbers(options.get("weight", [1.0] * classes))
    t = [a * b for a, b in zip(w, smoothed(target, classes, options.get("label_smoothing", 0.0)), strict=True)]
    a, total = mpf(options.get("z_loss", 0.0)), mpmath.fsum(t)
    loss = mpmath.fsum(t[j] * (lse - logits[j]) for j in range(classes)) + a * lse**2
    gradient = [(total + 2 * a * lse) * q[j] - t[j] for j in range(classes)]
    return Row(loss, lse, gradient, [total * v for v in q], t, loss, total)


def _linear_products(d: list[list[mpf]], h: list[list[mpf]], w: list[list[mpf]]):
    columns = [list(column) for column in zip(*d, strict=True)]
    d_input = [[mpmath.fdot(row, f) for f in zip(*w, strict=True)] for row in d]
    d_weight = [[mpmath.fdot(column, f) for f in zip(*h, strict=True)] for column in columns]
    return d_input, d_weight, [[mpmath.fsum(column)] for column in columns]


def floats(values: Any) -> np.ndarray:
    return np.array([float(v) for v in values])


def floats_2d(rows: Any) -> list[list[float]]:
    return [[float(v) for v in row] for row in rows]


# Information: p and q are sequences of floats.


def entropy(p: Any) -> mpf:
    return -mpmath.fsum(v * mpmath.log(v) for v in numbers(p) if v > 0)


def cross_entropy(p: Any, q: Any) -> mpf:
    pairs = [(a, b) for a, b in zip(numbers(p), numbers(q), strict=True) if a > 0]
    return mpf("inf") if any(b == 0 for _, b in pairs) else -mpmath.fsum(a * mpmath.log(b) for a, b in pairs)


def kl_divergence(p: Any, q: Any) -> mpf:
    """sum(p log(p / q) - p + q): of the same floats, whose sums are not exactly 1."""
    pairs = list(zip(numbers(p), numbers(q), strict=True))
    if any(a > 0 and b == 0 for a, b in pairs):
        return mpf("inf")
    return mpmath.fsum((a * mpmath.log(a / b) if a > 0 else 0) - a + b for a, b in pairs)


def js_divergence(p: Any, q: Any) -> mpf:
    p, q = numbers(p), numbers(q)
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]

    def to_mixture(x: list[mpf]) -> mpf:
        return mpmath.fsum((a * mpmath.log(a / b) if a > 0 else 0) - a + b for a, b in zip(x, m, strict=True))

    return (to_mixture(p) + to_mixture(q)) / 2


def log_softmax(x: Any) -> list[mpf]:
    z = numbers(x)
    _, lse = softmax(z)
    return [v - lse for v in z]


def likelihood(labels: Any, proba: Any) -> tuple[mpf, mpf, int]:
    """The logarithm, and the product as base-10 mantissa and exponent."""
    factors = [mpf(float(row[y])) for y, row in zip(labels, proba, strict=True)]
    product = mpmath.fprod(factors)
    exponent = math.floor(float(mpmath.log10(product)))
    return mpmath.log(product), product / mpf(10) ** exponent, exponent
