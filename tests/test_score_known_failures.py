"""Where other scorers went wrong: each case by its thread (KNOWN_FAILURES, "Scoring"), and what xent says.

Those of ydata-profiling (#1579, #253: a report of 80 MB) are in test_score_report, a second one of
lm-evaluation-harness #3831 in test_score_compare.
"""

from __future__ import annotations

import math

import dask.dataframe
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.model_selection import cross_val_score

import xent
from xent.errors import ArgumentError, DistributionError, DTypeError, LabelError, ShapeError, XentError
from xent.scoring.sklearn import explained_log_loss, log_loss, multilabel_log_loss, neg_brier_score, neg_log_loss


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_sklearn_17399_24315_24515_28851_an_impossible_event_costs_the_same_in_every_dtype(dtype):
    """Clipped, it costs 36.04 in float64, 15.94 in float32 and 6.93 in float16."""
    p = np.array([[1.0, 0.0]], dtype)
    assert log_loss([1], p, labels=[0, 1]) == math.inf
    assert xent.score(p, [1]).impossible_rows == 1
    finite = sklearn_log_loss([1], p, labels=[0, 1])
    assert finite == pytest.approx(-math.log(np.finfo(dtype).eps), rel=1e-3), "scikit-learn clips no more"
    # What it says can be asked for, and is then written beside the result.
    clipped = xent.score(p, [1], clip=float(np.finfo(dtype).eps))
    assert clipped.cross_entropy.nats == pytest.approx(-math.log(np.finfo(dtype).eps), rel=1e-15)
    assert clipped.to_dict()["clip"] == np.finfo(dtype).eps


def test_sklearn_30910_the_order_of_labels_is_honoured():
    """scikit-learn sorts them: 36.04 in place of 0."""
    p = [[1.0, 0.0], [0.0, 1.0]]
    assert log_loss(["spam", "ham"], p, labels=["spam", "ham"]) == 0.0
    frame = pl.DataFrame({"y": ["spam", "ham"], "a": [1.0, 0.0], "b": [0.0, 1.0]})
    assert xent.score(frame, "y", proba=["a", "b"], classes=["spam", "ham"]).cross_entropy.nats == 0.0


def test_sklearn_4033_18523_a_class_missing_from_the_batch_and_one_class_only():
    p = [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]
    assert log_loss([0, 1], p, labels=[0, 1, 2]) == pytest.approx(math.log(2), rel=1e-15)
    assert log_loss([1, 1], [0.5, 0.5], labels=[0, 1]) == pytest.approx(math.log(2), rel=1e-15)
    with pytest.raises(LabelError, match="labels"):
        log_loss([0, 1], p)
    with pytest.raises(LabelError, match="7"):
        log_loss([0, 7], p, labels=[0, 1, 2])


def test_mljar_749_float32_probabilities_pass_the_check_of_their_sum():
    rng = np.random.default_rng(0)
    p = np.exp(rng.normal(size=(50, 1000)).astype(np.float32))
    p /= p.sum(axis=1, keepdims=True)
    assert (np.abs(p.astype(np.float64).sum(axis=1) - 1) > 1e-8).any(), "otherwise this test shows nothing"
    assert xent.score(p, np.zeros(50, int)).rows == 50
    assert xent.score(p.astype(np.float64), np.zeros(50, int)).rows == 50


def test_dask_ml_chunks_of_2_and_98_rows_are_weighted_by_their_rows():
    """It averages the means of the blocks: 1.159 in place of 0.056."""
    p = np.r_[np.full(2, 0.1), np.full(98, 0.99)]
    frame = pd.DataFrame({"y": np.ones(100, int), "p": p})
    frame = dask.dataframe.concat([dask.dataframe.from_pandas(part, npartitions=1) for part in (frame[:2], frame[2:])])
    assert frame.npartitions == 2
    found = xent.score(frame, "y", proba="p").cross_entropy.nats
    assert found == pytest.approx(-np.log(p).mean(), rel=1e-14)
    assert found == pytest.approx(0.056, abs=5e-4)
    assert -(math.log(0.1) + math.log(0.99)) / 2 == pytest.approx(1.156, abs=1e-3), "the mean of the means"


