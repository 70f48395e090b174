"""`Metric` is the score of all its batches, however they come and are merged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import xent
from xent.errors import ArgumentError, DataError, DistributionError
from xent.information import softmax
from xent.scoring import Metric, ScoreState

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(size=(90, 3))
PROBA, LABELS = softmax(LOGITS), RNG.integers(0, 3, 90)
WEIGHT, USER = RNG.exponential(size=90), np.arange(90) // 4


def filled(metric, rows, **columns):
    for first in range(rows.start, rows.stop, 7):
        part = slice(first, min(first + 7, rows.stop))
        metric.update(PROBA[part], LABELS[part], **{name: column[part] for name, column in columns.items()})
    return metric


def test_batches_are_scored_as_all_rows_at_once():
    columns = {"weight": WEIGHT, "cluster": USER}
    found = filled(Metric(clip=1e-3), slice(0, 90), **columns).compute()
    expected = xent.score(PROBA, LABELS, clip=1e-3, **columns)
    assert found.to_dict() == pytest.approx(expected.to_dict(), rel=1e-13)
    assert [row.row for row in found.surprising] == [row.row for row in expected.surprising]


def test_merged_metrics_and_states_are_the_score_of_all_rows():
    """A mean of the means of unequal parts is not (dask-ml, and any metric that averages over processes)."""
    parts = [filled(Metric(), rows) for rows in (slice(0, 5), slice(5, 60), slice(60, 90))]
    parts[0].merge_state([parts[1], ScoreState.from_json(parts[2].state.to_json())])
    parts[0].merge_state(Metric())
    found, expected = parts[0].compute(), xent.score(PROBA, LABELS)
    assert found.cross_entropy.nats == pytest.approx(expected.cross_entropy.nats, rel=1e-14)
    assert found.brier == pytest.approx(expected.brier, rel=1e-14)
    assert [row.row for row in found.surprising] == [row.row for row in expected.surprising]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_of_a_training_loop(dtype):
    logits = torch.tensor(LOGITS, dtype=dtype, requires_grad=True)
    metric = Metric(logits=True, classes=["a", "b", "c"])
    of_batch = metric(logits, torch.tensor(LABELS))
    expected = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(LABELS)).item()
    assert of_batch.cross_entropy.nats == pytest.approx(expected, rel=1e-6)
    assert metric.compute().classes[1].name == "b"
    assert Metric()(logits.softmax(dim=1), torch.tensor(LABELS)).rows == 90


def test_rows_of_several_labels_and_invalid_rows():
    tags = RNG.integers(0, 2, (20, 3))
    metric = Metric(multilabel=True)
    metric.update(PROBA[:10], tags[:10])
    metric.update(PROBA[10:20], tags[10:])
    expected = xent.score(PROBA[:20], tags, multilabel=True)
    assert metric.compute().to_dict() == pytest.approx(expected.to_dict(), rel=1e-13)
    assert metric.compute().clusters == 20
    skipping = Metric(invalid="skip")
    skipping.update([[0.5, 0.5], [math.nan, 1.0]], [0, 1])
    assert (skipping.compute().rows, skipping.compute().invalid_rows) == (1, 1)


def test_a_batch_that_is_wrong_is_not_added_and_reset_forgets():
    metric = filled(Metric(), slice(0, 7))
    with pytest.raises(DistributionError, match=r"row 8 .id x.*logits=True"):
        metric.update(np.array([[0.2, 0.3, 0.5], [2.0, 0.0, 0.0]]), [0, 1], ids=["w", "x"])
    assert metric.compute().rows == 7
    metric.reset()
    for call in (metric.compute, lambda: metric.state, Metric().compute):
        with pytest.raises(DataError, match="update"):
            call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: Metric(invalid="no"),
        lambda: Metric().merge_state([1]),
        lambda: Metric()(PROBA, LABELS, ident=LABELS),
        lambda: filled(Metric(), slice(0, 7)).merge_state(filled(Metric(clip=0.1), slice(0, 7))),
    ],
)
def test_what_does_not_fit_is_named(call):
    with pytest.raises(ArgumentError):
        call()
