"""The gradients of both losses on predictions that somebody made: `xent why --predictions`.

    cross-entropy, by the logits     q - p
    squared error, by the logits     2 q * (q - p - sum(q * (q - p)))      which vanishes with q[label]

A gradient by the logits depends on the probabilities alone, so that a table of predictions is enough to replay it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from xent.errors import ArgumentError, message
from xent.numpy import cross_entropy_value_and_grad, squared_error_value_and_grad
from xent.scoring import Score

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
    """What part of the summed lengths of all gradients the rows of the band bring."""


@dataclass(frozen=True)
class GradientReplay:
    """Gradients by the logits on sampled rows: as bands of the label's probability, and as points to draw."""

    rows: int
    rows_in_source: int
    bands: tuple[Band, ...]
    points: tuple[tuple[float, float, float], ...]
    """(probability of the label, length of the cross-entropy's gradient, of the squared error's)."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; a mean of no rows is null."""
        bands = [
            {name: None if isinstance(v, float) and math.isnan(v) else v for name, v in dataclasses.asdict(b).items()}
            for b in self.bands
        ]
        return {"record": "xent why --predictions", "schema": SCHEMA, **dataclasses.asdict(self), "bands": bands}


def replay(score: Score) -> GradientReplay:
    """Both gradients on the rows that a score has sampled."""
    if "p" not in score.sample.columns or score.form.soft:
        found = "found predictions without a probability for each class, or with soft labels"
        raise ArgumentError(message("why", "predictions", found, "Pass --proba or --logits and one label for each row"))
    p, labels = score.sample["p"], score.sample["label"]
    with np.errstate(divide="ignore"):
        logits = np.log(p)
    lengths = [
        np.linalg.norm(value_and_grad(logits, labels, reduction="none")[1], axis=1)
        for value_and_grad in (cross_entropy_value_and_grad, squared_error_value_and_grad)
    ]
    q = p[np.arange(len(p)), labels]
    order = np.argsort(q, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(q) - 1, min(MOST_SAMPLES, len(q))).round().astype(int))]
    points = tuple((float(q[i]), float(lengths[0][i]), float(lengths[1][i])) for i in chosen)
    bands = tuple(_band(low, high, q, lengths) for low, high in pairwise(EDGES))
    return GradientReplay(len(q), score.rows, bands, points)


def _band(low: float, high: float, q: np.ndarray, lengths: list[np.ndarray]) -> Band:
    inside = (q >= low) & ((q < high) | (high == 1.0))
    means = [float(of[inside].mean()) if inside.any() else math.nan for of in lengths]
    shares = [float(of[inside].sum() / of.sum()) if of.sum() else math.nan for of in lengths]
    return Band(low, high, int(inside.sum()), means[0], means[1], shares[0], shares[1])
