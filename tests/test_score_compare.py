"""`xent.compare`: paired, with the interval and p-value of the textbook; what is missing is said."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from scipy import stats

import xent
from xent.errors import ArgumentError, DataError, DistributionError, DTypeError

ROWS = 120


def predictions(seed=0, rows=ROWS, noise=1.0):
    """Two models of the same rows: b is a with some noise, and a little worse."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=rows)
    y = (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(int)
    columns = {"id": np.arange(rows), "y": y, "user": np.arange(rows) // 6, "part": np.arange(rows) % 3}
    a = pl.DataFrame({**columns, "p": 1 / (1 + np.exp(-z))})
    b = pl.DataFrame({**columns, "p": 1 / (1 + np.exp(-z - noise * rng.normal(size=rows)))})
    return a, b


A, B = predictions()
ROLES = {"id": "id", "label": "y", "proba": "p"}


def losses(frame):
    p, y = frame["p"].to_numpy(), frame["y"].to_numpy()
    return -np.log(np.where(y == 1, p, 1 - p))


def test_difference_interval_and_p_value_are_those_of_the_paired_t_test():
    found = xent.compare(A, B.sample(fraction=1, shuffle=True, seed=1), **ROLES)
    test = stats.ttest_rel(losses(A), losses(B))
    interval = test.confidence_interval()
    assert found.rows == ROWS
    assert found.difference.nats == pytest.approx((losses(A) - losses(B)).mean(), rel=1e-12)
    assert found.p_value == pytest.approx(test.pvalue, rel=1e-10)
    assert (found.difference.low, found.difference.high) == pytest.approx((interval.low, interval.high), rel=1e-10)


def test_pairing_sees_what_an_unpaired_test_does_not():
    """lm-evaluation-harness #3831: the models saw the same rows, and the test took them for different ones."""
    a, b = predictions(rows=2000, noise=0.5)
    found = xent.compare(a, b, **ROLES)
    unpaired = stats.ttest_ind(losses(a), losses(b)).pvalue
    assert found.p_value < 0.05 < unpaired
    assert found.winner == "a"


def test_clusters_of_copies_count_as_one_row():
    def six(frame):
        copies = pl.concat([frame] * 6)
        return copies.with_columns(id=pl.int_range(6 * ROWS), copy_of=pl.concat([frame["id"]] * 6))

    one = xent.compare(A, B, **ROLES)
    clustered = xent.compare(six(A), six(B), **ROLES, cluster="copy_of")
    assert clustered.clusters == ROWS
    assert clustered.p_value == pytest.approx(one.p_value, rel=1e-9)
    assert clustered.difference.standard_error == pytest.approx(one.difference.standard_error, rel=1e-12)
    naive = xent.compare(six(A), six(B), **ROLES)
    assert naive.difference.standard_error < 0.5 * clustered.difference.standard_error


def test_a_mean_difference_of_nothing_has_the_p_value_that_chance_gives():
    """Under no difference, p-values below 0.05 come in 5% of the cases."""
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(300):
        from xent.scoring.intervals import mean_and_interval

        p_values.append(mean_and_interval(rng.normal(size=40), np.ones(40))[1])
    assert abs(np.mean(np.array(p_values) < 0.05) - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 300)


def test_rows_on_one_side_only_are_counted_and_named():
    found = xent.compare(A.head(100), B.tail(90), **ROLES)
    assert (found.rows, found.only_in_a, found.only_in_b) == (70, 30, 20)
    assert found.missing["a"][0] == "0"
    assert found.missing["b"][0] == "100"


def test_segments_and_rows_that_drive_the_difference():
    worse = B.with_columns(p=pl.when(pl.col("part") == 2).then(pl.col("p")).otherwise(A["p"]))
    found = xent.compare(A, worse, **ROLES, by="part")
    assert found.segments[0].value == "2"
    assert found.segments[0].share == pytest.approx(1.0, rel=1e-12)
    assert [s.difference.nats for s in found.segments[1:]] == [0.0, 0.0]
    differences = losses(A) - losses(worse)
    worst = int(np.abs(differences).argmax())
    assert found.drivers[0].id == str(worst)
    assert found.drivers[0].difference == pytest.approx(differences[worst], rel=1e-12)


def test_weights_are_repetitions_for_the_mean():
    times = np.arange(ROWS) % 3 + 1
    weighted = xent.compare(A.with_columns(w=times), B, **ROLES, weight="w")
    assert weighted.difference.nats == pytest.approx(np.average(losses(A) - losses(B), weights=times), rel=1e-12)


def test_other_columns_and_multiclass_tables_on_the_other_side():
    wide = A.with_columns(q_0=1 - pl.col("p"), q_1=pl.col("p"))
    found = xent.compare(B, wide, id="id", label="y", proba="p", proba_b="q_*")
    assert found.difference.nats == pytest.approx((losses(B) - losses(A)).mean(), rel=1e-12)


def test_an_impossible_row_makes_the_difference_infinite_and_a_clip_finite():
    broken = A.with_columns(p=pl.when(pl.col("id") == 5).then(1.0 - pl.col("y")).otherwise(pl.col("p")))
    found = xent.compare(broken, B, **ROLES)
    assert found.difference.nats == math.inf
    assert math.isnan(found.p_value)
    assert (found.impossible_a, found.impossible_b) == (1, 0)
    clipped = xent.compare(broken, B, **ROLES, clip=1e-3)
    expected = np.minimum(losses(B), -math.log(1e-3))
    with np.errstate(divide="ignore"):
        expected = np.minimum(losses(broken), -math.log(1e-3)) - expected
    assert clipped.difference.nats == pytest.approx(expected.mean(), rel=1e-12)
    assert clipped.clip == 1e-3
    assert clipped.to_record()["winner"] in ("a", "b", "neither")


@pytest.mark.parametrize(
    ("a", "b", "changed", "error", "words"),
    [
        (A, B.with_columns(id=pl.col("id") + 1000), {}, DataError, "no id of 120 rows"),
        (pl.concat([A, A]), B, {}, DataError, "share an id"),
        (A, B.with_columns(y=1 - pl.col("y")), {}, DataError, "120 rows have other labels"),
        (A, B.with_columns(p=pl.lit(1.5)), {}, DistributionError, "row 0 .id 0.: column 'p' has 1.5"),
        (A, B, {"id": "nothing"}, ArgumentError, "'nothing'"),
        (A, B, {"clip": 2.0}, ArgumentError, "clip"),
        (A, B, {"clip": "x"}, ArgumentError, "clip"),
        (A, B, {"id": None}, ArgumentError, "id"),
        (A, B, {"id": ["id"]}, ArgumentError, "id"),
        (A, B, {"by": 5}, ArgumentError, "by"),
        (A, B, {"cluster": "nothing"}, ArgumentError, "'nothing'"),
        (A, B, {"weight": 5}, ArgumentError, "weight"),
        (A, B, {"worst": -1}, ArgumentError, "worst"),
        (A, B, {"tolerance": "x"}, ArgumentError, "tolerance"),
        (A, B, {"classes": 5}, ArgumentError, "classes"),
        (np.ones((2, 2)), B, {}, ArgumentError, "array"),
        (A, {"id": 1}, {}, DTypeError, "frame"),
        (A, "nowhere.csv", {}, DataError, "nowhere.csv"),
        (A.head(0), B, {}, DataError, "no rows"),
    ],
)
def test_what_cannot_be_compared_is_named(a, b, changed, error, words):
    with pytest.raises(error, match=words):
        xent.compare(a, b, **{**ROLES, **changed})


def test_weights_of_0_leave_nothing_to_compare():
    with pytest.raises(DataError, match="all weights are 0"):
        xent.compare(A.with_columns(w=pl.lit(0.0)), B, **ROLES, weight="w")
