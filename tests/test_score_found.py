"""What users found in scoring (FOUND.md): S7, S8 weights; S9 infinite losses in `compare`; S14 logits in memory."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
import torch

import xent
from xent.errors import ArgumentError, DataError
from xent.information import softmax
from xent.scoring.sklearn import log_loss

RNG = np.random.default_rng(7)
ROWS = 400
LOGITS = RNG.normal(size=(ROWS, 3))
PROBA = softmax(LOGITS)
LABELS = (LOGITS / 2 + RNG.gumbel(size=LOGITS.shape)).argmax(axis=1)
WEIGHT = RNG.exponential(size=ROWS)
IDS = np.arange(ROWS)
SEGMENT = np.array(["a", "b"])[IDS % 2]


def numbers(score, *ignored):
    """All numbers of a score's record, flat; those in a unit of the weights are ignored."""
    record = score.to_record()

    def flat(name, value):
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from flat(f"{name}.{key}", inner)
        elif isinstance(value, list):
            for place, inner in enumerate(value):
                yield from flat(f"{name}.{place}", inner)
        else:
            yield name, value

    found = dict(flat("", {part: value for part, value in record.items() if part != "likelihood"}))
    return {name: value for name, value in found.items() if not any(word in name for word in ignored)}


# S7 and S8.


@pytest.mark.parametrize("factor", [2.0**-30, 1 / 200, 3e20])
def test_only_sums_of_weights_depend_on_the_scale_of_the_weights(factor):
    roles = {"id": IDS, "by": {"s": SEGMENT}}
    one = xent.score(PROBA, LABELS, weight=WEIGHT, **roles)
    other = xent.score(PROBA, LABELS, weight=WEIGHT * factor, **roles)
    ignored = ("weight", "log_likelihood", "losses")
    expected, found = numbers(one, *ignored), numbers(other, *ignored)
    assert found.keys() == expected.keys()
    assert len(found) > 500
    for name, value in expected.items():
        if isinstance(value, float):
            # A temperature is found to 1e-9, and gains are differences of losses.
            assert found[name] == pytest.approx(value, rel=1e-7 if "temperature" in name else 1e-11), name
        else:
            assert found[name] == value, name
    for a, b in zip(one.losses, other.losses, strict=True):
        assert (b[0], b[1], b[2] / factor, b[3] / factor) == pytest.approx(a, rel=1e-12)


def test_the_band_of_equal_weights_is_that_of_the_rows():
    """FOUND S7: weights of 1/200 made the band 0.007 to 0.990."""
    plain = xent.score(PROBA, LABELS).reliability
    weighted = xent.score(PROBA, LABELS, weight=np.full(ROWS, 1 / 200)).reliability
    for a, b in zip(plain, weighted, strict=True):
        assert (b.correct_low, b.correct_high) == pytest.approx((a.correct_low, a.correct_high), rel=1e-12)
    # One row of weight 100 among others of weight 1 knows hardly more than itself.
    uneven = np.where(IDS == 0, 1e6, 1.0)
    widths = [b.correct_high - b.correct_low for b in xent.score(PROBA, LABELS, weight=uneven).reliability]
    assert max(widths) > 0.75


def spoiled():
    """The rows with every third of weight 0, one of which is impossible, one no distribution, one very surprising."""
    p, weight = PROBA.copy(), np.where(IDS % 3 == 0, 0.0, WEIGHT)
    p[0] = np.roll([0.0, 0.5, 0.5], LABELS[0])
    p[3] = 2.0
    p[6] = np.roll([1e-9, 0.5, 0.5 - 1e-9], LABELS[6])
    return p, weight


def test_a_row_of_weight_0_is_in_no_figure_and_no_table():
    """FOUND S8: such rows were among the most surprising ones, and made the mean infinite in words."""
    p, weight = spoiled()
    kept = weight > 0
    found = xent.score(p, LABELS, weight=weight, id=IDS, by={"s": SEGMENT, "third": IDS % 3})
    by = {"s": SEGMENT[kept], "third": IDS[kept] % 3}
    without = xent.score(p[kept], LABELS[kept], weight=weight[kept], id=IDS[kept], by=by)
    assert found.rows_without_weight == int((~kept).sum())
    ignored = ("rows_without_weight", "left_out", "warnings", ".row")  # a row's number counts all rows
    assert numbers(found, *ignored) == numbers(without, *ignored)
    assert [s.value for s in found.segments["third"]] == [s.value for s in without.segments["third"]]
    assert math.isfinite(found.cross_entropy.nats)
    said = " ".join(found.warnings)
    assert "infinite" not in said
    assert f"{found.rows_without_weight} rows had a weight of 0 and are in no figure" in said


def test_weights_that_are_all_0_are_an_error():
    for weight in (np.zeros(ROWS), [0] * ROWS):
        with pytest.raises(DataError, match="all weights are 0"):
            xent.score(PROBA, LABELS, weight=weight)
    with pytest.raises(DataError, match="all weights are 0"):
        log_loss(LABELS, PROBA, sample_weight=np.zeros(ROWS))


