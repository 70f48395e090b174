"""`xent.scoring.sklearn` under scikit-learn's own tests, and where it differs on purpose (see docs/scoring.md)."""

from __future__ import annotations

import itertools
import math
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn import metrics
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.tests import test_classification as theirs
from sklearn.model_selection import GridSearchCV

from xent.errors import ArgumentError, DistributionError, DTypeError, LabelError, ShapeError, XentError
from xent.scoring.sklearn import (
    brier_score_loss,
    d2_log_loss_score,
    explained_log_loss,
    log_loss,
    multilabel_log_loss,
    neg_log_loss,
)

OURS = {"log_loss": log_loss, "brier_score_loss": brier_score_loss, "d2_log_loss_score": d2_log_loss_score}
DIFFERENCES = {
    "test_log_loss_eps": "nothing is clipped unless asked for: the loss of an impossible label is infinite",
    "test_log_loss_not_probabilities_warning": "rows that do not sum to 1 are an error",
    "test_log_loss_warnings": "labels= is the order of the columns",
    "test_brier_score_loss_warnings": "labels= is the order of the columns",
    "test_log_loss_y_pred_deprecation": "there was never a y_pred=",
    "test_d2_log_loss_score_y_pred_deprecation": "there was never a y_pred=",
}


def their_tests():
    """Every test of the three functions in the installed scikit-learn, with its parameters."""
    for name, test in vars(theirs).items():
        if re.match(r"test_(log_loss|brier_score_loss|d2_log_loss_score)", name):
            marks = [mark.args for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
            axes = [[dict(zip(re.split(r",\s*", names), v if "," in names else (v,), strict=True)) for v in values]
                    for names, values in (mark[:2] for mark in marks)]  # fmt: skip
            for number, chosen in enumerate(itertools.product(*axes)):
                yield pytest.param(name, {k: v for one in chosen for k, v in one.items()}, id=f"{name}-{number}")


class OurWords:
    """pytest as their tests see it: an error has to be one of ours, and has our words."""

    def __getattr__(self, name):
        return getattr(pytest, name)

    @staticmethod
    def raises(error, match=None):
        assert error is ValueError
        return pytest.raises((ArgumentError, DTypeError))


@pytest.fixture
def run(monkeypatch):
    """Runs one of their tests with our functions in the place of theirs."""

    def run_test(name, arguments, **options):
        monkeypatch.setattr(theirs, "pytest", OurWords())
        for function, ours in OURS.items():
            monkeypatch.setattr(theirs, function, partial(ours, **options) if options else ours)
        getattr(theirs, name)(**arguments)

    return run_test


@pytest.mark.parametrize(("name", "arguments"), [p for p in their_tests() if p.values[0] not in DIFFERENCES])
def test_scikit_learns_own_tests_pass(run, name, arguments):
    run(name, arguments)


def test_there_are_such_tests_of_each_function():
    names = {p.values[0] for p in their_tests()}
    assert {"test_log_loss", "test_brier_score_loss_binary", "test_d2_log_loss_score", *DIFFERENCES} <= names


@pytest.mark.parametrize(("name", "arguments"), [p for p in their_tests() if p.values[0] in DIFFERENCES])
def test_deliberate_differences_are_still_differences(run, name, arguments):
    with pytest.raises((AssertionError, XentError, TypeError, pytest.fail.Exception)):
        run(name, arguments)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_with_the_clip_that_scikit_learn_applies_its_test_of_the_clip_passes(monkeypatch, dtype):
    eps = float(np.finfo(dtype).eps)
    monkeypatch.setattr(theirs, "log_loss", partial(log_loss, clip=eps))
    theirs.test_log_loss_eps(dtype)
    one = np.array([1.0, 0.0], dtype)
    assert log_loss([0, 1], one, clip=eps) == pytest.approx(-math.log(eps), rel=1e-14)
    assert log_loss([0, 1], one) == math.inf


# S6: indicators, the order of labels, a single column, repeated names.

P = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.1, 0.1, 0.8], [0.4, 0.4, 0.2]])
Y = np.array([0, 2, 2, 1])
ONE_HOT = np.eye(3, dtype=int)[Y]


