"""Likelihood of labels under predicted distributions, which minimum cross-entropy maximises.

    likelihood               L      = prod_i q_i[y_i]       underflows: 1797 rows of 0.5 give 10^-541
    log-likelihood           log L  = sum_i log q_i[y_i]    ranks models in the same order, and does not underflow
    negative log-likelihood  -log L = n * mean cross-entropy of the one-hot labels

Arguments are probabilities in arrays of any library (see `xent.information`); rows are independent of each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import array_api_compat

from xent.arrays import Array, as_distributions, as_labels
from xent.errors import ArgumentError, ObjectiveError, ShapeError, message
from xent.terms import cross_terms, full_like

__all__ = ["Likelihood", "likelihood", "log_likelihood", "negative_log_likelihood"]


@dataclass(frozen=True)
class Likelihood:
    """A likelihood outside the range of a float: ``mantissa * 10**exponent``, with its natural logarithm ``log``.

    Examples
    --------
    >>> print(Likelihood.from_log(-5000.0))
    3.370e-2172
    """

    log: float
    mantissa: float
    exponent: int

    @classmethod
    def from_log(cls, log: float) -> Likelihood:
        """Write exp(log) as a base-10 mantissa in [1, 10) and exponent; 0, infinity and NaN have exponent 0."""
        if not isinstance(log, Real):
            problem = f"found {log!r}, expected a number"
            raise ArgumentError(message("Likelihood.from_log", "log", problem, "Pass a natural logarithm"))
        if not math.isfinite(log):
            return cls(log, 0.0 if log == -math.inf else log, 0)
        exponent = math.floor(log / math.log(10))
        mantissa = math.exp(log - exponent * math.log(10))
        # At a power of ten, rounding can make the exponent wrong by one.
        if mantissa >= 10:
            mantissa, exponent = mantissa / 10, exponent + 1
        elif mantissa < 1:
            mantissa, exponent = mantissa * 10, exponent - 1
        return cls(log, mantissa, exponent)

    def __str__(self) -> str:
        if not 0 < self.mantissa < math.inf:
            return str(self.mantissa)
        digits = f"{self.mantissa:.3f}"
        if digits == "10.000":  # 9.9996, rounded
            return f"1.000e{self.exponent + 1:+03d}"
        return f"{digits}e{self.exponent:+03d}"


def likelihood(y_true: Array, y_proba: Array, *, check: bool = True) -> Likelihood:
    """Likelihood of the labels: the joint probability of all of them under the predictions.

    *Definition*: ``L = prod_i y_proba[i, y_true[i]]``.

    Parameters
    ----------
    y_true : integer array (rows,), class indices in [0, classes)
    y_proba : array (rows, classes), a distribution per row
    check : False skips the tests of the values.

    Returns
    -------
    Likelihood
        The natural logarithm, and the number itself as mantissa and base-10 exponent, since a product of many
        probabilities is smaller than the smallest float. The product of no rows is 1.

    Raises
    ------
    LabelError, DistributionError, ShapeError, DTypeError

    Notes
    -----
    *Numerics*: the logarithm is a compensated sum (`math.fsum`); the relative error of the mantissa is about
    ``abs(log) * 2**-53``.

    Examples
    --------
    >>> print(likelihood([0, 1], [[0.5, 0.5], [0.75, 0.25]]))
    1.250e-01
    >>> print(likelihood([0] * 1797, [[0.5, 0.5]] * 1797))
    1.120e-541

    References
    ----------
    Fisher (1922), On the mathematical foundations of theoretical statistics, doi:10.1098/rsta.1922.0009
    """
    surprisals = _surprisals("likelihood", y_true, y_proba, check)
    # Subtracted from 0.0 because a minus sign would make the log-likelihood of certain labels -0.0.
    return Likelihood.from_log(0.0 - math.fsum(float(surprisals[i]) for i in range(surprisals.shape[0])))


def log_likelihood(y_true: Array, y_proba: Array, *, reduction: str = "sum", check: bool = True) -> Array:
    """Log-likelihood of the labels: ``sum_i log y_proba[i, y_true[i]]``, at most 0, in nats.

    The logarithm is monotone, so that the same model is best, and turns the product into a sum, which does not
    underflow. Parameters, errors and reductions are those of `negative_log_likelihood`, of which this is the negative.

    Examples
    --------
    >>> round(float(log_likelihood([0, 1], [[0.5, 0.5], [0.75, 0.25]])), 4)
    -2.0794
    """
    return 0.0 - _reduced("log_likelihood", y_true, y_proba, reduction, check)


def negative_log_likelihood(y_true: Array, y_proba: Array, *, reduction: str = "sum", check: bool = True) -> Array:
    """Negative log-likelihood of the labels: NLL, log loss, and rows times the mean cross-entropy.

    *Definition*: ``NLL = -sum_i log y_proba[i, y_true[i]]``.

    Parameters
    ----------
    y_true : integer array (rows,), class indices in [0, classes)
    y_proba : array (rows, classes), a distribution per row
    reduction : "sum" over the data set, "mean" over its rows (NaN without rows), or "none" for one value per row.
    check : False skips the tests of the values.

    Returns
    -------
    array () or (rows,), in nats; +inf if a label has probability 0.

    Raises
    ------
    LabelError
        A label is outside [0, classes).
    DistributionError
        A row of `y_proba` is not a distribution.
    ShapeError
        The arguments are not (rows,) and (rows, classes).
    ObjectiveError
        An unknown reduction.

    Notes
    -----
    *Numerics*: no term is negative, so the relative error is that of a sum of rounded logarithms.

    Examples
    --------
    >>> round(float(negative_log_likelihood([2], [[0.6, 0.2, 0.2]])), 4)
    1.6094

    References
    ----------
    Good (1952), Rational Decisions
    """
    return _reduced("negative_log_likelihood", y_true, y_proba, reduction, check)


def _reduced(call: str, y_true: Array, y_proba: Array, reduction: str, check: bool) -> Array:
    if reduction not in ("none", "sum", "mean"):
        problem = f"found {reduction!r}, expected 'none', 'sum' or 'mean'"
        raise ObjectiveError(message(call, "reduction", problem, "'sum' is that of the data set, 'mean' that per row"))
    surprisals = _surprisals(call, y_true, y_proba, check)
    if reduction == "none":
        return surprisals
    total = array_api_compat.array_namespace(surprisals).sum(surprisals)
    if reduction == "sum":
        return total
    rows = surprisals.shape[0]
    return total / rows if rows else total + math.nan


def _surprisals(call: str, y_true: Array, y_proba: Array, check: bool) -> Array:
    """Return -log y_proba[i, y_true[i]] of every row."""
    xp, (proba,) = as_distributions(call, -1, check, y_proba=y_proba)
    if proba.ndim != 2:
        problem = f"found shape {tuple(proba.shape)}, expected (rows, classes)"
        remedy = "For binary predictions p, pass the two columns 1 - p and p"
        raise ShapeError(message(call, "y_proba", problem, remedy))
    classes = proba.shape[1]
    labels = _labels_like(call, xp, proba, y_true, classes, check)
    picked: Any = xp.take_along_axis(proba, labels[:, None], axis=1)[:, 0]
    return cross_terms(xp, full_like(xp, proba, 1.0), picked, math.e)


def _labels_like(call: str, xp: Any, proba: Array, y_true: Any, classes: int, check: bool) -> Array:
    """Return y_true as class indices in the array library of proba, one per row."""
    labels_xp, labels = as_labels(call, classes, check, y_true=y_true)
    if tuple(labels.shape) != (proba.shape[0],):
        problem = (
            f"found shape {tuple(labels.shape)}, expected one label for each of the {proba.shape[0]} rows of y_proba"
        )
        raise ShapeError(message(call, "y_true", problem, "Pass class indices, not one-hot rows"))
    if labels_xp is not xp:
        labels = xp.asarray(labels)
    return xp.astype(labels, xp.int64, copy=False)
