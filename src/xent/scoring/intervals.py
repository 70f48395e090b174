"""Amounts of information, and means with the intervals that independent rows or independent clusters give them.

mean        sum(w * x) / sum(w)
error       sqrt(n / (n - 1) * sum over units of (sum(w * (x - mean)))**2) / sum(w); a unit is a row, or a cluster,
            whose rows may depend on each other (CR1: Cameron and Miller 2015, without covariates)
interval    mean +- t * error, with the 97.5% quantile t of Student's distribution with n - 1 degrees of freedom
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from xent.scoring.sums import Array


@dataclass(frozen=True)
class Information:
    """An amount of information."""

    nats: float

    @property
    def bits(self) -> float:
        """The same amount in bits."""
        return self.nats / math.log(2)


@dataclass(frozen=True)
class Estimate(Information):
    """A mean per row with its standard error and 95% interval, in nats."""

    standard_error: float
    low: float
    high: float

    @classmethod
    def of(cls, mean: float, error: float = math.nan, units: int = 0) -> Estimate:
        """Return a mean with Student's interval from its standard error; units are independent rows or clusters."""
        if units < 2 or not math.isfinite(mean):
            return cls(mean, math.nan, math.nan, math.nan)
        half_width = float(special.stdtrit(units - 1, 0.975)) * error
        return cls(mean, error, mean - half_width, mean + half_width)


def mean_and_interval(values: Array, weight: Array, groups: Array | None = None) -> tuple[Estimate, float]:
    """Return the weighted mean with its interval, and the p-value of a mean of 0; with groups, from their sums."""
    total = weight.sum()
    if not total or not np.isfinite(values).all():
        return Estimate.of(weighted_mean(values, weight)), math.nan
    mean = float(values @ weight / total)
    residual = weight * (values - mean)
    if groups is not None:
        residual = np.asarray(np.bincount(groups.astype(np.int64), weights=residual), np.float64)
    units = len(residual)
    if units < 2:
        return Estimate.of(mean), math.nan
    error = math.sqrt(float(residual @ residual) * units / (units - 1)) / float(total)
    if error:
        p_value = float(2 * special.stdtr(units - 1, -abs(mean) / error))
    else:
        p_value = 1.0 if mean == 0 else 0.0
    return Estimate.of(mean, error, units), p_value


def numbered(groups: Array | None) -> Array | None:
    """Return the groups of rows, numbered from 0 without gaps; None without any."""
    return None if groups is None else np.asarray(np.unique(groups, return_inverse=True)[1])


def weighted_mean(values: Array | None, weight: Array) -> float:
    """Return the weighted mean; NaN without values or weight."""
    if values is None or not weight.any():
        return math.nan
    return weighted_sum(values, weight) / float(weight.sum())


def weighted_sum(values: Array, weight: Array) -> float:
    """Return the sum; NaN if infinities of both signs are in it."""
    with np.errstate(invalid="ignore"):
        return float((values * weight).sum())
