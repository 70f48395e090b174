"""scikit-learn's metrics of probabilities, without clipping and with `labels` in the order of the columns; and scorers.

    log_loss, brier_score_loss, d2_log_loss_score    arguments and results of the functions of the same names
    multilabel_log_loss                              rows that have any number of labels
    neg_log_loss, explained_log_loss, neg_brier_score    scorers: cross_val_score(..., scoring=neg_log_loss)

docs/scoring.md lists where they differ from scikit-learn's, whose own tests of these functions run on them
(tests/test_score_sklearn.py). sklearn_labels.py turns labels into indices of columns.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from fractions import Fraction
from functools import partial, reduce
from typing import Any, Literal

import numpy as np

from xent.errors import ArgumentError, message
from xent.scoring import loops
from xent.scoring.api import in_threads, score
from xent.scoring.batch import EMPTY, NO_INDEX, as_array, checked_clip, row_scores
from xent.scoring.readers import BATCH_NUMBERS
from xent.scoring.score import Score
from xent.scoring.sklearn_labels import check_lengths, coded, coded_elements, coded_one_class
from xent.scoring.sums import Array, exactly, merged, values, zeros
from xent.scoring.tallies import add_rows

__all__ = [
    "brier_score_loss",
    "d2_log_loss_score",
    "explained_log_loss",
    "log_loss",
    "multilabel_log_loss",
    "neg_brier_score",
    "neg_log_loss",
]


def log_loss(
    y_true: Any,
    y_proba: Any,
    *,
    normalize: bool = True,
    sample_weight: Any = None,
    labels: Sequence[Any] | None = None,
    clip: float | None = None,
) -> float:
    """Log loss: the mean cross-entropy of labels under predicted distributions, in nats per row.

    *Definition*: ``-sum(weight * log q[label]) / sum(weight)``; with ``normalize=False`` without the denominator. For
    a distribution t in place of a label, ``-sum(t * log q)`` takes the place of ``-log q[label]``.

    Parameters
    ----------
    y_true : array (rows,) of labels, or (rows, classes) of indicators (one-hot) or distributions, whose columns are
        those of `y_proba`
    y_proba : array (rows, classes) of distributions, or (rows,) or (rows, 1) with the probability of the second of two
        classes
    normalize : False for the sum, in nats
    sample_weight : array (rows,), 0 or more; a row of weight 0 is left out
    labels : the classes in the order of the columns, which need not be sorted; by default those in `y_true`, sorted
    clip : smallest probability that a label is scored with; by default an impossible label costs +inf

    Returns
    -------
    float, in nats; +inf if a label has probability 0 and no clip was asked for.

    Raises
    ------
    LabelError
        The labels are not those of the columns, or `labels` names a class twice.
    DistributionError
        A row of `y_proba` is not a distribution, or one of `y_true` has no label or several of them.
    ArgumentError, ShapeError, DTypeError
        Arguments of other ranges, shapes or types.

    Examples
    --------
    >>> round(log_loss(["dog", "cat"], [[0.2, 0.8], [0.5, 0.5]], labels=["cat", "dog"]), 4)
    0.4581
    >>> round(log_loss(["dog", "cat"], [[0.8, 0.2], [0.5, 0.5]], labels=["dog", "cat"]), 4)
    0.4581
    >>> round(log_loss([[0, 1], [1, 0]], [[0.2, 0.8], [0.5, 0.5]], normalize=False), 4)
    0.9163
    """
    proba, truth = coded("log_loss", y_true, y_proba, labels)
    return _mean_loss("log_loss", proba, truth, sample_weight, clip, normalize)


def multilabel_log_loss(
    y_true: Any, y_proba: Any, *, normalize: bool = True, sample_weight: Any = None, clip: float | None = None
) -> float:
    """Log loss of rows that have any number of labels: the mean of the binary log loss of each row and label.

    *Definition*: ``-mean(t * log q + (1 - t) * log(1 - q))`` over all elements of t = `y_true` and q = `y_proba`.
    (scikit-learn's `log_loss` reads the rows as one-hot, and leaves the labels that a row lacks without a cost.)

    Parameters
    ----------
    y_true : array (rows, labels) of 0 and 1, or booleans
    y_proba : array (rows, labels): the probability of each label; rows need not sum to 1
    normalize : False for the sum over all elements, in nats
    sample_weight : array (rows,), 0 or more
    clip : smallest probability that an element is scored with

    Returns
    -------
    float, in nats per element.

    Raises
    ------
    LabelError
        An element of `y_true` is neither 0 nor 1.
    DistributionError
        An element of `y_proba` is not a probability.
    ArgumentError, ShapeError, DTypeError
        Arguments of other ranges, shapes or types.

    Examples
    --------
    >>> round(multilabel_log_loss([[1, 1], [0, 0]], [[0.5, 0.5], [0.25, 0.25]]), 4)
    0.4904
    """
    proba, truth = coded_elements("multilabel_log_loss", y_true, y_proba)
    weight = _weights("multilabel_log_loss", sample_weight, len(proba))
    labels = proba.shape[1]
    weight = None if weight is None else np.repeat(weight, labels)
    return _mean_loss("multilabel_log_loss", proba.reshape(-1), truth.reshape(-1), weight, clip, normalize)


def brier_score_loss(
    y_true: Any,
    y_proba: Any,
    *,
    sample_weight: Any = None,
    pos_label: Any = None,
    labels: Sequence[Any] | None = None,
    scale_by_half: bool | Literal["auto"] = "auto",
) -> float:
    """Brier score: the mean squared error of the predicted probabilities.

    *Definition*: ``sum(weight * sum((q - p)**2)) / sum(weight)`` with p the one-hot label, over the classes; with
    `scale_by_half` half of it, for two classes ``mean((q1 - y)**2)``.

    Parameters
    ----------
    y_true, y_proba, sample_weight, labels : as in `log_loss`
    pos_label : with one column of probabilities, the class that it belongs to; by default 1 for labels of -1, 0 and 1,
        and otherwise the greater of two numbers. Text needs it.
    scale_by_half : "auto" is True for two classes

    Returns
    -------
    float: 0 to 1 if scaled, else 0 to 2.

    Raises
    ------
    LabelError, DistributionError, ArgumentError, ShapeError, DTypeError
        As in `log_loss`; `pos_label` is missing.

    Examples
    --------
    >>> round(brier_score_loss([0, 1, 1], [0.1, 0.8, 0.9]), 4)
    0.02
    >>> round(brier_score_loss(["a", "b"], [[0.5, 0.5], [0.2, 0.8]], scale_by_half=False), 4)
    0.29
    """
    if not (isinstance(scale_by_half, bool | np.bool_) or scale_by_half == "auto"):
        problem = f"found {scale_by_half!r}"
        raise ArgumentError(message("brier_score_loss", "scale_by_half", problem, "It is 'auto', True or False"))
    if labels is None and (as_array("brier_score_loss", "y_proba", y_proba).shape[1:] or (1,)) == (1,):
        proba, truth = coded_one_class("brier_score_loss", y_true, y_proba, pos_label)
    else:
        proba, truth = coded("brier_score_loss", y_true, y_proba, labels)
    totals = _sums("brier_score_loss", proba, truth, sample_weight, brier=True)
    score = float(exactly(totals[loops.BRIER]) / exactly(totals[loops.WEIGHT]))
    two = proba.ndim == 1 or proba.shape[1] < 3
    return score / 2 if (two if scale_by_half == "auto" else scale_by_half) else score


def d2_log_loss_score(
    y_true: Any,
    y_proba: Any,
    *,
    sample_weight: Any = None,
    labels: Sequence[Any] | None = None,
    clip: float | None = None,
) -> float:
    """D^2 of the log loss: the share of the entropy of the labels' frequencies that the predictions explain.

    *Definition*: ``1 - log_loss / entropy``: 0 is what always predicting the frequencies scores, 1 is certainty.

    Parameters
    ----------
    y_true, y_proba, sample_weight, labels, clip : as in `log_loss`

    Returns
    -------
    float: at most 1; -inf if a label has probability 0. NaN, with scikit-learn's UndefinedMetricWarning, for fewer than
    two rows and for labels of one class only, whose entropy is 0.

    Raises
    ------
    LabelError, DistributionError, ArgumentError, ShapeError, DTypeError
        As in `log_loss`.

    Examples
    --------
    >>> round(d2_log_loss_score([0, 0, 1, 1], [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.1, 0.9]]), 4)
    0.7149
    """
    call = "d2_log_loss_score"
    rows = as_array(call, "y_proba", y_proba)
    if rows.ndim and len(rows) < 2:
        return _undefined("fewer than two rows")
    proba, truth = coded(call, y_true, y_proba, labels)
    weight = _weights(call, sample_weight, len(proba))
    totals = _sums(call, proba, truth, weight, clip)
    # Of the frequencies in the way of the predictions, so that these score exactly 0 if they are the frequencies.
    classes = 2 if proba.ndim == 1 else proba.shape[1]
    if truth.ndim == 2:
        share = np.average(truth, axis=0, weights=weight)
    else:
        share = np.bincount(truth, weight, classes) / float(values(totals)[loops.WEIGHT])
    present = np.flatnonzero(share)
    if len(present) < 2:
        return _undefined("labels of one class only")
    if values(totals)[loops.IMPOSSIBLE_WEIGHT] > 0:
        return -math.inf
    losses = row_scores(present, np.tile(share / share.sum(), (len(present), 1))).loss
    total = exactly(totals[loops.WEIGHT])
    base = sum(Fraction(share[k]) * total * Fraction(loss) for k, loss in zip(present, losses, strict=True))
    return 1.0 - float(exactly(totals[loops.LOSS]) / base)


def neg_log_loss(estimator: Any, X: Any, y: Any, sample_weight: Any = None, *, clip: float | None = None) -> float:
    """Scorer: minus the log loss of the estimator's probabilities for the classes it was fitted with, in nats.

    Parameters
    ----------
    estimator : a fitted classifier with `predict_proba` and `classes_`
    X, y : features and labels
    sample_weight : array (rows,)
    clip : smallest probability that a label is scored with; ``functools.partial(neg_log_loss, clip=1e-6)`` is a scorer.
        A search without one can choose no model if each has a fold with an impossible label: all means are -inf.

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
    return 0.0 - _score_of("neg_log_loss", estimator, X, y, sample_weight, clip).cross_entropy.nats


