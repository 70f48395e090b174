"""The gradients of both losses on existing predictions: `xent why --predictions`.

    cross-entropy, by the logits     q - p
    squared error, by the logits     2 q * (q - p - sum(q * (q - p)))      which vanishes with q[label]

A gradient by the logits depends on the probabilities alone, so that it can be computed from a table of predictions.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from xent.errors import ArgumentError, message
from xent.scoring import Score
from xent.why.gradient_descent import spread_out
from xent.why.losses import gradient_lengths
from xent.why.record import finite

SCHEMA = 1
EDGES = (0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
MOST_SAMPLES = 600


@dataclass(frozen=True)
class Band:
    """Rows whose label had a probability from low to high, and the mean lengths of their gradients (no unit)."""

    low: float
    high: float
    rows: int
    cross_entropy: float
    squared_error: float
    share_of_cross_entropy: float
    share_of_squared_error: float
    """Share of the band's rows in the summed lengths of all gradients."""


@dataclass(frozen=True)
class GradientReplay:
    """Gradients by the logits on sampled rows: in bands of the label's probability, and as points of a chart."""

    rows: int
    rows_in_source: int
    bands: tuple[Band, ...]
    points: tuple[tuple[float, float, float], ...]
    """(probability of the label, gradient length of the cross-entropy, gradient length of the squared error)."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON; a mean of no rows is null."""
        return {"record": "xent why --predictions", "schema": SCHEMA, **finite(asdict(self))}


def replay(score: Score) -> GradientReplay:
    """Compute both gradients on the sampled rows of a score."""
    if "p" not in score.sample.columns or score.form.soft:
        problem = "found predictions without a probability for each class, or with soft labels"
        raise ArgumentError(
            message("why", "predictions", problem, "Pass --proba or --logits and one label for each row")
        )
    p, labels = score.sample["p"], score.sample["label"]
    with np.errstate(divide="ignore"):
        lengths = gradient_lengths(np.log(p), labels)
    q = p[np.arange(len(p)), labels]
    points = tuple((float(q[i]), float(lengths[0][i]), float(lengths[1][i])) for i in spread_out(q, MOST_SAMPLES))
    bands = tuple(_band(low, high, q, lengths) for low, high in pairwise(EDGES))
    return GradientReplay(len(q), score.rows, bands, points)


def _band(low: float, high: float, q: np.ndarray, lengths: list[np.ndarray]) -> Band:
    inside = (q >= low) & ((q < high) | (high == 1.0))
    means = [float(length[inside].mean()) if inside.any() else math.nan for length in lengths]
    shares = [float(length[inside].sum() / length.sum()) if length.sum() else math.nan for length in lengths]
    return Band(low, high, int(inside.sum()), means[0], means[1], shares[0], shares[1])
