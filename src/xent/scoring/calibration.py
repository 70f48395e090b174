"""How far probabilities can be trusted, and what correcting them would win.

    reliability         the share of correct rows against the probability that was claimed, in bins
    ECE                 sum over bins of share of rows * |claimed - correct|
    loss                = miscalibration - discrimination + uncertainty   (CORP: Dimitriadis, Gneiting, Jordan 2021)
      uncertainty       the loss of the base rate
      miscalibration    what the best non-decreasing correction of the probabilities (isotonic regression) would win
      discrimination    what the corrected probabilities win over the base rate
    temperature         q**(1/T), renormalised, with the T that wins most; judged on rows that did not choose it

The decomposition is made for each class against the rest, from the histograms of a state: four bins to each octave, so
that the loss of a bin's mean is close to the mean of its losses. The outermost bins hold all that is nearer to 0 or 1
than 2**-20; rows there count with the bin's mean, impossible ones with it, so the parts stay finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from xent.scoring.kept import Kept
from xent.scoring.sums import Array, values

FOLDS = 5
COLDEST, HOTTEST = 1 / 50, 50.0
FEWEST_ROWS = 20
"""A temperature is not estimated from fewer."""


@dataclass(frozen=True)
class Decomposition:
    """Of the binary log loss of one class against the rest: nats per row."""

    loss: float
    miscalibration: float
    discrimination: float
    uncertainty: float


@dataclass(frozen=True)
class ReliabilityBin:
    """Rows whose predicted class had a probability in [low, high): probability claimed, share correct, 95% interval."""

    low: float
    high: float
    weight: float
    claimed: float
    correct: float
    correct_low: float
    correct_high: float


@dataclass(frozen=True)
class Temperature:
    """What dividing logits by a temperature would win, in nats per row; above 1 the predictions were too confident."""

    temperature: float
    gain: float
    gain_low: float
    gain_high: float
    rows: int
    """Sampled rows that it was estimated from, without impossible ones, which no temperature helps."""


def decomposition(histogram: Array) -> Decomposition:
    """Isotonic decomposition of one class's histogram of (weight, probability, label)."""
    weight, probability, label = values(histogram).T
    filled = weight > 0
    weight, probability, label = weight[filled], probability[filled], label[filled]
    claimed, share = np.minimum(probability / weight, 1.0), np.minimum(label / weight, 1.0)
    # Bins come in the order of their probabilities, and so do the means in them.
    corrected = optimize.isotonic_regression(share, weights=weight).x.clip(0.0, 1.0)
    base = label.sum() / weight.sum()

    def mean_loss(q: Array) -> float:
        losses = special.xlogy(share, q) + special.xlog1py(1 - share, -q)
        return float(0.0 - np.average(losses, weights=weight))

    with np.errstate(divide="ignore"):
        loss, best = mean_loss(claimed), mean_loss(corrected)
    uncertainty = mean_loss(np.full_like(share, base))
    return Decomposition(loss, max(loss - best, 0.0), max(uncertainty - best, 0.0), uncertainty)


def reliability(histogram: Array) -> tuple[ReliabilityBin, ...]:
    """The bins of the predicted class that have rows, with Wilson's interval for the share of correct rows."""
    found = []
    for k, (weight, probability, correct) in enumerate(values(histogram)):
        if weight > 0:
            low, high = _wilson(correct / weight, weight)
            edges = k / len(histogram), (k + 1) / len(histogram)
            found.append(ReliabilityBin(*edges, weight, probability / weight, correct / weight, low, high))
    return tuple(found)


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """ECE of the predicted class: a difference of probabilities."""
    total = math.fsum(b.weight for b in bins)
    return math.fsum(b.weight * abs(b.claimed - b.correct) for b in bins) / total if total else math.nan


def temperature(sample: Kept) -> Temperature | None:
    """Estimate the best temperature on all sampled rows, and its gain by cross-fitting; None from too few rows."""
    if "p" not in sample.columns:
        return None
    usable = np.isfinite(sample["loss"]) & (sample["weight"] > 0)
    p, weight, fold = sample["p"][usable], sample["weight"][usable], (sample["key"] % np.uint64(FOLDS))[usable]
    if len(p) < FEWEST_ROWS or p.shape[1] < 2:
        return None
    possible = p > 0
    z = np.log(np.where(possible, p, 1.0))
    if "target" in sample.columns:
        wanted = (sample["target"][usable] * z).sum(axis=1)
    else:
        wanted = z[np.arange(len(z)), sample["label"][usable]]
    rows = _Rows(z, possible, wanted, weight)
    best = rows.best(1.0)
    gain = np.empty(len(p))
    for k in range(FOLDS):
        inside = fold == k
        judged = rows.take(inside)
        gain[inside] = judged.losses(1.0) - judged.losses(rows.take(~inside).best(best))
    mean = float(np.average(gain, weights=weight))
    error = math.sqrt(float((weight**2 * (gain - mean) ** 2).sum())) / float(weight.sum())
    reach = float(special.stdtrit(len(p) - 1, 0.975)) * error
    return Temperature(1 / best, mean, mean - reach, mean + reach, len(p))


@dataclass(frozen=True)
class _Rows:
    """Logarithms of probabilities, which of these were positive, that of the label, and weights."""

    z: Array
    possible: Array
    wanted: Array
    weight: Array

    def take(self, chosen: Array) -> _Rows:
        return _Rows(self.z[chosen], self.possible[chosen], self.wanted[chosen], self.weight[chosen])

    def losses(self, beta: float) -> Array:
        """Losses at an inverse temperature."""
        return np.asarray(np.log(self._powers(beta).sum(axis=1)) - beta * self.wanted)

    def slope(self, log_beta: float) -> float:
        """How the summed loss changes with the inverse temperature; it only rises."""
        powers = self._powers(math.exp(log_beta))
        expected = np.einsum("ij,ij->i", powers, self.z) / powers.sum(axis=1)
        return float(self.weight @ (expected - self.wanted))

    def best(self, near: float) -> float:
        """The inverse temperature where the slope is 0, or the end of the range that it points to."""
        lowest, highest = math.log(1 / HOTTEST), math.log(1 / COLDEST)
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
        return np.where(self.possible, np.exp(beta * self.z), 0.0)


def _wilson(share: float, rows: float) -> tuple[float, float]:
    z = 1.959963984540054
    middle = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)
