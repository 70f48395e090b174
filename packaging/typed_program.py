"""A program that uses xent with its types: `make dist` has mypy and pyright check it against the installed wheel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import xent
from xent.errors import LabelError
from xent.likelihood import Likelihood, likelihood
from xent.objective import Options


def train(x: NDArray[np.float64], y: NDArray[np.int64], steps: int) -> NDArray[np.float64]:
    """Fit a softmax regression by gradient descent."""
    weight = np.zeros((3, x.shape[1]))
    options: Options = {"label_smoothing": 0.1, "reduction": "mean"}
    for _ in range(steps):
        loss, gradients = xent.numpy.linear_cross_entropy_value_and_grad(x, weight, y, **options)
        weight -= 0.5 * gradients.linear_weight
        print(float(loss))
    return weight


def report(path: Path) -> float:
    """Score a file of predictions."""
    score: xent.scoring.Score = xent.score(path, "y", proba="p*")
    return score.cross_entropy.nats


def better(old: Path, new: Path) -> bool:
    """Compare two files of predictions."""
    comparison = xent.compare(old, new, id="row", label="y", proba="p*")
    return comparison.difference.high < 0


def bits(p: NDArray[np.float64], labels: NDArray[np.int64]) -> tuple[float, Likelihood]:
    """Return the entropy of the mean prediction, and the likelihood of the labels."""
    return float(xent.information.entropy(p.mean(axis=0), base=2)), likelihood(labels, p)


def refused(logits: NDArray[np.float64]) -> str:
    """Return the text of an error."""
    try:
        xent.numpy.cross_entropy(logits, [99], ignore_index=-1)
    except LabelError as error:
        return str(error)
    return ""