def test_hugging_face_evaluate_and_torchmetrics_perplexity_is_pooled_and_no_number_of_bits():
    """evaluate averages the perplexities of texts; torchmetrics calls a perplexity bits per word."""
    text = np.repeat([0, 1], [10, 1000])
    logp = np.where(text == 0, -5.0, -1.0)
    found = xent.score(pl.DataFrame({"text": text, "logp": logp}), log_prob="logp", by="text")
    assert found.perplexity == pytest.approx(math.exp(-logp.mean()), rel=1e-14)
    of_texts = [math.exp(s.cross_entropy.nats) for s in found.segments["text"]]
    assert np.mean(of_texts) > 20 * found.perplexity
    assert found.cross_entropy.bits == pytest.approx(math.log2(found.perplexity), rel=1e-14)


def test_lm_evaluation_harness_3831_the_test_is_paired():
    """Pairs that differ by a constant are told apart, whatever the rows' own spread."""
    loss = np.random.default_rng(0).exponential(size=50) * 10
    noise = np.random.default_rng(1).normal(size=50) * 0.01
    a = pl.DataFrame({"id": np.arange(50), "logp": -loss})
    b = pl.DataFrame({"id": np.arange(50), "logp": -(loss + np.maximum(0.1 + noise, -loss))})
    assert xent.compare(a, b, id="id", log_prob="logp").p_value < 1e-10


def test_sklearn_10157_23154_rows_of_several_labels_pay_for_the_labels_they_lack():
    """It reads indicators as one-hot: whoever gives every label the probability 1 has a loss of 0."""
    truth = np.array([[1, 0, 1], [0, 0, 1]])
    sure = np.full((2, 3), 1.0)
    with pytest.warns(UserWarning, match="sum to one"):
        assert sklearn_log_loss(truth, sure) == pytest.approx(0, abs=1e-12)
    assert multilabel_log_loss(truth, sure) == math.inf
    assert multilabel_log_loss(truth, np.full((2, 3), 0.5)) == pytest.approx(math.log(2), rel=1e-15)
    with pytest.raises(DistributionError, match="multilabel_log_loss"):
        log_loss(truth, sure / 3)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e3])
def test_sklearn_20169_30664_intervals_under_weights_are_those_of_weighted_rows(factor):
    """Weights are no counts of rows: their scale changes no interval, and a row of much weight widens it."""
    p, y = np.random.default_rng(0).dirichlet([2, 2], 400), np.random.default_rng(1).integers(0, 2, 400)
    even = xent.score(p, y, weight=np.full(400, factor)).cross_entropy
    plain = xent.score(p, y).cross_entropy
    assert (even.low, even.high) == pytest.approx((plain.low, plain.high), rel=1e-12)
    uneven = xent.score(p, y, weight=factor * np.where(np.arange(400) < 4, 100.0, 1.0)).cross_entropy
    assert uneven.standard_error > 2 * plain.standard_error


def test_sklearn_10891_and_h2o_3_5604_a_row_of_weight_0_is_a_row_that_is_not_there():
    p, y, weight = np.array([[0.5, 0.5], [0.0, 1.0], [0.2, 0.8]]), [0, 0, 1], [1.0, 0.0, 2.0]
    found, without = xent.score(p, y, weight=weight), xent.score(p[[0, 2]], [0, 1], weight=[1.0, 2.0])
    assert found.cross_entropy == without.cross_entropy
    assert found.rows == 2
    assert log_loss(y, p, sample_weight=weight) == log_loss([0, 1], p[[0, 2]], sample_weight=[1.0, 2.0])