@pytest.mark.parametrize("kind", [int, bool, float, list])
@pytest.mark.parametrize("weight", [None, np.array([1.0, 0.5, 3.0, 0.0])], ids=["even", "weighted"])
@pytest.mark.parametrize("normalize", [True, False])
def test_indicators_are_the_labels_that_they_mark(normalize, weight, kind):
    indicators = ONE_HOT.tolist() if kind is list else ONE_HOT.astype(kind)
    options = {"normalize": normalize, "sample_weight": weight}
    assert log_loss(indicators, P, **options) == log_loss(Y, P, **options)
    theirs_says = metrics.log_loss(ONE_HOT, P, **options)
    assert log_loss(indicators, P, **options) == pytest.approx(theirs_says, rel=1e-14)


def test_indicators_of_two_classes_as_found():
    p, indicators = np.array([[0.7, 0.3], [0.35, 0.65]]), np.array([[1, 0], [0, 1]])
    total = -math.log(0.7) - math.log(0.65)
    assert log_loss(indicators, p, normalize=False) == pytest.approx(total, rel=1e-15)
    assert log_loss(indicators, p) == pytest.approx(total / 2, rel=1e-15)
    for labels in ([0, 1], [1, 0], ["b", "a"]):  # names for the columns, which indicators share with probabilities
        assert log_loss(indicators, p, labels=labels) == pytest.approx(total / 2, rel=1e-15)


def test_labels_name_the_columns_in_any_order():
    order = [2, 0, 1]
    assert log_loss(Y, P[:, order], labels=order) == log_loss(Y, P)
    assert d2_log_loss_score(Y, P[:, order], labels=order) == pytest.approx(d2_log_loss_score(Y, P), rel=1e-14)
    assert brier_score_loss(Y, P[:, order], labels=order) == pytest.approx(brier_score_loss(Y, P), rel=1e-14)
    spam = brier_score_loss(["ham", "spam"], [0.9, 0.2], labels=["spam", "ham"])
    assert spam == pytest.approx((0.1**2 + 0.2**2) / 2, rel=1e-14)


@pytest.mark.parametrize("function", [log_loss, brier_score_loss, d2_log_loss_score])
def test_one_column_is_the_probability_of_the_second_class(function):
    y, p = np.array([0, 1, 1, 0]), np.array([0.2, 0.7, 0.4, 0.1])
    expected = function(y, np.c_[1 - p, p])
    for column in (p, p[:, np.newaxis]):
        for label in (y, y[:, np.newaxis]):
            assert function(label, column) == pytest.approx(expected, rel=1e-15)


def test_distributions_as_labels_are_scored_by_their_cross_entropy():
    soft = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert log_loss(soft, P) == pytest.approx(-(soft * np.log(P)).sum(axis=1).mean(), rel=1e-14)
    base = -(soft.mean(axis=0) * np.log(soft.mean(axis=0))).sum()
    assert d2_log_loss_score(soft, P) == pytest.approx(1 - log_loss(soft, P) / base, rel=1e-13)


@pytest.mark.parametrize("function", [log_loss, brier_score_loss, d2_log_loss_score])
@pytest.mark.parametrize(
    ("error", "words", "truth", "options"),
    [
        (LabelError, "'b' twice", list("abcb"), {"labels": ["a", "b", "b"]}),
        (LabelError, "4 classes in labels for 3", ONE_HOT, {"labels": [0, 1, 2, 3]}),
        (DistributionError, "row 1 has 2 labels.*multilabel_log_loss", [[1, 0, 0], [1, 1, 0]] * 2, {}),
        (DistributionError, "row 0 has 0 labels", [[0, 0, 0], [1, 0, 0]] * 2, {}),
        (ShapeError, "2 columns of indicators for 3", [[1, 0], [0, 1]] * 2, {}),
        (ShapeError, "y_true, y_proba", [0, 1], {}),
        (DTypeError, "two dimensions", [["a", "b", "c"]] * 4, {}),
        (ShapeError, "sample_weight", Y, {"sample_weight": [1.0]}),
    ],
)
def test_labels_that_do_not_fit_are_named(function, error, words, truth, options):
    with pytest.raises(error, match=words):
        function(truth, P, **options)