def explained_log_loss(
    estimator: Any, X: Any, y: Any, sample_weight: Any = None, *, clip: float | None = None
) -> float:
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
    return _score_of("explained_log_loss", estimator, X, y, sample_weight, clip).explained


def neg_brier_score(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> float:
    """Scorer: minus the Brier score summed over the classes; between -2 and 0.

    Parameters and errors are those of `neg_log_loss`, without a clip, of which a bounded score has no need.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = load_iris(return_X_y=True)
    >>> round(neg_brier_score(GaussianNB().fit(X, y), X, y), 2)
    -0.07
    """
    return 0.0 - _score_of("neg_brier_score", estimator, X, y, sample_weight).brier


def _score_of(call: str, estimator: Any, X: Any, y: Any, sample_weight: Any, clip: float | None = None) -> Score:
    for attribute in ("predict_proba", "classes_"):
        if not hasattr(estimator, attribute):
            problem = f"a {type(estimator).__name__} without {attribute}"
            raise ArgumentError(message(call, "estimator", problem, "Pass a fitted classifier with probabilities"))
    proba, truth = coded(call, y, estimator.predict_proba(X), list(estimator.classes_))
    return score(proba, truth, weight=sample_weight, clip=checked_clip(call, clip))


def _mean_loss(call: str, proba: Array, truth: Array, weight: Any, clip: float | None, normalize: bool) -> float:
    """Return the mean loss, or the sum."""
    totals = _sums(call, proba, truth, weight, clip)
    if values(totals)[loops.IMPOSSIBLE_WEIGHT] > 0:
        return math.inf
    total = exactly(totals[loops.LOSS])
    return float(total / exactly(totals[loops.WEIGHT]) if normalize else total)


def _sums(call: str, proba: Array, truth: Array, weight: Any, clip: float | None = None, brier: bool = False) -> Array:
    """Return the sums over the rows, of which at least one counts; an error names the first row that is wrong."""
    weight, clip = _weights(call, weight, len(proba)), checked_clip(call, clip)
    if clip is not None and truth.ndim == 2:
        problem = "found it with distributions as labels, whose loss has a term for each class"
        raise ArgumentError(message(call, "clip", problem, "Omit it, or raise the probabilities yourself"))
    clip_loss = math.inf if clip is None else 0.0 - math.log(clip)
    totals = _totals(proba, truth, weight, clip_loss, brier) if len(proba) else None
    if totals is None or not totals[loops.ROWS, 0]:
        score(proba, truth, weight=weight)  # raises the error that names the row and the reason
        raise ArgumentError(message(call, "y_true, y_proba", "there are no rows", "Pass at least one"))
    return totals


def _weights(call: str, sample_weight: Any, rows: int) -> Array | None:
    if sample_weight is None:
        return None
    weight = as_array(call, "sample_weight", sample_weight)
    check_lengths(call, "sample_weight", weight, rows)
    return weight


def _undefined(reason: str) -> float:
    from sklearn.exceptions import UndefinedMetricWarning

    warnings.warn(f"D^2 score is not well-defined for {reason}: it is NaN.", UndefinedMetricWarning, stacklevel=3)
    return math.nan


def _totals(proba: Array, truth: Array, weight: Array | None, clip_loss: float, brier: bool) -> Array | None:
    """Return the sums over the rows alone, with Brier scores if asked for; None if a row cannot be scored."""
    size = max(1024, BATCH_NUMBERS // (proba.shape[1] if proba.ndim == 2 else 2))

    def totals_of(first: int) -> Array | None:
        part = slice(first, first + size)
        rows = row_scores(truth[part], proba[part], weight=None if weight is None else weight[part])
        if (rows.status > loops.VALID).any():
            return None
        totals = zeros(loops.FIELDS)
        squares, correct = (rows.brier, rows.correct) if brier else (EMPTY, EMPTY)
        per_row = (rows.loss, squares, correct, EMPTY, rows.weight, NO_INDEX, rows.status)
        add_rows(*per_row, clip_loss, totals.reshape(-1))
        return totals

    parts = list(in_threads(partial(totals_of, first) for first in range(0, len(proba), size)))
    return None if any(part is None for part in parts) else reduce(merged, (p for p in parts if p is not None))
