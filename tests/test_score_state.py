"""A score as a sum: any division of the rows gives the same answer, and its figures are those of the definitions."""

from __future__ import annotations

import base64
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, d2_log_loss_score

from xent import information, likelihood
from xent.errors import ArgumentError, DataError, DTypeError, LabelError, ShapeError
from xent.scoring import ScoreState, loops
from xent.scoring.score import UNITS
from xent.scoring.sums import exactly, merged, values, zeros

CLASSES = 4


def predictions(rows=300, classes=CLASSES, seed=0):
    """Labels, distributions, weights and segments; the labels are drawn from hotter distributions than predicted."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, classes)) * 2
    labels = (logits / 2 + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return labels, information.softmax(logits), rng.exponential(size=rows), rng.choice(["a", "b", "c"], rows)


LABELS, PROBA, WEIGHT, SEGMENT = predictions()


def state(rows=slice(None), **options):
    first = np.arange(len(LABELS))[rows][0] if len(LABELS[rows]) else 0
    return ScoreState.from_batch(
        LABELS[rows], PROBA[rows], weight=WEIGHT[rows], by={"s": SEGMENT[rows]}, first_row=int(first), **options
    )


def close(a, b, ulps=4):
    """Compensated sums differ by rounding of the last operations only."""
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= ulps * 2.0**-52 * max(abs(a), abs(b))


# Any division of the rows.


@given(cuts=st.lists(st.integers(0, len(LABELS)), max_size=12), order=st.randoms(use_true_random=False))
def test_any_division_in_any_order_gives_the_same_score(cuts, order):
    edges = [0, *sorted(cuts), len(LABELS)]
    parts = [state(slice(a, b)) for a, b in pairwise(edges)]
    order.shuffle(parts)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole, found = state().finalize(), total.finalize()
    one, other = whole.to_dict(), found.to_dict()
    assert one.keys() == other.keys()
    assert all(close(other[name], one[name]) for name in one), (one, other)
    assert [(r.row, r.loss) for r in found.surprising] == [(r.row, r.loss) for r in whole.surprising]
    assert [s.value for s in found.segments["s"]] == [s.value for s in whole.segments["s"]]


@given(
    values_=st.lists(st.floats(0, 1e9, allow_subnormal=False), min_size=1, max_size=40),
    order=st.randoms(use_true_random=False),
)
def test_merged_sums_keep_what_addition_rounds_away(values_, order):
    exact = sum(map(exactly, (np.array([v, 0.0]) for v in values_)))
    order.shuffle(values_)
    total = zeros()
    for value in values_:
        total = merged(total, np.array([value, 0.0]))
    assert close(float(values(total)), float(exact), ulps=1)


def test_the_kernels_sums_are_exact_where_a_plain_sum_is_not():
    losses = np.tile([1e8, 1e-8, 3.0], 20_000)
    found = ScoreState.from_batch(None, log_prob=-losses)
    exact = math.fsum(losses)
    assert float(values(found.totals)[loops.LOSS]) == exact
    assert float(np.add.accumulate(losses)[-1]) != exact, "otherwise this test shows nothing"


def test_probabilities_counted_as_integers_are_those_added_as_floats():
    """Without weights a histogram counts bits, with a weight of 1 it adds numbers; the edges of bins are the same."""
    rng = np.random.default_rng(5)
    second = np.concatenate([[0.0, 1.0, 0.5, 0.25, 2.0**-21, 2.0**-20, 1 - 2.0**-20, 5e-324], rng.random(20_000) ** 9])
    proba, labels = np.stack([1 - second, second], axis=1), rng.integers(0, 2, len(second))
    counted, added = (ScoreState.from_batch(labels, proba, weight=w) for w in (None, np.ones(len(labels))))
    for name in ("one_vs_rest", "totals", "classes", "confusion", "confidence", "positive", "losses", "clipped"):
        np.testing.assert_allclose(values(getattr(counted, name)), values(getattr(added, name)), rtol=1e-15)
    of_class = values(counted.one_vs_rest)[1].sum(axis=0)
    assert of_class.tolist() == pytest.approx([len(second), math.fsum(second), labels.sum()], rel=1e-15)


@pytest.mark.parametrize("classes", [4, 120])
def test_an_array_by_columns_scores_as_one_by_rows(classes):
    labels, proba, *_ = predictions(classes=classes)
    proba[7] = np.nan
    by_rows, by_columns = (ScoreState.from_batch(labels, array) for array in (proba, np.asfortranarray(proba)))
    assert by_rows == by_columns


def test_rows_that_a_sum_would_not_keep_are_not_kept_before():
    """What `within` leaves out changes the part, and no sum."""
    labels, proba, *_ = predictions(rows=900)
    options = {"worst": 5, "sample": 20}
    first = ScoreState.from_batch(labels[:600], proba[:600], **options)
    rest = {"labels": labels[600:], "proba": proba[600:], "first_row": 600, **options}
    part, whole = ScoreState.from_batch(**rest, within=first), ScoreState.from_batch(**rest)
    assert len(part.sample) < len(whole.sample)
    assert len(part.surprising) < len(whole.surprising)
    assert first + part == first + whole


def test_no_rows_change_nothing():
    none = state(slice(0, 0))
    assert (
        (none + state()).finalize().to_dict() == state().finalize().to_dict() == (state() + none).finalize().to_dict()
    )
    assert math.isnan(none.finalize().cross_entropy.nats)
    assert none.finalize().log_likelihood.nats == 0


def test_json_both_ways_is_the_same_state_bit_for_bit():
    ids = np.array([f"row {i}" for i in range(len(LABELS))])
    before = state(ids=ids, classes=("w", "x", "y", "z"))
    after = ScoreState.from_json(before.to_json())
    assert after == before
    assert after.finalize().to_record() == before.finalize().to_record()
    assert json.loads(before.to_json())["schema"] == 2


@pytest.mark.parametrize("text", ["", "{}", '{"state": "xent score", "schema": 99}', "[1]"])
def test_what_is_no_state_is_refused(text):
    with pytest.raises(DataError, match="to_json"):
        ScoreState.from_json(text)


def edited(path, value):
    """The JSON of a state with one entry changed, or removed if the value is None."""
    ids = np.arange(len(LABELS))
    written = json.loads(ScoreState.from_batch(LABELS, PROBA, by={"s": SEGMENT}, ids=ids).to_json())
    *parents, last = path
    entry = written
    for name in parents:
        entry = entry[name]
    if value is None:
        del entry[last]
    else:
        entry[last] = value
    return json.dumps(written)


NUMBERS = {"dtype": "<f8", "shape": [2], "base64": "AAAAAAAAAAAAAAAAAAAAAA=="}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["totals"], None),
        (["totals"], NUMBERS),
        (["totals", "dtype"], "O"),
        (["totals", "base64"], "!"),
        (["form", "classes"], ["a", "b"]),
        (["form", "classes"], [1, 2, 3, 4]),
        (["form", "clip"], "x"),
        (["form", "by"], ["t"]),
        (["form", "soft"], True),
        (["form", "worst"], -1),
        (["form", "other"], 1),
        (["segments", "s", "d"], NUMBERS),
        (["invalid_rows"], -1),
        (["invalid_rows"], "x"),
        (["surprising", "key"], None),
        (["surprising", "likeliest"], None),
        (["surprising", "loss"], NUMBERS),
        (["sample", "p"], None),
        (["sample", "label"], {"list": [None] * len(LABELS), "shape": [len(LABELS)]}),
    ],
)
def test_a_state_whose_parts_do_not_fit_is_refused_at_once(path, value):
    with pytest.raises(DataError, match="to_json"):
        ScoreState.from_json(edited(path, value))


def test_labels_outside_the_classes_are_refused_in_json():
    text = ScoreState.from_batch(LABELS, PROBA).to_json()
    written = json.loads(text)
    encoded = written["sample"]["label"]["base64"]
    sevens = np.full(len(LABELS), 7).astype("<i8").tobytes()
    with pytest.raises(DataError, match="'label'"):
        ScoreState.from_json(text.replace(encoded, base64.b64encode(sevens).decode()))


@pytest.mark.parametrize("text", [None, 5, b"", "[" * 100_000, "null", '"state"'], ids=lambda text: str(text)[:9])
def test_what_is_no_text_of_a_state_is_refused(text):
    with pytest.raises(DataError, match="to_json"):
        ScoreState.from_json(text)


def test_states_of_different_forms_do_not_add():
    with pytest.raises(ArgumentError, match=r"clip None and 0\.1"):
        state() + state(clip=0.1)


# What the figures are.


def test_the_mean_is_the_cross_entropy_of_the_definitions():
    score = ScoreState.from_batch(LABELS, PROBA).finalize()
    mean = float(likelihood.negative_log_likelihood(LABELS, PROBA, reduction="mean"))
    assert close(score.cross_entropy.nats, mean, ulps=32)
    assert score.cross_entropy.bits == score.cross_entropy.nats / math.log(2)
    assert close(score.perplexity, math.exp(mean), ulps=64)
    assert close(score.log_likelihood.nats, float(likelihood.log_likelihood(LABELS, PROBA)), ulps=32)
    assert close(score.likelihood_per_row, math.exp(-mean), ulps=64)
    assert score.uniform.nats == math.log(CLASSES)
    frequencies = np.bincount(LABELS) / len(LABELS)
    assert close(score.base_rate.nats, float(information.entropy(frequencies)), ulps=8)


def test_figures_agree_with_scikit_learn():
    score = ScoreState.from_batch(LABELS, PROBA).finalize()
    assert close(score.brier, brier_score_loss(LABELS, PROBA, scale_by_half=False), ulps=64)
    assert close(score.explained, d2_log_loss_score(LABELS, PROBA), ulps=64)
    assert score.accuracy == (PROBA.argmax(axis=1) == LABELS).mean()


def test_the_interval_is_students():
    losses = np.array([0.1, 0.4, 0.7, 2.0, 0.3])
    ce = ScoreState.from_batch(None, log_prob=-losses).finalize().cross_entropy
    assert close(ce.standard_error, losses.std(ddof=1) / math.sqrt(5), ulps=16)
    assert close(ce.high - ce.nats, 2.7764451051977987 * ce.standard_error, ulps=32)  # t(0.975, 4)


def test_the_interval_covers_the_truth_nineteen_times_in_twenty():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        ce = ScoreState.from_batch(None, log_prob=-rng.exponential(size=200)).finalize().cross_entropy
        covered += ce.low <= 1 <= ce.high
    # 400 throws of a coin with 0.95: three standard deviations are 13.
    assert abs(covered - 380) <= 13 + 8  # a t interval of 200 exponential losses covers about 2% less


def test_weights_are_repetitions():
    times = np.array([3, 1, 2] * 100)
    weighted = ScoreState.from_batch(LABELS, PROBA, weight=times).finalize()
    repeated = ScoreState.from_batch(np.repeat(LABELS, times), np.repeat(PROBA, times, axis=0)).finalize()
    for name in ("brier", "accuracy", "calibration_error", "perplexity", "explained", "cross_entropy_possible"):
        assert close(getattr(weighted, name), getattr(repeated, name), ulps=16), name
    assert weighted.weight == repeated.rows
    assert weighted.rows == len(LABELS)


def test_segments_and_classes_add_up_to_the_whole():
    score = state().finalize()
    for parts in (score.segments["s"], score.classes):
        assert close(math.fsum(p.share_of_loss for p in parts), 1.0, ulps=8)
        assert close(math.fsum(p.weight for p in parts), score.weight, ulps=8)
    one = next(s for s in score.segments["s"] if s.value == "b")
    own = ScoreState.from_batch(LABELS[SEGMENT == "b"], PROBA[SEGMENT == "b"], weight=WEIGHT[SEGMENT == "b"]).finalize()
    assert close(one.cross_entropy.nats, own.cross_entropy.nats)
    assert close(one.accuracy, own.accuracy)


def test_logits_score_as_their_softmax_and_beyond_its_range():
    logits = np.log(PROBA) + 700
    score = ScoreState.from_batch(LABELS, logits=logits).finalize()
    assert score.cross_entropy.nats == pytest.approx(
        ScoreState.from_batch(LABELS, PROBA).finalize().cross_entropy.nats, rel=700 * 2.0**-52 * 4
    )
    far = ScoreState.from_batch([1], logits=[[0.0, -2000.0]]).finalize()
    assert far.cross_entropy.nats == 2000.0
    assert far.impossible_rows == 0


@pytest.mark.parametrize("classes", [4, 100])
@pytest.mark.parametrize("soft", [False, True])
def test_float32_is_widened_and_then_scored_as_float64(classes, soft):
    """To the last bit: nothing is computed in float32, in short rows and in long ones."""
    labels, p, *_ = predictions(classes=classes)
    narrow = p.astype(np.float32)
    labels = np.eye(classes)[labels] if soft else labels
    one, other = (ScoreState.from_batch(labels, q, tolerance=1e-4).finalize() for q in (narrow, narrow.astype(float)))
    assert one.to_record() == other.to_record()


@pytest.mark.parametrize("classes", [63, 64, 100, 256, 257, 1000])
def test_rows_of_many_classes_score_as_the_definitions_say(classes):
    labels, p, *_ = predictions(50, classes)
    score = ScoreState.from_batch(labels, p).finalize()
    loss = float(likelihood.negative_log_likelihood(labels, p, reduction="mean"))
    assert close(score.cross_entropy.nats, loss, ulps=32)
    assert score.brier == pytest.approx(((p - np.eye(classes)[labels]) ** 2).sum(axis=1).mean(), rel=1e-13)
    assert score.accuracy == (p.argmax(axis=1) == labels).mean()
    assert all(row.predicted == str(p[row.row].argmax()) for row in score.surprising)
    p[3, classes // 2] = math.nan
    p[4, 0] = -1e-3
    p[5] *= 1.1
    assert sorted(ScoreState.from_batch(labels, p).invalid["row"].tolist()) == [3, 4, 5]


def test_the_first_of_equal_probabilities_is_predicted():
    for classes in (4, 700):
        p = np.zeros((3, classes))
        p[0, [1, 3]] = p[1, [2, classes - 1]] = p[2, [0, classes - 1]] = 0.5
        found = ScoreState.from_batch([3, 2, classes - 1], p).finalize()
        assert {row.row: row.predicted for row in found.surprising} == {0: "1", 1: "2", 2: "0"}


def test_one_hot_soft_labels_are_hard_labels():
    hard = ScoreState.from_batch(LABELS, PROBA).finalize().to_dict()
    soft = ScoreState.from_batch(np.eye(CLASSES)[LABELS], PROBA).finalize().to_dict()
    assert soft.pop("entropy_nats") == 0
    for name, value in hard.items():
        assert close(soft[name], value, ulps=8), name


def test_soft_labels_cost_their_cross_entropy_and_tell_their_entropy():
    rng = np.random.default_rng(2)
    target = rng.dirichlet(np.ones(CLASSES), len(PROBA))
    score = ScoreState.from_batch(target, PROBA).finalize()
    assert close(score.cross_entropy.nats, float(information.cross_entropy(target, PROBA).mean()), ulps=32)
    assert close(score.entropy.nats, float(information.entropy(target).mean()), ulps=32)
    logits = ScoreState.from_batch(target, logits=np.log(PROBA)).finalize()
    assert close(logits.cross_entropy.nats, score.cross_entropy.nats, ulps=32)


def test_one_column_is_the_probability_of_class_1():
    two = ScoreState.from_batch(LABELS % 2, np.stack([1 - PROBA[:, 0], PROBA[:, 0]], axis=1))
    assert ScoreState.from_batch(LABELS % 2, PROBA[:, 0]).finalize().to_dict() == two.finalize().to_dict()


def test_impossible_rows_are_infinite_counted_and_named():
    p = PROBA.copy()
    for row in (7, 11):
        p[row] = np.roll(np.eye(CLASSES)[LABELS[row]], 1)
    score = ScoreState.from_batch(LABELS, p, ids=np.arange(len(p)) + 1000).finalize()
    assert score.cross_entropy.nats == math.inf
    assert score.impossible_rows == 2
    assert {row.id for row in score.surprising if row.loss == math.inf} == {"1007", "1011"}
    keep = np.setdiff1d(np.arange(len(p)), [7, 11])
    others = ScoreState.from_batch(LABELS[keep], p[keep]).finalize()
    assert close(score.cross_entropy_possible, others.cross_entropy.nats)
    assert score.perplexity == math.inf
    assert score.likelihood_per_row == 0


def test_a_clip_is_counted_recorded_and_its_sensitivity_is_what_it_would_be():
    p = PROBA.copy()
    p[3] = np.roll(np.eye(CLASSES)[LABELS[3]], 1)
    p[5, :] = 1e-9
    p[5, (LABELS[5] + 1) % CLASSES] = 1 - 3e-9
    plain = ScoreState.from_batch(LABELS, p).finalize()
    for eps, mean in plain.clip_sensitivity:
        clipped = ScoreState.from_batch(LABELS, p, clip=eps).finalize()
        assert close(clipped.cross_entropy.nats, mean, ulps=16), eps
        assert clipped.to_dict()["clip"] == eps
        assert clipped.clipped_rows == (np.take_along_axis(p, LABELS[:, None], 1) < eps).sum()
        assert clipped.impossible_rows == 1


def test_rows_that_are_no_distribution_are_counted_and_named_and_in_no_sum():
    p = PROBA.copy()
    p[2] *= 1.1
    p[4, 0] = math.nan
    p[6, :2] = [-0.1, p[6, :2].sum() + 0.1]
    found = ScoreState.from_batch(LABELS, p)
    keep = np.setdiff1d(np.arange(len(p)), [2, 4, 6])
    assert found.invalid_rows == 3
    assert sorted(found.invalid["row"].tolist()) == [2, 4, 6]
    rest = ScoreState.from_batch(LABELS[keep], p[keep]).finalize()
    score = found.finalize()
    assert close(score.cross_entropy.nats, rest.cross_entropy.nats)
    assert score.rows == rest.rows
    reasons = {row["row"]: row["reason"] for row in score.to_record()["invalid"]}
    assert reasons == {2: loops.REASONS[2], 4: loops.REASONS[1], 6: loops.REASONS[1]}


def test_the_worst_rows_and_what_they_carry():
    score = ScoreState.from_batch(LABELS, PROBA).finalize()
    losses = np.sort(-np.log(PROBA[np.arange(len(LABELS)), LABELS]))[::-1]
    assert np.allclose([row.loss for row in score.surprising], losses[:50], rtol=1e-15)
    worst = score.surprising[0]
    assert worst.label == str(LABELS[worst.row])
    assert worst.predicted == str(PROBA[worst.row].argmax()) == worst.likeliest[0][0]
    for share, carried in score.concentration:
        exact = losses[: round(share * len(losses))].sum() / losses.sum()
        # A bin is an eighth of an octave wide, and all its rows count with its mean.
        assert carried == pytest.approx(exact, abs=0.125 * losses[0] / losses.sum() + 0.005), share


def test_every_figure_has_a_unit():
    figures = state(clip=1e-3).finalize().to_dict() | ScoreState.from_batch(LABELS, PROBA).finalize().to_dict()
    assert set(figures) <= set(UNITS)
    assert all(type(value) is float for value in figures.values())
    json.dumps(state().finalize().to_record(), allow_nan=False)


# What cannot be scored.


@pytest.mark.parametrize(
    ("error", "words", "arguments"),
    [
        (LabelError, "4 at row 1", {"labels": [0, 4], "proba": PROBA[:2]}),
        (LabelError, "-1 at row 0", {"labels": [-1, 0], "proba": PROBA[:2]}),
        (ShapeError, "labels", {"labels": [0], "proba": PROBA[:2]}),
        (ShapeError, "weight", {"labels": [0, 1], "proba": PROBA[:2], "weight": [1.0]}),
        (ShapeError, "ids", {"labels": [0, 1], "proba": PROBA[:2], "ids": [1]}),
        (ArgumentError, "exactly one", {"labels": [0, 1], "proba": PROBA[:2], "logits": PROBA[:2]}),
        (ArgumentError, "exactly one", {"labels": [0, 1]}),
        (ArgumentError, "clip", {"labels": [0, 1], "proba": PROBA[:2], "clip": 0.0}),
        (ArgumentError, "classes", {"labels": [0, 1], "proba": PROBA[:2], "classes": ("a", "a", "b", "c")}),
        (DTypeError, "labels", {"labels": ["a", "b"], "proba": PROBA[:2]}),
        (DTypeError, "proba", {"labels": [0, 1], "proba": [["a", "b"], ["c", "d"]]}),
        (ArgumentError, "entropy", {"labels": [0, 1], "proba": PROBA[:2], "entropy": [1.0, 1.0]}),
        (ArgumentError, "clip", {"labels": [0, 1], "proba": PROBA[:2], "clip": "x"}),
        (ArgumentError, "tolerance", {"labels": [0, 1], "proba": PROBA[:2], "tolerance": -1}),
        (ArgumentError, "worst", {"labels": [0, 1], "proba": PROBA[:2], "worst": -1}),
        (ArgumentError, "sample", {"labels": [0, 1], "proba": PROBA[:2], "sample": "x"}),
        (ArgumentError, "first_row", {"labels": [0, 1], "proba": PROBA[:2], "first_row": 1.5}),
        (ArgumentError, "by", {"labels": [0, 1], "proba": PROBA[:2], "by": ["s"]}),
        (ArgumentError, "classes", {"labels": [0, 1], "proba": PROBA[:2], "classes": 5}),
        (DTypeError, "labels", {"labels": [[0, 1], [1]], "proba": PROBA[:2]}),
        (DTypeError, "labels", {"labels": [["a"] * 4] * 2, "proba": PROBA[:2]}),
        (DTypeError, "weight", {"labels": [0, 1], "proba": PROBA[:2], "weight": [[1, 2], [3]]}),
        (ShapeError, "log_prob", {"labels": None, "log_prob": 5}),
    ],
)
def test_arguments_that_do_not_fit_are_named(error, words, arguments):
    with pytest.raises(error, match=words):
        ScoreState.from_batch(**arguments)
