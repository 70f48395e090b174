"""A front for scikit-learn: its `log_loss`, without its clipping and in the order of the labels given; and scorers.

    cross_val_score(model, X, y, scoring=xent.scoring.sklearn.neg_log_loss)

An impossible label costs +inf here, where scikit-learn answers 36.04, 15.94 or 6.93, as the dtype has it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from xent.errors import LabelError, message
from xent.scoring import kernels
from xent.scoring.arrays import mean_totals
from xent.scoring.frames import score
from xent.scoring.score import Score
from xent.scoring.sums import Array, exactly, values

__all__ = ["explained_log_loss", "log_loss", "neg_brier_score", "neg_log_loss"]


def log_loss(
    y_true: Any,
    y_proba: Any,
    *,
    normalize: bool = True,
    sample_weight: Any = None,
    labels: Sequence[Any] | None = None,
) -> float:
    """Log loss: the mean cross-entropy of labels under predicted distributions, in nats per row.

    *Definition*: ``-sum(weight * log q[label]) / sum(weight)``; with ``normalize=False`` without the denominator.

    Parameters
    ----------
    y_true : array (rows,) of labels
    y_proba : array (rows, classes) of distributions, or (rows,) with the probability of the second of two classes
    normalize : False for the sum, in nats
    sample_weight : array (rows,), 0 or more
    labels : the classes in the order of the columns, whatever that order is; without it, those in `y_true`, sorted

    Returns
    -------
    float, in nats; +inf if a label has probability 0.

    Raises
    ------
    LabelError
        The labels are not those of the columns.
    DistributionError
        A row of `y_proba` is not a distribution.

    Examples
    --------
    >>> round(log_loss(["dog", "cat"], [[0.2, 0.8], [0.5, 0.5]], labels=["cat", "dog"]), 4)
    0.4581
    >>> round(log_loss(["dog", "cat"], [[0.8, 0.2], [0.5, 0.5]], labels=["dog", "cat"]), 4)
    0.4581
    """
    proba, codes = _coded("log_loss", y_true, y_proba, labels)
    weight = None if sample_weight is None else np.asarray(sample_weight)
    totals = mean_totals(proba, codes, weight) if len(proba) and proba.shape[:1] == codes.shape else None
    if totals is None:  # which row, and why, the whole score says
        return score(proba, codes, weight=weight).cross_entropy.nats
    if values(totals)[kernels.IMPOSSIBLE_WEIGHT] > 0:
        return math.inf
    total = exactly(totals[kernels.LOSS])
    if not normalize:
        return float(total)
    rows = exactly(totals[kernels.WEIGHT])
    return float(total / rows) if rows else math.nan


def neg_log_loss(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Scorer: minus the log loss of the estimator's probabilities, in nats; its classes are those it was fitted with.

    Parameters
    ----------
    estimator : a fitted classifier with `predict_proba` and `classes_`
    X, y : features and labels
    sample_weight : array (rows,)

    Returns
    -------
    float: at most 0; larger is better.

    Raises
    ------
    LabelError
        A label that the estimator does not know.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.naive_bayes import GaussianNB
    >>> found = cross_val_score(GaussianNB(), *load_iris(return_X_y=True), scoring=neg_log_loss)
    >>> round(float(found.mean()), 2)
    -0.14
    """
    return 0.0 - _estimated("neg_log_loss", estimator, X, y, sample_weight).cross_entropy.nats


def explained_log_loss(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Scorer: D^2, the share of the entropy of the labels' frequencies that the predictions explain; at most 1.

    Parameters, errors and the rest are those of `neg_log_loss`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = load_iris(return_X_y=True)
    >>> round(explained_log_loss(GaussianNB().fit(X, y), X, y), 2)
    0.9
    """
    return _estimated("explained_log_loss", estimator, X, y, sample_weight).explained


def neg_brier_score(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Scorer: minus the Brier score summed over the classes; between -2 and 0.

    Parameters, errors and the rest are those of `neg_log_loss`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = load_iris(return_X_y=True)
    >>> round(neg_brier_score(GaussianNB().fit(X, y), X, y), 2)
    -0.07
    """
    return 0.0 - _estimated("neg_brier_score", estimator, X, y, sample_weight).brier


def _estimated(call: str, estimator: Any, X: Any, y: Any, sample_weight: Any) -> Score:
    return _scored(call, y, estimator.predict_proba(X), sample_weight, list(estimator.classes_))


def _scored(call: str, y_true: Any, y_proba: Any, sample_weight: Any, labels: Sequence[Any] | None) -> Score:
    proba, codes = _coded(call, y_true, y_proba, labels)
    return score(proba, codes, weight=sample_weight)


def _coded(call: str, y_true: Any, y_proba: Any, labels: Sequence[Any] | None) -> tuple[Array, Array]:
    """Probabilities, and the labels as indices of their columns."""
    truth, proba = np.asarray(y_true), np.asarray(y_proba)
    classes = np.unique(truth).tolist() if labels is None else list(labels)
    columns = 2 if proba.ndim == 1 else proba.shape[1]
    if len(classes) != columns:
        whose = "in y_true" if labels is None else "in labels"
        found = f"found {len(classes)} classes {whose} for {columns} columns of probabilities"
        raise LabelError(message(call, "labels", found, "Name the class of each column, in their order"))
    indices = truth.dtype.kind in "iu" and truth.size > 0 and classes == list(range(columns))
    if indices and truth.min() >= 0 and truth.max() < columns:
        return proba, truth
    order = np.argsort(np.asarray(classes), kind="stable")
    ordered = np.asarray(classes)[order]
    place = np.searchsorted(ordered, truth).clip(0, len(classes) - 1)
    unseen = ordered[place] != truth
    if unseen.any():
        found = f"the label {truth[unseen].tolist()[0]!r} is none of the classes {classes}"
        raise LabelError(message(call, "y_true", found, "Name every class in labels="))
    return proba, order[place]
