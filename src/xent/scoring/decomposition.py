"""The components of the log loss of each class against the rest.

    loss                = miscalibration - discrimination + uncertainty   (CORP: Dimitriadis, Gneiting, Jordan 2021)
      uncertainty       the loss of the base rate
      miscalibration    what the best non-decreasing recalibration (isotonic regression) would gain
      discrimination    what the recalibrated probabilities gain over the base rate

It is computed from the histograms of a state. They have four bins per octave, so that the loss of a bin's mean is
close to the mean of its losses. The outermost bins hold all probabilities nearer to 0 or 1 than 2**-20; their rows,
impossible ones included, count with the bin's mean, so the parts are finite.

Each part is a mean over the rows: of ``l(q) - l(r)``, ``l(b) - l(r)`` and ``l(b)``, with the loss l of the probability
q, of the recalibrated one r and of the base rate b. As r and b minimise the mean of their losses, that they were fitted
changes the parts in second order only, and the standard error is that of these means. It comes from the sampled rows,
which say how the classes depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from xent.scoring.intervals import Estimate, mean_and_interval, numbered
from xent.scoring.one_vs_rest import probability_bins
from xent.scoring.selection import SelectedRows
from xent.scoring.sums import Array, values

PARTS = ("miscalibration", "discrimination", "uncertainty")


@dataclass(frozen=True)
class Decomposition:
    """Decomposition of the binary log loss of one class against the rest, in nats per row."""

    loss: float
    miscalibration: float
    discrimination: float
    uncertainty: float


@dataclass(frozen=True)
class Recalibration:
    """The predicted and the recalibrated probability of one class in each bin of its histogram, and its base rate."""

    claimed: Array
    """NaN in empty bins."""
    recalibrated: Array
    base: float
    decomposition: Decomposition

    @classmethod
    def of(cls, histogram: Array) -> Recalibration:
        """Recalibrate a class by isotonic regression on its histogram of (weight, probability, label)."""
        weight, probability, label = values(histogram).T
        filled = weight > 0
        weight, probability, label = weight[filled], probability[filled], label[filled]
        claimed, share = np.minimum(probability / weight, 1.0), np.minimum(label / weight, 1.0)
        # Bins are in the order of their probabilities, and so are the means in them.
        recalibrated = optimize.isotonic_regression(share, weights=weight).x.clip(0.0, 1.0)
        base = float(label.sum() / weight.sum())

        def mean_loss(q: Array) -> float:
            return float(np.average(binary_loss(share, q), weights=weight))

        loss, best = mean_loss(claimed), mean_loss(recalibrated)
        uncertainty = mean_loss(np.full_like(share, base))
        found = Decomposition(loss, max(loss - best, 0.0), max(uncertainty - best, 0.0), uncertainty)
        in_bins = np.full((2, len(filled)), math.nan)
        in_bins[:, filled] = claimed, recalibrated
        return cls(in_bins[0], in_bins[1], base, found)


def binary_loss(label: Array, q: Array) -> Array:
    """Return the binary log loss of probabilities; `label` is 0, 1 or a share of 1."""
    with np.errstate(divide="ignore"):
        return np.asarray(0.0 - (special.xlogy(label, q) + special.xlog1py(1 - label, -q)))


def mean_parts(
    recalibrations: list[Recalibration], sample: SelectedRows, weight: float, weight_squared: float
) -> Mapping[str, Estimate]:
    """Return the mean of each part over the classes, with its 95% interval; NaN without classes.

    The standard error of the sample's rows is scaled by that of the number of all rows, ``sum(w)**2 / sum(w**2)``. With
    clusters it stays that of the clusters in the sample, and is too large rather than too small.
    """
    found = [r.decomposition for r in recalibrations]
    means = {part: math.fsum(getattr(d, part) for d in found) / len(found) if found else math.nan for part in PARTS}
    if len(sample) < 2 or not found:
        return {part: Estimate.of(mean) for part, mean in means.items()}
    w = sample["weight"]
    clusters = sample["cluster"] if "cluster" in sample.columns else None
    scale = 1.0
    if clusters is None:
        scale = math.sqrt((weight_squared / weight**2) / (float((w**2).sum()) / float(w.sum()) ** 2))
    estimates = {}
    for (part, mean), of_rows in zip(means.items(), _parts_of_rows(recalibrations, sample), strict=True):
        spread, _ = mean_and_interval(of_rows, w, numbered(clusters))
        units = len(w) if clusters is None else len(np.unique(clusters))
        known = not math.isnan(spread.standard_error)
        estimate = Estimate.of(mean, scale * spread.standard_error, units) if known else Estimate.of(mean)
        low = estimate.low if part == "uncertainty" or not known else max(0.0, estimate.low)
        estimates[part] = Estimate(mean, estimate.standard_error, low, estimate.high)
    return estimates


def _parts_of_rows(recalibrations: list[Recalibration], sample: SelectedRows) -> Array:
    """Return the three parts of each sampled row, mean over the classes."""
    p = np.ascontiguousarray(sample["p"], np.float64)
    bins = np.empty(p.shape, np.int64)
    probability_bins(p, bins)
    bins = np.ascontiguousarray(bins.T)
    parts = np.zeros((len(PARTS), len(p)))
    for c, (fitted, places) in enumerate(zip(recalibrations, bins, strict=True)):
        if "target" in sample.columns:
            parts += _parts(fitted, sample["target"][:, c], places)
        else:  # the same for all rows of a bin that have the class, and for all others
            every = np.arange(len(fitted.claimed))
            of_bins = np.hstack([_parts(fitted, np.full(len(every), label), every) for label in (0.0, 1.0)])
            parts += of_bins.take(places + len(every) * (sample["label"] == c), axis=1)
    return parts / len(recalibrations)


def _parts(fitted: Recalibration, label: Array, places: Array) -> Array:
    """Return the three parts for labels of one class, whose probabilities are in these bins."""
    base = binary_loss(label, np.full(len(label), fitted.base))
    best = binary_loss(label, fitted.recalibrated[places])
    with np.errstate(invalid="ignore"):
        return np.stack([binary_loss(label, fitted.claimed[places]) - best, base - best, base])
