"""The figures of a score by other means: clusters, text, calibration of classes, components, confusion, many labels."""

from __future__ import annotations

import base64
import json
import math
from itertools import pairwise

import dask.dataframe
import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import confusion_matrix, d2_log_loss_score

import xent
from xent.errors import ArgumentError, DataError, LabelError, ShapeError
from xent.information import softmax
from xent.scoring import ScoreState
from xent.scoring.sklearn import log_loss, multilabel_log_loss

RNG = np.random.default_rng(11)
ROWS, CLASSES = 600, 3
LOGITS = 1.5 * RNG.normal(size=(ROWS, CLASSES))
PROBA = softmax(LOGITS)
LABELS = (LOGITS / 2 + RNG.gumbel(size=LOGITS.shape)).argmax(axis=1)
WEIGHT = RNG.exponential(size=ROWS)
USER = RNG.integers(0, 60, ROWS)
SEGMENT = np.array(["a", "b"])[RNG.integers(0, 2, ROWS)]
BYTES = RNG.integers(1, 9, ROWS)
LOSS = -np.log(PROBA[np.arange(ROWS), LABELS])


def interval_of(loss, weight, size=None, units=None):
    """Ratio of sums with Student's interval, by sums over the units."""
    size = np.ones(len(loss)) if size is None else size
    units = np.arange(len(loss)) if units is None else units
    mean = (weight * loss).sum() / (weight * size).sum()
    sums = np.array([(weight * (loss - mean * size))[units == u].sum() for u in np.unique(units)])
    error = math.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / (weight * size).sum()
    t = stats.t.ppf(0.975, len(sums) - 1)
    return mean, mean - t * error, mean + t * error


def ends(estimate):
    return estimate.nats, estimate.low, estimate.high


# Clusters.


@pytest.mark.parametrize("weight", [np.ones(ROWS), WEIGHT], ids=["even", "weighted"])
def test_intervals_by_cluster_are_those_of_the_sums_of_the_clusters(weight):
    found = xent.score(PROBA, LABELS, weight=weight, cluster=USER, by={"s": SEGMENT})
    assert ends(found.cross_entropy) == pytest.approx(interval_of(LOSS, weight, units=USER), rel=1e-11)
    assert found.clusters == len(np.unique(USER)) == found.to_dict()["clusters"]
    for segment in found.segments["s"]:
        rows = segment.value == SEGMENT
        expected = interval_of(LOSS[rows], weight[rows], units=USER[rows])
        assert ends(segment.cross_entropy) == pytest.approx(expected, rel=1e-11)


def test_the_interval_by_cluster_is_that_of_compare():
    """Against predictions that are certain and right, whose loss is 0, a difference is the loss."""
    frame = pl.DataFrame({"id": np.arange(ROWS), "logp": -LOSS, "user": USER})
    certain = frame.with_columns(logp=pl.lit(0.0))
    compared = xent.compare(frame, certain, id="id", log_prob="logp", cluster="user").difference
    assert ends(xent.score(frame, log_prob="logp", cluster="user").cross_entropy) == pytest.approx(
        ends(compared), rel=1e-11
    )


def test_copies_of_a_row_are_one_cluster_and_tell_nothing_new():
    one = xent.score(PROBA, LABELS)
    copies = np.repeat(np.arange(ROWS), 5)
    six = xent.score(PROBA[copies], LABELS[copies], cluster=copies)
    assert ends(six.cross_entropy) == pytest.approx(ends(one.cross_entropy), rel=1e-11)
    temperature = six.temperature
    assert temperature.gain_high - temperature.gain_low > 1.5 * (
        xent.score(PROBA[copies], LABELS[copies]).temperature.gain_high
        - xent.score(PROBA[copies], LABELS[copies]).temperature.gain_low
    )


@pytest.mark.parametrize("kind", [int, str, object])
def test_clusters_named_by_numbers_and_by_text_are_the_same_in_any_division(kind, tmp_path):
    names = USER.astype(str).astype(object) if kind is object else USER.astype(kind)
    expected = xent.score(PROBA, LABELS, cluster=USER, by={"s": SEGMENT}, bytes=BYTES)
    parts = [
        ScoreState.from_batch(
            LABELS[a:b], PROBA[a:b], cluster=names[a:b], by={"s": SEGMENT[a:b]}, bytes=BYTES[a:b], first_row=a
        )
        for a, b in pairwise([0, 1, 250, 251, ROWS])
    ]
    together = parts[2] + parts[0] + parts[3] + parts[1]
    again = ScoreState.from_json(together.to_json())
    assert again == together
    found = again.finalize()
    assert found.clusters == expected.clusters
    assert ends(found.per_byte) == pytest.approx(ends(expected.per_byte), rel=1e-12)
    for a, b in zip(found.segments["s"], expected.segments["s"], strict=True):
        assert ends(a.cross_entropy) == pytest.approx(ends(b.cross_entropy), rel=1e-12)
    columns = {f"p_{k}": PROBA[:, k] for k in range(CLASSES)}
    frame = pl.DataFrame({"y": LABELS, "user": USER, "bytes": BYTES, "s": SEGMENT, **columns})
    frame.write_csv(tmp_path / "p.csv")
    roles = {"proba": "p_*", "cluster": "user", "bytes": "bytes", "by": "s"}
    assert xent.score(tmp_path / "p.csv", "y", **roles).to_dict() == pytest.approx(expected.to_dict(), rel=1e-12)


