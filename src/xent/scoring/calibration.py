"""How well probabilities are calibrated, and what recalibrating them would gain.

    reliability         the share of correct rows against the predicted probability, in bins
    ECE                 sum over bins of share of rows * |predicted probability - share correct|
    classwise           the same of each class against the rest in 16 bins of equal width, mean over the classes
    adaptive            the same in 16 bins of, as nearly as the histogram allows, equal weight
    temperature         q**(1/T), renormalised, with the T of the smallest loss; its gain is cross-fitted

The decomposition is in decomposition.py. Histograms have four bins per octave of the probability, whose edges those of
16 equal bins are among.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from xent.scoring import loops
from xent.scoring.intervals import mean_and_interval, numbered
from xent.scoring.selection import SelectedRows
from xent.scoring.sums import Array, values

FOLDS = 5
BINS = 16
_LOWER_HALF = np.ldexp(1 + np.arange(loops.STEPS) / loops.STEPS, np.arange(-loops.OCTAVES - 1, -1)[:, np.newaxis])
_EQUAL_WIDTH = np.floor(BINS * _LOWER_HALF.reshape(-1)).astype(np.int64)
_EQUAL_WIDTH = np.concatenate([_EQUAL_WIDTH, BINS - 1 - _EQUAL_WIDTH[::-1]])
"""The bin of equal width that each bin of a histogram is in."""
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 1 / 50, 50.0
FEWEST_ROWS = 20
"""A temperature is not estimated from fewer rows."""


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose predicted class had a probability in [low, high): mean probability, share correct, 95% interval."""

    low: float
    high: float
    weight: float
    claimed: float
    correct: float
    correct_low: float
    correct_high: float


@dataclass(frozen=True)
class Temperature:
    """Gain of dividing logits by a temperature, in nats per row; above 1 the predictions were too confident."""

    temperature: float
    gain: float
    gain_low: float
    gain_high: float
    rows: int
    """Number of sampled rows used, without impossible ones, which no temperature improves."""


def reliability(histogram: Array) -> tuple[ReliabilityBin, ...]:
    """Return the bins that have rows, with Wilson's interval for the share of correct rows.

    Its number of rows is that of equally weighted ones that know as much, ``sum(weight)**2 / sum(weight**2)`` (Kish
    1965), which does not depend on the scale of the weights.
    """
    bins = []
    for k, (weight, probability, correct, squared) in enumerate(values(histogram)):
        if weight > 0:
            low, high = _wilson(correct / weight, weight * (weight / squared) if squared > 0 else math.nan)
            edges = k / len(histogram), (k + 1) / len(histogram)
            bins.append(ReliabilityBin(*edges, weight, probability / weight, correct / weight, low, high))
    return tuple(bins)


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """Expected calibration error (ECE) of the predicted class: a difference of probabilities."""
    total = math.fsum(b.weight for b in bins)
    return math.fsum(b.weight * abs(b.claimed - b.correct) for b in bins) / total if total else math.nan


def classwise_error(histograms: Array) -> float:
    """Classwise calibration error: the mean over the classes of the error of each against the rest; NaN without any.

    The histograms of (weight, probability, label) are joined to 16 bins of equal width.
    """
    return _mean_error([_error(values(histogram), _EQUAL_WIDTH) for histogram in histograms])


def adaptive_error(histograms: Array) -> float:
    """Adaptive calibration error: as `classwise_error`, in bins of equal weight for each class.

    A bin of the histogram counts for the sixteenth of the rows, ordered by their probabilities, that its middle is in.
    """
    errors = []
    for histogram in values(histograms):
        weight = histogram[:, 0]
        middle = (np.cumsum(weight) - weight / 2) / (weight.sum() or 1.0)
        errors.append(_error(histogram, np.minimum((middle * BINS).astype(np.int64), BINS - 1)))
    return _mean_error(errors)


def _error(histogram: Array, place: Array) -> float:
    """Return the calibration error when bins are joined to those of their places; NaN without rows."""
    weight, probability, label = (np.bincount(place, column, BINS) for column in histogram.T)
    return float(np.abs(probability - label).sum() / weight.sum()) if weight.any() else math.nan


def _mean_error(errors: list[float]) -> float:
    return math.fsum(errors) / len(errors) if errors else math.nan


