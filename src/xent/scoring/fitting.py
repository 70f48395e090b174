"""What a `Calibrator` learns: the parameters of each kind, how they are fitted, and how much they gain on other rows.

    temperature   softmax(z / T), with z = log q                                (Guo, Pleiss, Sun and Weinberger 2017)
    vector        softmax(a * z + b), a scale and a bias for each class         (the same)
    isotonic      f_c(q_c), renormalised, with a non-decreasing f_c for each class against the rest
                                                                                (Zadrozny and Elkan 2002)

The first two minimise the cross-entropy (SciPy: Brent's method, L-BFGS-B), the last one the squared error of each class
(scikit-learn's IsotonicRegression). An isotonic fit is 0 below the first label of a class and 1 above the last other
one, which would call events impossible that have merely not happened yet; so two rows of average weight are added to
each fit, a label at probability 0 and another class at probability 1, as in Laplace's rule of succession.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
import numpy as np
from scipy import optimize, special

from xent.errors import DataError, message
from xent.scoring.calibration import FEWEST_ROWS, HIGHEST_TEMPERATURE, LogRows, cross_fitted_gains, fold_of
from xent.scoring.intervals import Estimate, mean_and_interval
from xent.scoring.selection import smallest_keys
from xent.scoring.sums import Array

LARGEST_BIAS = 50.0
MOST_JUDGED = 20_000
"""Rows on which a gain is cross-fitted, which takes five further fits."""

Number = Annotated[float, msgspec.Meta(ge=-1e6, le=1e6)]


@dataclass(frozen=True)
class Steps:
    """A non-decreasing function: linear between points, constant outside of them."""

    x: list[Number]
    y: list[Number]


@dataclass(frozen=True)
class Parameters:
    """For "temperature" one scale, 1/T; for "vector" a scale and a bias for each class; for "isotonic" steps."""

    scale: list[Number] = field(default_factory=list)
    bias: list[Number] = field(default_factory=list)
    steps: list[Steps] = field(default_factory=list)

    def calibrated(self, log_p: Array) -> Array:
        """Return the calibrated probabilities of rows of log-probabilities."""
        if self.steps:
            columns = [np.interp(np.exp(log_p[:, c]), step.x, step.y) for c, step in enumerate(self.steps)]
            p = np.stack(columns, axis=1)
            return np.asarray(p / p.sum(axis=1, keepdims=True))
        possible = log_p > -math.inf
        z = np.array(self.scale) * np.where(possible, log_p, 0.0) + np.array(self.bias or [0.0])
        return np.asarray(special.softmax(np.where(possible, z, -math.inf), axis=1))

    def check(self, kind: str, classes: int) -> None:
        """ValueError unless these are the parameters of a kind and of so many classes."""
        lengths = {"temperature": (1, 0, 0), "vector": (classes, classes, 0), "isotonic": (0, 0, classes)}[kind]
        if (len(self.scale), len(self.bias), len(self.steps)) != lengths:
            raise ValueError("parameters of another number of classes")
        if min(self.scale, default=1.0) < 0 or (kind == "temperature" and not self.scale[0] > 0):
            raise ValueError("a scale below 0, or a temperature that is not above 0")
        for step in self.steps:
            ordered = all(np.diff(part).min(initial=0.0) >= 0 for part in (step.x, step.y))
            if not step.x or len(step.x) != len(step.y) or not ordered or not 0 < step.y[0] <= step.y[-1] <= 1:
                raise ValueError("steps that are no non-decreasing function to probabilities above 0")


def fit(
    call: str, kind: str, log_p: Array, target: Array, weight: Array, keys: Array
) -> tuple[Parameters, int, Estimate | None]:
    """Return the parameters for some rows, how many of the rows were used, and the cross-fitted gain.

    Rows whose label is impossible have no part in scales and biases, which keep it impossible. There is no gain with
    too few rows, or if the loss was infinite before.
    """
    possible = _possible_labels(log_p, target)
    if kind != "isotonic":
        log_p, target, weight, keys = (part[possible] for part in (log_p, target, weight, keys))
    if not len(log_p):
        problem = "there is no row whose label is possible"
        raise DataError(message(call, "data", problem, "Pass more rows, or kind='isotonic'"))
    parameters = FITS[kind](LogRows.of(log_p, target, weight))
    if kind == "isotonic" and not possible.all():
        return parameters, len(log_p), None
    return parameters, len(log_p), _gain(kind, log_p, target, weight, keys)


def _possible_labels(log_p: Array, target: Array) -> Array:
    """Return which rows give every class of their label a probability above 0."""
    if target.ndim == 2:
        return np.asarray(np.where(target > 0, log_p, 0.0).min(axis=1) > -math.inf)
    return np.asarray(log_p[np.arange(len(log_p)), target] > -math.inf)


def _gain(kind: str, log_p: Array, target: Array, weight: Array, keys: Array) -> Estimate | None:
    judged = smallest_keys(keys, MOST_JUDGED)
    fold = fold_of(keys[judged])
    if len(judged) < FEWEST_ROWS or len(np.unique(fold)) < 2:
        return None

    def fitted_losses(rest: LogRows, held_out: LogRows) -> Array:
        with np.errstate(divide="ignore"):
            log_q = np.log(FITS[kind](rest).calibrated(np.where(held_out.possible, held_out.z, -math.inf)))
        return LogRows.of(log_q, held_out.target, held_out.weight).losses(1.0)

    rows = LogRows.of(log_p[judged], target[judged], weight[judged])
    return mean_and_interval(cross_fitted_gains(rows, fold, fitted_losses), rows.weight)[0]


def _temperature(rows: LogRows) -> Parameters:
    return Parameters(scale=[rows.best(1.0)])


def _vector(rows: LogRows) -> Parameters:
    """Minimise the mean cross-entropy over the scales and biases, in which it is convex."""
    classes = rows.z.shape[1]
    share = rows.weight / rows.weight.sum()
    each = np.arange(len(rows.z))

    def loss_and_gradient(parameters: Array) -> tuple[float, Array]:
        z = np.where(rows.possible, parameters[:classes] * rows.z + parameters[classes:], -math.inf)
        log_q = special.log_softmax(z, axis=1)
        d = np.exp(log_q)
        if rows.target.ndim == 2:
            loss = 0.0 - np.where(rows.target > 0, rows.target * log_q, 0.0).sum(axis=1)
            d -= rows.target
        else:
            loss = 0.0 - log_q[each, rows.target]
            d[each, rows.target] -= 1.0
        d *= share[:, np.newaxis]
        return float(share @ loss), np.concatenate([(d * rows.z).sum(axis=0), d.sum(axis=0)])

    start = np.concatenate([np.full(classes, rows.best(1.0)), np.zeros(classes)])
    bounds = [(0.0, HIGHEST_TEMPERATURE)] * classes + [(-LARGEST_BIAS, LARGEST_BIAS)] * classes
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-14, "gtol": 1e-9}
    found = optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    bias = found[classes:] - found[classes:].mean()  # a constant in all biases changes nothing
    return Parameters(scale=found[:classes].tolist(), bias=bias.tolist())


def _isotonic(rows: LogRows) -> Parameters:
    from sklearn.isotonic import IsotonicRegression

    p = np.where(rows.possible, np.exp(rows.z), 0.0)
    weight = np.concatenate([rows.weight, np.full(2, rows.weight.mean())])
    steps = []
    for c in range(p.shape[1]):
        label = rows.target[:, c] if rows.target.ndim == 2 else (rows.target == c).astype(np.float64)
        x, y = np.concatenate([p[:, c], [0.0, 1.0]]), np.concatenate([label, [1.0, 0.0]])
        found = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(x, y, weight)
        steps.append(Steps(found.X_thresholds_.tolist(), found.y_thresholds_.tolist()))
    return Parameters(steps=steps)


FITS: dict[str, Callable[[LogRows], Parameters]] = {
    "temperature": _temperature,
    "vector": _vector,
    "isotonic": _isotonic,
}