def test_workers_of_dask_return_clusters_and_lengths():
    columns = {f"p_{k}": PROBA[:, k] for k in range(CLASSES)}
    frame = pd.DataFrame({"y": LABELS, "user": USER, "bytes": BYTES, "s": SEGMENT, **columns})
    roles = {"proba": "p_*", "cluster": "user", "bytes": "bytes", "by": "s"}
    found = xent.score(dask.dataframe.from_pandas(frame, npartitions=3), "y", **roles).to_dict()
    assert found == pytest.approx(xent.score(frame, "y", **roles).to_dict(), rel=1e-12)


def test_a_missing_cluster_is_a_cluster_and_one_cluster_has_no_interval():
    user = USER.astype(object)
    user[user == 3] = None
    assert xent.score(PROBA, LABELS, cluster=user).clusters == len(np.unique(USER))
    assert math.isnan(xent.score(PROBA, LABELS, cluster=np.zeros(ROWS)).cross_entropy.low)


def damaged(change):
    """The JSON of a state with clusters, after a change of its first table of clusters."""
    state = ScoreState.from_batch(LABELS[:20], PROBA[:20], cluster=USER[:20], by={"s": SEGMENT[:20]})
    written = json.loads(state.to_json())
    change(written)
    return json.dumps(written)


def numbers_of(array):
    return {"dtype": array.dtype.str, "shape": list(array.shape), "base64": base64.b64encode(array).decode()}


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.pop("clusters"),
        lambda w: w["clusters"].update(key=numbers_of(np.arange(3, dtype="<u8"))),
        lambda w: w["clusters"].update(key=w["clusters"]["sums"]),
        lambda w: w["clusters"].update(w["segment_clusters"]["s"], key=numbers_of(np.zeros(2, "<u8"))),
        lambda w: w["clusters"]["sums"].update(numbers_of(np.full(w["clusters"]["sums"]["shape"], np.nan))),
        lambda w: w["clusters"]["sums"].update(numbers_of(np.full(w["clusters"]["sums"]["shape"], -1.0))),
        lambda w: w["segment_clusters"].update(t=w["segment_clusters"]["s"]),
        lambda w: w["form"].update(clustered=False),
        lambda w: w["sample"].pop("cluster"),
    ],
)
def test_clusters_that_no_rows_make_are_refused(change):
    assert ScoreState.from_json(damaged(lambda written: None)).rows == 20
    with pytest.raises(DataError, match="to_json"):
        ScoreState.from_json(damaged(change))


# Bytes and characters.


@pytest.mark.parametrize("cluster", [None, USER], ids=["rows", "clusters"])
@pytest.mark.parametrize("unit", ["byte", "character"])
def test_bits_per_byte_are_all_bits_over_all_bytes(unit, cluster):
    options = {"weight": WEIGHT, "by": {"s": SEGMENT}, "cluster": cluster}
    found = xent.score(-LOSS, log_prob=True, **{f"{unit}s": BYTES}, **options)
    estimate = getattr(found, f"per_{unit}")
    assert ends(estimate) == pytest.approx(interval_of(LOSS, WEIGHT, BYTES, cluster), rel=1e-11)
    figures = found.to_dict()
    assert figures[f"bits_per_{unit}"] == pytest.approx(estimate.nats / math.log(2), rel=1e-15)
    assert figures[f"bits_per_{unit}_low"] == pytest.approx(estimate.low / math.log(2), rel=1e-15)
    assert f"bits_per_{'character' if unit == 'byte' else 'byte'}" not in figures
    for segment in found.segments["s"]:
        rows = segment.value == SEGMENT
        bits = (WEIGHT * LOSS)[rows].sum() / (WEIGHT * BYTES)[rows].sum() / math.log(2)
        assert getattr(segment, f"bits_per_{unit}") == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (DataError, "-1 in row 2", {"bytes": np.where(np.arange(ROWS) == 2, -1, 1)}),
        (DataError, "nan in row 0", {"characters": np.full(ROWS, math.nan)}),
        (ArgumentError, "characters.*numbers", {"characters": SEGMENT}),
        (ShapeError, "cluster", {"cluster": USER[:-1]}),
    ],
)
def test_lengths_that_are_none_are_named(error, words, options):
    with pytest.raises(error, match=words):
        xent.score(PROBA, LABELS, **options)


