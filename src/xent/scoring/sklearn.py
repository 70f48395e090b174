"""scikit-learn's `log_loss`, without clipping and with `labels` in the order in which they are passed; and scorers.

    cross_val_score(model, X, y, scoring=xent.scoring.sklearn.neg_log_loss)

An impossible label costs +inf here, where scikit-learn returns 36.04, 15.94 or 6.93, depending on the dtype.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any

import numpy as np

from xent.errors import ArgumentError, DTypeError, LabelError, ShapeError, message
from xent.names import listed, quoted
from xent.scoring import loops
from xent.scoring.api import in_threads, score
from xent.scoring.batch import EMPTY, NO_INDEX, as_array, row_scores
from xent.scoring.readers import BATCH_NUMBERS
from xent.scoring.score import Score
from xent.scoring.sums import Array, exactly, merged, values, zeros

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
    labels : the classes in the order of the columns, which need not be sorted; by default those in `y_true`, sorted

    Returns
    -------
    float, in nats; +inf if a label has probability 0.

    Raises
    ------
    LabelError
        The labels are not those of the columns.
    DistributionError
        A row of `y_proba` is not a distribution.
    ShapeError, DTypeError
        Arguments of other shapes or types.

    Examples
    --------
    >>> round(log_loss(["dog", "cat"], [[0.2, 0.8], [0.5, 0.5]], labels=["cat", "dog"]), 4)
    0.4581
    >>> round(log_loss(["dog", "cat"], [[0.8, 0.2], [0.5, 0.5]], labels=["dog", "cat"]), 4)
    0.4581
    """
    proba, codes = _coded("log_loss", y_true, y_proba, labels)
    weight = None if sample_weight is None else as_array("log_loss", "sample_weight", sample_weight)
    sizes = {proba.shape[:1], codes.shape, codes.shape if weight is None else weight.shape}
    totals = _totals(proba, codes, weight) if len(proba) and len(sizes) == 1 else None
    if totals is None:  # the complete score names the row and the reason
        return score(proba, codes, weight=weight).cross_entropy.nats
    if values(totals)[loops.IMPOSSIBLE_WEIGHT] > 0:
        return math.inf
    total = exactly(totals[loops.LOSS])
    if not normalize:
        return float(total)
    rows = exactly(totals[loops.WEIGHT])
    return float(total / rows) if rows else math.nan


def neg_log_loss(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Scorer: minus the log loss of the estimator's probabilities for the classes it was fitted with, in nats.

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
        A label that the estimator was not fitted with.
    ArgumentError
        The estimator has no `predict_proba` or no `classes_`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.naive_bayes import GaussianNB
    >>> scores = cross_val_score(GaussianNB(), *load_iris(return_X_y=True), scoring=neg_log_loss)
    >>> round(float(scores.mean()), 2)
    -0.14
    """
    return 0.0 - _score_of("neg_log_loss", estimator, X, y, sample_weight).cross_entropy.nats


def explained_log_loss(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Scorer: D^2, the share of the entropy of the labels' frequencies that the predictions explain; at most 1.

    Parameters and errors are those of `neg_log_loss`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = load_iris(return_X_y=True)
    >>> round(explained_log_loss(GaussianNB().fit(X, y), X, y), 2)
    0.9
    """
    return _score_of("explained_log_loss", estimator, X, y, sample_weight).explained


def neg_brier_score(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Scorer: minus the Brier score summed over the classes; between -2 and 0.

    Parameters and errors are those of `neg_log_loss`.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = load_iris(return_X_y=True)
    >>> round(neg_brier_score(GaussianNB().fit(X, y), X, y), 2)
    -0.07
    """
    return 0.0 - _score_of("neg_brier_score", estimator, X, y, sample_weight).brier


def _score_of(call: str, estimator: Any, X: Any, y: Any, sample_weight: Any) -> Score:
    for attribute in ("predict_proba", "classes_"):
        if not hasattr(estimator, attribute):
            problem = f"a {type(estimator).__name__} without {attribute}"
            raise ArgumentError(message(call, "estimator", problem, "Pass a fitted classifier with probabilities"))
    proba, codes = _coded(call, y, estimator.predict_proba(X), list(estimator.classes_))
    return score(proba, codes, weight=sample_weight)


def _coded(call: str, y_true: Any, y_proba: Any, labels: Sequence[Any] | None) -> tuple[Array, Array]:
    """Return probabilities, and the labels as indices of their columns."""
    truth, proba = as_array(call, "y_true", y_true), as_array(call, "y_proba", y_proba)
    if proba.ndim not in (1, 2):
        problem = f"found shape {proba.shape}, expected (rows, classes) or (rows,)"
        raise ShapeError(message(call, "y_proba", problem, "Pass one row per prediction"))
    try:
        classes = np.unique(truth).tolist() if labels is None else list(labels)
        columns = 2 if proba.ndim == 1 else proba.shape[1]
        if len(classes) != columns:
            whose = "in y_true" if labels is None else "in labels"
            problem = f"found {len(classes)} classes {whose} for {columns} columns of probabilities"
            raise LabelError(message(call, "labels", problem, "Name the class of each column, in their order"))
        is_index = truth.dtype.kind in "iu" and truth.size > 0 and classes == list(range(columns))
        if is_index and truth.min() >= 0 and truth.max() < columns:
            return proba, truth
        order = np.argsort(np.asarray(classes), kind="stable")
        ordered = np.asarray(classes)[order]
        place = np.searchsorted(ordered, truth).clip(0, len(classes) - 1)
        unseen = ordered[place] != truth
    except (TypeError, ValueError) as error:
        if isinstance(error, LabelError):
            raise
        problem = f"the labels cannot be compared with each other ({error})"
        raise DTypeError(
            message(call, "y_true, labels", problem, "Pass labels of one kind, all text or all numbers")
        ) from None
    if unseen.any():
        problem = f"the label {quoted(truth[unseen].tolist()[0])} is none of the classes {listed(classes)}"
        raise LabelError(message(call, "y_true", problem, "Name every class in labels="))
    return proba, order[place]


def _totals(proba: Array, labels: Array, weight: Array | None) -> Array | None:
    """Return the sums over the rows alone, without histograms; None if a row cannot be scored."""
    size = max(1024, BATCH_NUMBERS // (proba.shape[1] if proba.ndim == 2 else 2))

    def totals_of(first: int) -> Array | None:
        part = slice(first, first + size)
        rows = row_scores(labels[part], proba[part], weight=None if weight is None else weight[part])
        if (rows.status != loops.VALID).any():
            return None
        totals = zeros(loops.FIELDS)
        loops.add_rows(rows.loss, EMPTY, EMPTY, EMPTY, rows.weight, NO_INDEX, rows.status, math.inf, totals.reshape(-1))
        return totals

    parts = list(in_threads(partial(totals_of, first) for first in range(0, len(proba), size)))
    return None if any(part is None for part in parts) else reduce(merged, (p for p in parts if p is not None))