def frames():
    """Two sets of predictions, both possible in every row."""
    names = {"id": IDS, "y": LABELS, "w": WEIGHT, "s": SEGMENT, "user": IDS // 4}
    a = pl.DataFrame({**names, **{f"p_{k}": PROBA[:, k] for k in range(3)}})
    other = softmax(LOGITS / 2)
    return a, pl.DataFrame({**names, **{f"p_{k}": other[:, k] for k in range(3)}})


ROLES = {"id": "id", "label": "y", "proba": "p_*"}


def impossible(frame, *rows):
    """The frame with all probability of these rows on a class that is not their label."""
    columns = {}
    for k in range(3):
        wrong = pl.when((pl.col("y") + 1) % 3 == k).then(1.0).otherwise(0.0)
        columns[f"p_{k}"] = pl.when(pl.col("id").is_in(rows)).then(wrong).otherwise(pl.col(f"p_{k}"))
    return frame.with_columns(**columns)


def test_compare_leaves_rows_of_weight_0_out():
    """FOUND S8: 0 times an infinite loss was NaN."""
    a, b = frames()
    weight = pl.when(pl.col("id") % 3 == 0).then(0.0).otherwise(pl.col("w"))
    spoilt = impossible(a, 0, 3).with_columns(w=weight)
    found = xent.compare(spoilt, b, **ROLES, weight="w", by="s", cluster="user")
    kept = a.filter(pl.col("id") % 3 != 0)
    without = xent.compare(kept, b.filter(pl.col("id") % 3 != 0), **ROLES, weight="w", by="s", cluster="user")
    assert math.isfinite(found.difference.nats)
    assert found.rows_without_weight == 134
    one, other = found.to_record(), without.to_record()
    assert {**one, "rows_without_weight": 0} == other


# S9.


@pytest.mark.parametrize(("side", "winner", "sign"), [("a", "b", 1), ("b", "a", -1)])
def test_an_impossible_row_on_one_side_decides_with_its_sign(side, winner, sign):
    """FOUND S9: the sign was lost, and "neither is better" said."""
    a, b = frames()
    pair = {"a": a, "b": b}
    pair[side] = impossible(pair[side], 5, 17)
    found = xent.compare(pair["a"], pair["b"], **ROLES, by="s")
    assert found.difference.nats == sign * math.inf
    assert found.winner == winner
    assert found.deciding[side] == ("5", "17")
    assert (found.infinite_a, found.infinite_b) == ((2, 0) if side == "a" else (0, 2))
    assert f"{winner} is better: 2 rows are impossible in {side} only (id 5, 17)" in found.verdict
    rest = xent.compare(*(f.filter(~pl.col("id").is_in([5, 17])) for f in (a, b)), **ROLES).difference
    assert found.difference_possible == rest
    assert f"{rest.nats:.4g}" in found.verdict
    assert found.segments[0].value == "b"
    assert found.segments[0].difference.nats == sign * math.inf
    for text in (found._repr_html_(), str(found.to_record())):
        assert "neither" not in text


def test_impossible_rows_on_both_sides_leave_no_winner_and_are_all_named():
    a, b = frames()
    found = xent.compare(impossible(a, 5, 9), impossible(b, 9, 40), **ROLES)
    assert found.winner == "undefined"
    assert math.isnan(found.difference.nats)
    assert found.deciding == {"a": ("5",), "b": ("40",)}
    assert (found.impossible_a, found.impossible_b) == (2, 2)
    assert "undefined: 1 row is impossible in a only (id 5), and 1 row is impossible in b only (id 40)" in found.verdict
    assert "neither" not in found.verdict
    assert "difference_nats" not in found.to_dict()
    assert math.isfinite(found.to_dict()["difference_possible_nats"])


# S14.


def test_logits_in_memory_are_scored():
    expected = xent.score(PROBA, LABELS).cross_entropy.nats
    for logits in (LOGITS, LOGITS.tolist(), torch.tensor(LOGITS), torch.tensor(LOGITS, requires_grad=True)):
        assert xent.score(logits, LABELS, logits=True).cross_entropy.nats == pytest.approx(expected, rel=1e-13)
    of_labels = np.log(PROBA[np.arange(ROWS), LABELS])
    assert xent.score(of_labels, log_prob=True).cross_entropy.nats == pytest.approx(expected, rel=1e-13)
    assert xent.score(LOGITS[:, 1] - LOGITS[:, 0], LABELS % 2, logits=True).rows == ROWS


def test_tensors_with_gradients_and_bfloat16_are_scored():
    exact = xent.score(PROBA, LABELS).cross_entropy.nats
    found = xent.score(torch.tensor(PROBA, requires_grad=True), torch.tensor(LABELS), weight=torch.ones(ROWS))
    assert found.cross_entropy.nats == exact
    for p, z in ((torch.tensor(PROBA).bfloat16(), torch.tensor(LOGITS).bfloat16()),
                 (jnp.asarray(PROBA, jnp.bfloat16), jnp.asarray(LOGITS, jnp.bfloat16))):  # fmt: skip
        # A probability is off by at most 2^-8 of itself (JAX rounds by way of float32), a loss by the same in nats.
        assert abs(xent.score(p, LABELS).cross_entropy.nats - exact) <= 2.0**-8
        largest = np.abs(LOGITS).max()
        assert abs(xent.score(z, LABELS, logits=True).cross_entropy.nats - exact) <= 2 * largest * 2.0**-8


@pytest.mark.parametrize("options", [{"logits": "z"}, {"proba": True, "logits": True}, {"proba": "p_*"}])
def test_what_an_array_holds_is_said_by_true(options):
    with pytest.raises(ArgumentError, match="logits=True"):
        xent.score(LOGITS, LABELS, **options)