def test_no_bytes_at_all_are_no_figure():
    found = xent.score(PROBA, LABELS, bytes=np.zeros(ROWS))
    assert math.isnan(found.per_byte.nats)
    impossible = xent.score(np.eye(2), [1, 0], bytes=[1, 1])
    assert impossible.per_byte.nats == math.inf


# Calibration.


def test_reliability_of_class_1_of_two_is_that_of_its_probability():
    p, y = PROBA[:, 0], (LABELS == 0).astype(int)
    found = xent.score(p, y, weight=WEIGHT).reliability_class_1
    place = np.floor(20 * p).astype(int)
    for b in found:
        rows = place == round(b.low * 20)
        assert b.claimed == pytest.approx(np.average(p[rows], weights=WEIGHT[rows]), rel=1e-12)
        assert b.correct == pytest.approx(np.average(y[rows], weights=WEIGHT[rows]), rel=1e-12)
        assert b.correct_low <= b.correct <= b.correct_high
    assert len(found) == len(np.unique(place))
    assert min(b.low for b in found) < 0.5, "unlike the bins of the predicted class"
    assert xent.score(PROBA, LABELS).reliability_class_1 == ()


def brute_force_error(p, y, weight, edges):
    place = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, len(edges) - 2)
    total = 0.0
    for k in np.unique(place):
        rows = place == k
        total += abs((weight * (p - y))[rows].sum()) / weight.sum()
    return total


@pytest.mark.parametrize("weight", [np.ones(ROWS), WEIGHT], ids=["even", "weighted"])
def test_classwise_error_is_that_of_16_equal_bins(weight):
    edges = np.linspace(0, 1, 17)
    expected = [brute_force_error(PROBA[:, c], c == LABELS, weight, edges) for c in range(CLASSES)]
    assert xent.score(PROBA, LABELS, weight=weight).classwise_error == pytest.approx(np.mean(expected), rel=1e-12)


def test_adaptive_error_has_bins_of_equal_weight():
    """Sixteen probabilities in bins of their own, equally often: each is a bin, however near to each other they are."""
    p = np.concatenate([np.ldexp(1.1, -np.arange(3, 19)) for _ in range(50)])
    y = (np.random.default_rng(5).random(len(p)) < 3 * p).astype(int)
    expected = np.mean([abs((y - p)[p == value].sum()) for value in np.unique(p)]) * 16 / len(p)
    found = xent.score(p, y)
    assert found.adaptive_error == pytest.approx(expected, rel=1e-12)
    # In bins of equal width all but two of them are together.
    assert found.classwise_error < expected
    # Where all probabilities are the same there is one bin.
    same = xent.score(np.full(100, 0.3), np.arange(100) % 2)
    assert same.adaptive_error == pytest.approx(0.2, rel=1e-12)


def test_calibrated_predictions_have_small_errors_and_one_certain_mistake_the_largest():
    labels = (LOGITS + np.random.default_rng(0).gumbel(size=LOGITS.shape)).argmax(axis=1)
    calibrated, wrong = xent.score(PROBA, labels), xent.score(np.array([[0.0, 1.0]]), [0])
    assert (
        calibrated.classwise_error
        < xent.score(PROBA**3 / (PROBA**3).sum(axis=1, keepdims=True), labels).classwise_error
    )
    assert wrong.classwise_error == wrong.adaptive_error == 1.0


# The components of the loss.


def test_each_part_is_the_mean_over_the_rows_and_its_error_that_of_resampled_rows():
    # Classes of different frequencies: the entropy of equal ones is at its maximum, and changes in second order only.
    labels = (LOGITS / 2 + [1.5, 0.0, -1.0] + RNG.gumbel(size=LOGITS.shape)).argmax(axis=1)
    found = xent.score(PROBA, labels).decomposition
    rng = np.random.default_rng(0)
    resampled = {part: [] for part in found}
    for _ in range(150):
        rows = rng.integers(0, ROWS, ROWS)
        for part, estimate in ScoreState.from_batch(labels[rows], PROBA[rows]).finalize().decomposition.items():
            resampled[part].append(estimate.nats)
    for part, estimate in found.items():
        assert estimate.low < estimate.nats < estimate.high
        # 150 resamples know a standard deviation to 6%; the isotonic fit changes with the rows, in second order.
        assert np.std(resampled[part]) == pytest.approx(estimate.standard_error, rel=0.3), part
    against_rest = [c.against_rest for c in xent.score(PROBA, labels).classes]
    assert found["miscalibration"].nats == pytest.approx(np.mean([d.miscalibration for d in against_rest]), rel=1e-12)