def temperature(sample: SelectedRows) -> Temperature | None:
    """Estimate the best temperature from the sampled rows, and its gain by cross-fitting; None with too few rows."""
    if "p" not in sample.columns:
        return None
    usable = np.isfinite(sample["loss"]) & (sample["weight"] > 0)
    if usable.sum() < FEWEST_ROWS or sample["p"].shape[1] < 2:
        return None
    target = sample["target"] if "target" in sample.columns else sample["label"]
    with np.errstate(divide="ignore"):
        rows = LogRows.of(np.log(sample["p"][usable]), target[usable], sample["weight"][usable])
    best = rows.best(1.0)

    def fitted_losses(rest: LogRows, held_out: LogRows) -> Array:
        return held_out.losses(rest.best(best))

    clusters = sample["cluster"][usable] if "cluster" in sample.columns else None
    gain = cross_fitted_gains(rows, fold_of(sample["key"][usable] if clusters is None else clusters), fitted_losses)
    estimate, _ = mean_and_interval(gain, rows.weight, numbered(clusters))
    return Temperature(1 / best, estimate.nats, estimate.low, estimate.high, len(gain))


def fold_of(keys: Array) -> Array:
    """Return the part of each row for cross-fitting."""
    return np.asarray(keys % np.uint64(FOLDS))


def cross_fitted_gains(rows: LogRows, fold: Array, fitted_losses: Callable[[LogRows, LogRows], Array]) -> Array:
    """Return by how much each row's loss falls under what was fitted without its part, in nats.

    `fitted_losses` fits on its first argument and returns the losses of its second.
    """
    gain = np.empty(len(rows.weight))
    for part in np.unique(fold):
        held_out = fold == part
        judged = rows.take(held_out)
        gain[held_out] = judged.losses(1.0) - fitted_losses(rows.take(~held_out), judged)
    return gain


@dataclass(frozen=True)
class LogRows:
    """Logarithms of probabilities (0 for an impossible class), which classes are possible, labels, and weights.

    The matrices lie in memory class by class, so that sums over few classes are sums of long columns.
    """

    z: Array
    possible: Array
    target: Array
    """Class indices, or a distribution for each row."""
    log_label: Array
    """Logarithm of the label's probability; for distributions the expected one."""
    weight: Array

    @classmethod
    def of(cls, log_p: Array, target: Array, weight: Array) -> LogRows:
        """Return rows whose labels are all possible; an impossible class has the logarithm -inf."""
        possible = np.asfortranarray(log_p > -math.inf)
        z = np.where(possible, np.asfortranarray(log_p), 0.0)
        log_label = (target * z).sum(axis=1) if target.ndim == 2 else z[np.arange(len(z)), target]
        return cls(z, possible, target, log_label, weight)

    def take(self, chosen: Array) -> LogRows:
        """Return the rows for which this is true."""
        z, possible = (matrix.T.compress(chosen, axis=1).T for matrix in (self.z, self.possible))
        return LogRows(z, possible, self.target[chosen], self.log_label[chosen], self.weight[chosen])

    def losses(self, beta: float) -> Array:
        """Return the losses at an inverse temperature."""
        return np.asarray(np.log(self._powers(beta).sum(axis=1)) - beta * self.log_label)

    def slope(self, log_beta: float) -> float:
        """Return the derivative of the summed loss by the inverse temperature, a non-decreasing function."""
        powers = self._powers(math.exp(log_beta))
        expected = (powers * self.z).sum(axis=1) / powers.sum(axis=1)
        return float(self.weight @ (expected - self.log_label))

    def best(self, near: float) -> float:
        """Return the inverse temperature where the slope is 0, or else the end of the range nearest to it."""
        lowest, highest = math.log(1 / HIGHEST_TEMPERATURE), math.log(1 / LOWEST_TEMPERATURE)
        low, high = max(lowest, math.log(near) - 0.1), min(highest, math.log(near) + 0.1)
        while low > lowest and self.slope(low) > 0:
            low, high = max(lowest, low - 2.0), low
        while high < highest and self.slope(high) < 0:
            low, high = high, min(highest, high + 2.0)
        if self.slope(low) >= 0:
            return math.exp(low)
        if self.slope(high) <= 0:
            return math.exp(high)
        return math.exp(optimize.brentq(self.slope, low, high, xtol=1e-9))

    def _powers(self, beta: float) -> Array:
        powers: Array = np.exp(beta * self.z)
        powers *= self.possible
        return powers


def _wilson(share: float, rows: float) -> tuple[float, float]:
    if math.isnan(rows):
        return math.nan, math.nan
    z, share = 1.959963984540054, min(max(share, 0.0), 1.0)
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)