def test_lm_eval_806_242_1544_and_llama_cpp_7111_bits_per_byte_are_all_bits_over_all_bytes():
    """Not the mean of the texts' quotients, and not bits per token, which another tokeniser changes."""
    logp, size = np.array([-8.0, -1.0, -2.0]), np.array([2.0, 10.0, 4.0])
    found = xent.score(logp, log_prob=True, bytes=size, characters=size / 2)
    assert found.per_byte.bits == pytest.approx(11 / 16 / math.log(2), rel=1e-15)
    assert found.per_character.bits == pytest.approx(2 * found.per_byte.bits, rel=1e-15)
    assert (-logp / size).mean() / math.log(2) > 2 * found.per_byte.bits
    # Two tokens of a text joined to one: the same bits, the same bytes.
    joined = xent.score(np.array([-9.0, -2.0]), log_prob=True, bytes=[12, 4])
    assert joined.per_byte.bits == pytest.approx(found.per_byte.bits, rel=1e-15)


# The front for scikit-learn.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_log_loss_is_scikit_learns_where_that_is_right(weighted, normalize):
    rng = np.random.default_rng(0)
    p, y = rng.dirichlet(np.ones(4), 200), rng.choice(list("abcd"), 200)
    weight = rng.exponential(size=200) if weighted else None
    ours = log_loss(y, p, normalize=normalize, sample_weight=weight)
    assert ours == pytest.approx(sklearn_log_loss(y, p, normalize=normalize, sample_weight=weight), rel=1e-13)
    binary = log_loss(y == "a", p[:, 0], normalize=normalize, sample_weight=weight)
    theirs = sklearn_log_loss(y == "a", p[:, 0], normalize=normalize, sample_weight=weight)
    assert binary == pytest.approx(theirs, rel=1e-13)


def test_scorers_work_in_cross_validation():
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500)
    ours = cross_val_score(model, x, y, scoring=neg_log_loss)
    assert ours == pytest.approx(cross_val_score(model, x, y, scoring="neg_log_loss"), rel=1e-12)
    explained = cross_val_score(model, x, y, scoring=explained_log_loss)
    assert explained == pytest.approx(cross_val_score(model, x, y, scoring="d2_log_loss_score"), rel=1e-12)
    assert (cross_val_score(model, x, y, scoring=neg_brier_score) < 0).all()


def test_a_fold_without_a_class_is_scored():
    x, y = load_iris(return_X_y=True)
    model = LogisticRegression(max_iter=500).fit(x, y)
    part = y != 1
    assert math.isfinite(neg_log_loss(model, x[part], y[part]))


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (ShapeError, "y_proba", {"y_proba": 0.5}),
        (ShapeError, "y_proba", {"y_proba": np.ones((1, 2, 2))}),
        (DTypeError, "y_proba", {"y_proba": [[0.5, 0.5], [1.0]]}),
        (DTypeError, "y_true", {"y_true": [[0], [0, 1]]}),
        (DTypeError, "labels", {"y_true": [object(), object()]}),
        (DTypeError, "labels", {"labels": 5}),
        (ShapeError, "weight", {"sample_weight": 5}),
        (DTypeError, "weight", {"sample_weight": ["a", "b"]}),
        (ShapeError, "weight", {"sample_weight": [1.0]}),
    ],
)
def test_bad_arguments_of_log_loss_are_named(error, words, arguments):
    with pytest.raises(error, match=words) as caught:
        log_loss(**{"y_true": [0, 1], "y_proba": [[0.5, 0.5], [0.25, 0.75]], **arguments})
    assert isinstance(caught.value, XentError)


@pytest.mark.parametrize("estimator", [None, LogisticRegression(), LinearRegression()], ids=lambda e: type(e).__name__)
def test_an_estimator_without_probabilities_or_classes_is_refused(estimator):
    for scorer in (neg_log_loss, explained_log_loss, neg_brier_score):
        with pytest.raises(ArgumentError, match="estimator"):
            scorer(estimator, [[1.0]], [0])