def test_the_error_of_a_part_falls_with_all_rows_and_not_with_those_of_the_sample():
    many = np.tile(np.arange(ROWS), 20)
    few, lots = xent.score(PROBA, LABELS).decomposition, xent.score(PROBA[many], LABELS[many]).decomposition
    for part in few:
        assert lots[part].standard_error == pytest.approx(few[part].standard_error / math.sqrt(20), rel=0.1)


def test_calibrated_predictions_do_not_seem_much_miscalibrated():
    labels = (LOGITS + np.random.default_rng(1).gumbel(size=LOGITS.shape)).argmax(axis=1)
    assert xent.score(PROBA, labels).decomposition["miscalibration"].low < 0.01
    assert xent.score(PROBA, LABELS).decomposition["miscalibration"].low > 0.01


# Confusion, normalised entropy.


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["even", "weighted"])
def test_the_confusion_matrix_is_scikit_learns(weight):
    found = np.array(xent.score(PROBA, LABELS, weight=weight).confusion)
    expected = confusion_matrix(LABELS, PROBA.argmax(axis=1), sample_weight=weight, normalize="all")
    assert found == pytest.approx(expected, rel=1e-12)
    soft = np.array(xent.score(PROBA, np.eye(CLASSES)[LABELS], weight=weight).confusion)
    assert soft == pytest.approx(expected, rel=1e-12)


def test_more_than_100_classes_have_no_matrix():
    p = np.full((5, 101), 1 / 101)
    found = xent.score(p, [0, 1, 2, 3, 4])
    assert found.confusion == ()
    assert math.isnan(found.classwise_error)
    assert math.isnan(found.decomposition["uncertainty"].nats)


def test_normalised_entropy_is_what_is_not_explained():
    found = xent.score(PROBA, LABELS)
    assert found.normalised_entropy == pytest.approx(1 - d2_log_loss_score(LABELS, PROBA), rel=1e-12)


# Several labels to a row.

TAGS = ["red", "round", "small"]
INDICATORS = RNG.integers(0, 2, (ROWS, len(TAGS)))
Q = np.where(INDICATORS == 1, 0.9, 0.2) * RNG.random((ROWS, len(TAGS))) + 0.05


def test_a_multilabel_score_is_the_mean_over_rows_and_labels_with_rows_as_clusters():
    found = xent.score(Q, INDICATORS, multilabel=True, classes=TAGS, weight=WEIGHT, id=np.arange(ROWS))
    mean = multilabel_log_loss(INDICATORS, Q, sample_weight=WEIGHT)
    assert found.cross_entropy.nats == pytest.approx(mean, rel=1e-13)
    per_row = -(INDICATORS * np.log(Q) + (1 - INDICATORS) * np.log1p(-Q))
    expected = interval_of(per_row.reshape(-1), np.repeat(WEIGHT, 3), units=np.repeat(np.arange(ROWS), 3))
    assert ends(found.cross_entropy) == pytest.approx(expected, rel=1e-11)
    assert (found.rows, found.clusters) == (3 * ROWS, ROWS)
    for segment in found.segments["label"]:
        c = TAGS.index(segment.value)
        assert segment.cross_entropy.nats == pytest.approx(
            log_loss(INDICATORS[:, c], Q[:, c], sample_weight=WEIGHT), rel=1e-12
        )
    worst = np.unravel_index(per_row.argmax(), per_row.shape)
    assert found.surprising[0].id == f"{worst[0]}/{TAGS[worst[1]]}"
    assert "pairs of a row and a label" in " ".join(found.warnings)


def test_a_multilabel_table_is_scored_as_its_arrays(tmp_path):
    columns = {f"t_{t}": INDICATORS[:, k] for k, t in enumerate(TAGS)} | {f"p_{t}": Q[:, k] for k, t in enumerate(TAGS)}
    pl.DataFrame(columns).write_parquet(tmp_path / "tags.parquet")
    found = xent.score(tmp_path / "tags.parquet", "t_*", proba="p_*", multilabel=True)
    expected = xent.score(Q, INDICATORS, multilabel=True, classes=TAGS)
    assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-12)
    logits = xent.score(np.log(Q / (1 - Q)), INDICATORS, logits=True, multilabel=True)
    assert logits.cross_entropy.nats == pytest.approx(expected.cross_entropy.nats, rel=1e-12)


def test_what_is_no_table_of_indicators_is_named():
    with pytest.raises(LabelError, match="row 1 has a value other than 0 and 1"):
        xent.score(Q, np.where(np.arange(ROWS)[:, np.newaxis] == 1, 2, INDICATORS), multilabel=True)
    with pytest.raises(ShapeError, match="multilabel"):
        xent.score(Q, INDICATORS[:, :2], multilabel=True)
    with pytest.raises(ArgumentError, match="multilabel"):
        xent.score(-LOSS, log_prob=True, multilabel=True)