def test_the_class_of_a_single_column_is_asked_for_where_it_is_not_clear():
    for y in (["no", "yes"], [2, 2]):
        with pytest.raises(LabelError, match="pos_label"):
            brier_score_loss(y, [0.1, 0.9])
    assert brier_score_loss(["no", "yes"], [0.1, 0.9], pos_label="yes") == pytest.approx(0.01, rel=1e-12)
    with pytest.raises(LabelError, match="pos_label"):
        brier_score_loss([0, 1], [0.1, 0.9], pos_label=7)
    with pytest.raises(ArgumentError, match="scale_by_half"):
        brier_score_loss([0, 1], [0.1, 0.9], scale_by_half="yes")


# Rows of several labels.


def test_multilabel_log_loss_is_the_mean_over_the_elements_of_the_binary_loss():
    rng = np.random.default_rng(0)
    t, q, weight = rng.integers(0, 2, (50, 4)), rng.random((50, 4)), rng.exponential(size=50)
    losses = -(t * np.log(q) + (1 - t) * np.log1p(-q))
    assert multilabel_log_loss(t, q) == pytest.approx(losses.mean(), rel=1e-13)
    assert multilabel_log_loss(t == 1, q, normalize=False) == pytest.approx(losses.sum(), rel=1e-13)
    weighted = np.average(losses.mean(axis=1), weights=weight)
    assert multilabel_log_loss(t, q, sample_weight=weight) == pytest.approx(weighted, rel=1e-13)
    # scikit-learn has no cost for the labels that a row lacks, and says so only if rows of q do not sum to 1.
    with pytest.warns(UserWarning, match="sum to one"):
        assert metrics.log_loss(t, q) == pytest.approx(-(t * np.log(q)).sum(axis=1).mean(), rel=1e-13)


def test_multilabel_log_loss_names_what_is_wrong():
    with pytest.raises(LabelError, match="expected 0 and 1"):
        multilabel_log_loss([[2, 0]], [[0.5, 0.5]])
    with pytest.raises(ShapeError, match="labels"):
        multilabel_log_loss([0, 1], [0.5, 0.5])
    with pytest.raises(DistributionError):
        multilabel_log_loss([[1, 0]], [[1.5, 0.5]])
    assert multilabel_log_loss([[1, 0]], [[0.0, 0.5]]) == math.inf
    assert multilabel_log_loss([[1]], [[0.0]], clip=0.25) == pytest.approx(math.log(4), rel=1e-15)


# Undefined, clipped, searched.


def test_d2_of_one_class_or_one_row_is_undefined_and_says_so():
    for y, p in (([1], [[0.5, 0.5]]), ([1, 1], [[0.5, 0.5]] * 2)):
        with pytest.warns(UndefinedMetricWarning, match="not well-defined"):
            assert math.isnan(d2_log_loss_score(y, p, labels=[0, 1]))
    assert d2_log_loss_score([0, 1], [[1.0, 0.0], [1.0, 0.0]]) == -math.inf


def test_a_clip_of_distributions_is_refused():
    with pytest.raises(ArgumentError, match="clip"):
        log_loss([[0.5, 0.5]], [[0.0, 1.0]], clip=0.1)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # scikit-learn's std of infinities
def test_a_search_with_an_impossible_label_needs_a_clip():
    """dotnet/machinelearning #2708: without one every candidate scores minus infinity, and the first wins."""
    x = np.r_[np.zeros((30, 1)), np.ones((30, 1)), [[5000.0]]]
    y = np.r_[np.zeros(30, int), np.ones(30, int), 0]
    grid, folds = {"C": [1e-3, 1e6]}, [(np.arange(60), np.arange(61))]
    search = partial(GridSearchCV, LogisticRegression(), grid, cv=folds, refit=False)
    with pytest.warns(UserWarning, match="non-finite"):
        assert (search(scoring=neg_log_loss).fit(x, y).cv_results_["mean_test_score"] == -math.inf).any()
    clipped = search(scoring=partial(neg_log_loss, clip=1e-6)).fit(x, y).cv_results_["mean_test_score"]
    assert np.isfinite(clipped).all()
    model = LogisticRegression().fit(x[:60], y[:60])
    assert math.isfinite(explained_log_loss(model, x, y, clip=1e-6))
    assert explained_log_loss(SimpleNamespace(predict_proba=lambda x: np.tile([0.0, 1.0], (61, 1)), classes_=[0, 1]),
                              x, y) == -math.inf  # fmt: skip
