"""DESIGN.md's 'One contract for every backend', row by row."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cases import AWKWARD_CLASSES, EXTREME, INF, Case
from comparison import ULPS, assert_within, check_rows, eps
from implementations import REFERENCE

import xent.numpy
from xent.backends.cpu.backend import CpuBackend
from xent.errors import DistributionError, LabelError
from xent.objective import Objective

EPS = eps(np.float64)
LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0], [2.0, 2.0, 2.0]])
LABELS = np.array([2, 0, 1])


@pytest.mark.parametrize("label", [3, -1, 100, -(2**62)])
def test_a_label_out_of_range_names_the_row_the_label_and_the_range(front, label):
    with pytest.raises(LabelError) as caught:
        front.call(LOGITS, np.array([2, label, 1]))
    for part in ("row 1", str(label), "[0, 3)"):
        assert part in str(caught.value)


def test_the_last_of_many_labels_is_checked(front):
    labels = np.zeros(10_000, dtype=int)
    labels[-1] = 2
    with pytest.raises(LabelError, match="9999"):
        front.call(np.zeros((10_000, 2)), labels)


def test_a_mean_over_ignored_rows_is_nan_with_zero_gradient(front):
    for options in ({}, {"weight": [1.0, 2.0, 3.0]}, {"label_smoothing": 0.1}, {"z_loss": 0.1}):
        value, gradient = front.call(LOGITS, np.full(3, -100), **options)
        assert np.isnan(value)
        assert not gradient.any()


def test_a_sum_over_ignored_rows_is_zero(front):
    for options in ({"reduction": "sum"}, {"denominator": 7.0}):
        value, gradient = front.call(LOGITS, np.full(3, -100), **options)
        assert value == 0
        assert not gradient.any()
    losses, _ = front.call(LOGITS, np.full(3, -100), reduction="none")
    assert losses.tolist() == [0.0] * 3


def test_a_mean_over_rows_of_weight_zero_is_nan_with_zero_gradient(front):
    value, gradient = front.call(LOGITS, LABELS, weight=np.zeros(3))
    assert np.isnan(value)
    assert not gradient.any()


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
def test_no_rows(front, soft):
    logits = np.zeros((0, 3))
    target = np.zeros((0, 3)) if soft else np.zeros(0, dtype=int)
    expected = {"sum": 0.0, "none": np.zeros(0), "mean": math.nan}
    for reduction, wanted in expected.items():
        value, gradient = front.call(logits, target, reduction=reduction)
        np.testing.assert_array_equal(value, wanted)
        assert gradient.shape == (0, 3)
    value, _ = front.call(logits, target, denominator=3.0)
    assert value == 0


@pytest.mark.parametrize("logit", [0.0, 700.0, -1e4, 1e300])
def test_one_class_has_nothing_to_lose(implementation, logit):
    for options in ({}, {"label_smoothing": 0.3}, {"weight": [2.0]}):
        losses, gradient = implementation.loss_and_gradient(np.full((2, 1), logit), np.zeros(2, dtype=int), options)
        assert losses.tolist() == [0.0, 0.0]
        assert gradient.tolist() == [[0.0], [0.0]]


MASKED = np.array([[0.5, -INF, 2.0, -INF], [-INF, -INF, 1.0, -1.0]])


@pytest.mark.parametrize(
    "options", [{}, {"softcap": 2.0}, {"logit_scale": 3.0}, {"z_loss": 0.1}, {"weight": [1.0] * 4}]
)
def test_masked_classes_are_as_if_they_were_not_there(implementation, options):
    losses, gradient = implementation.loss_and_gradient(MASKED, np.array([2, 3]), options)
    assert not gradient[np.isinf(MASKED)].any()
    short = {**options, "weight": [1.0, 1.0]} if "weight" in options else options
    for row, label in ((0, 1), (1, 1)):
        logits = MASKED[row][np.isfinite(MASKED[row])][None]
        one, one_gradient = implementation.loss_and_gradient(logits, np.array([label]), short)
        assert_within(losses[row], one[0], ULPS * EPS * (1 + one[0]))
        assert_within(gradient[row][np.isfinite(MASKED[row])], one_gradient[0], ULPS * EPS * 3)


def test_masked_classes_of_probability_zero_add_nothing(implementation):
    p = np.array([[0.25, 0.0, 0.75, 0.0], [0.0, 0.0, 1.0, 0.0]])
    losses, gradient = implementation.loss_and_gradient(MASKED, p, {})
    assert np.isfinite(losses).all()
    assert np.isfinite(gradient).all()
    assert not gradient[np.isinf(MASKED)].any()


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"label_smoothing": 0.1}, {"z_loss": 0.1}])
def test_a_masked_label_costs_infinity_with_a_finite_gradient(implementation, options):
    losses, gradient = implementation.loss_and_gradient(MASKED, np.array([1, 3]), options)
    assert losses[0] == INF
    assert np.isfinite(losses[1]) or "label_smoothing" in options
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("poison", [np.nan, INF], ids=["nan", "inf"])
@pytest.mark.parametrize(
    "options", [{}, {"softcap": 2.0}, {"label_smoothing": 0.1}, {"z_loss": 0.1}, {"logit_scale": 2.0}]
)
@pytest.mark.parametrize("column", [0, 1, 2])
def test_a_row_that_is_not_a_number_stays_alone(implementation, poison, options, column):
    for dtype in implementation.dtypes:
        logits = LOGITS.astype(dtype)
        wanted = implementation.loss_and_gradient(logits, LABELS, options)
        broken = logits.copy()
        broken[1, column] = poison
        losses, gradient = implementation.loss_and_gradient(broken, LABELS, options)
        assert np.isnan(losses[1])
        assert np.isnan(gradient[1]).all()
        for found, before in zip((losses, gradient), wanted, strict=True):
            np.testing.assert_array_equal(found[[0, 2]], before[[0, 2]])


def test_a_row_of_masked_classes_only_is_not_a_number(implementation):
    logits = LOGITS.copy()
    logits[1] = -INF
    losses, gradient = implementation.loss_and_gradient(logits, LABELS, {})
    assert np.isfinite(losses[[0, 2]]).all()
    assert np.isfinite(gradient[[0, 2]]).all()
    assert not np.isfinite(losses[1])


def test_16_bit_logits_have_a_float32_loss_and_a_16_bit_gradient(front):
    for dtype in front.dtypes:
        wanted = np.float32 if np.finfo(dtype).bits == 16 else np.dtype(dtype)
        for reduction in ("none", "sum", "mean"):
            value, gradient = front.call(LOGITS.astype(dtype), LABELS, reduction=reduction)
            assert value.dtype == wanted
            assert gradient.dtype == dtype


def test_16_bit_sums_are_made_in_more(front):
    """4,096 losses of log 2 add up to 2,839.1; a float16 sum stops growing where a step is below its rounding.

    Each loss is off by a rounding or two. In a sum of equal numbers roundings are alike until the sum doubles: few
    where it is made in many lanes; three were seen with the instructions of 2003.
    """
    for dtype in front.dtypes:
        value, _ = front.call(np.zeros((4096, 2), dtype), np.zeros(4096, dtype=int), reduction="sum")
        assert_within(value, 4096 * math.log(2), 4 * eps(value.dtype) * 4096 * math.log(2))


@pytest.mark.parametrize("classes", AWKWARD_CLASSES)
def test_any_number_of_classes_gives_the_same_answer(implementation, classes):
    """Against the closed form: logits are whole numbers, and exp of each is added up without rounding."""
    rng = np.random.default_rng(classes)
    logits, labels = rng.integers(-20, 20, (3, classes)).astype(float), rng.integers(0, classes, 3)
    lse = [math.log(math.fsum(math.exp(v) for v in row)) for row in logits]
    losses, gradient = implementation.loss_and_gradient(logits, labels, {})
    # math.exp and math.log are off by a rounding each; lse and the logits are below 32.
    assert_within(losses, lse - logits[np.arange(3), labels], ULPS * EPS * 32)
    wanted = np.exp(logits - np.array(lse)[:, None]) - np.eye(classes)[labels]
    assert_within(gradient, wanted, ULPS * EPS * 3)


def test_k_dimensional_and_strided_logits_are_rows(front):
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(24, 5)), rng.integers(0, 5, 24)
    losses, gradient = front.call(rows, labels, reduction="none")
    logits = np.moveaxis(rows.reshape(2, 3, 4, 5), -1, 1)  # (2, 5, 3, 4), not contiguous
    found, found_gradient = front.call(logits, labels.reshape(2, 3, 4), reduction="none")
    assert_within(found.reshape(-1), losses, ULPS * EPS * (1 + losses))
    assert_within(np.moveaxis(found_gradient, 1, -1).reshape(24, 5), gradient, ULPS * EPS)


def test_the_arguments_are_never_written_to(implementation):
    options = {"softcap": 5.0, "logit_scale": 2.0, "z_loss": 0.1, "label_smoothing": 0.1}
    for dtype in implementation.dtypes:
        for target in (LABELS.copy(), np.eye(3)[LABELS].astype(dtype)):
            given = [LOGITS.astype(dtype), target, np.array([1.0, 2.0, 0.5])]
            before = [array.copy() for array in given]
            implementation.loss_and_gradient(given[0], given[1], {**options, "weight": given[2]})
            for array, wanted in zip(given, before, strict=True):
                np.testing.assert_array_equal(array, wanted)


def test_read_only_arguments_are_read(implementation):
    """A memory-mapped file or a column of a table cannot be written to, and does not have to be."""
    logits, labels = LOGITS.copy(), LABELS.copy()
    wanted = implementation.loss_and_gradient(logits, labels, {})
    logits.flags.writeable = labels.flags.writeable = False
    found = implementation.loss_and_gradient(logits, labels, {})
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "row", [[0.5, 0.6, 0.0], [-0.1, 1.1, 0.0], [np.nan, 0.5, 0.5], [0.0, 0.0, 0.0], [INF, 0.0, 0.0]]
)
def test_what_is_no_distribution_is_refused_and_not_renormalised(front, row):
    if not front.checks_distributions:
        pytest.skip("takes class probabilities as they are, as its documentation says")
    target = np.array([[1.0, 0.0, 0.0], row, [0.0, 0.0, 1.0]])
    with pytest.raises(DistributionError, match="1"):
        front.call(LOGITS, target)


def test_results_repeat_bit_for_bit(implementation):
    rng = np.random.default_rng(9)
    logits, labels = rng.normal(size=(300, 1000)), rng.integers(0, 1000, 300)
    first = implementation.loss_and_gradient(logits, labels, {"label_smoothing": 0.1})
    again = implementation.loss_and_gradient(logits.copy(), labels.copy(), {"label_smoothing": 0.1})
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_do_not_depend_on_their_neighbours(implementation):
    rng = np.random.default_rng(10)
    logits, labels = rng.normal(size=(65, 129)), rng.integers(0, 129, 65)
    losses, gradient = implementation.loss_and_gradient(logits, labels, {})
    for i in (0, 31, 64):
        one, one_gradient = implementation.loss_and_gradient(logits[[i]], labels[[i]], {})
        assert_within(one[0], losses[i], 2 * EPS * (1 + losses[i]))
        assert_within(one_gradient[0], gradient[i], 2 * EPS)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.uint64, np.int64])
def test_labels_of_any_integer_dtype_are_labels(front, dtype):
    value, _ = front.call(LOGITS, LABELS.astype(dtype))
    assert value == front.call(LOGITS, LABELS)[0]


def test_integers_and_lists_are_float64():
    value, gradient = xent.numpy.cross_entropy_value_and_grad([[1, 2], [3, 4]], [0, 1])
    assert value.dtype == gradient.dtype == np.float64


def test_the_largest_floats_do_not_overflow():
    """Their difference is beyond float64: a loss of +inf, and no NaN anywhere. The reference alone promises this."""
    case = Case("largest", np.array([[1.7e308, -1.7e308]] * 2), np.array([0, 1]))
    with np.errstate(over="ignore"):
        losses, gradient = REFERENCE.loss_and_gradient(case.logits, case.target, {})
    assert losses.tolist() == [0.0, INF]
    assert gradient.tolist() == [[0.0, 0.0], [1.0, -1.0]]


def test_extreme_cases_cover_what_they_promise():
    """The table of cases itself: each of these has to be in it, for test_value.py to see it."""
    names = {case.name for case in EXTREME}
    assert {
        "one-class",
        "two-classes",
        "confident",
        "masked",
        "masked-label",
        "plus-minus-700",
        "ten-thousand",
    } <= names
    for case in EXTREME:
        if case.name == "confident":
            check_rows(REFERENCE, case, "float64")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_blocks_of_masked_classes_under_smoothing_cost_infinity(dtype):
    """Thousands of masked classes come before the first that is not: -inf minus -inf once made the loss NaN."""
    logits = np.full((1, 9000), -np.inf, dtype)
    logits[0, -3:] = 1.0
    loss, lse = CpuBackend().forward(logits, np.array([8999]), Objective(label_smoothing=0.1))
    assert loss[0] == np.inf
    assert abs(lse[0] - (1 + math.log(3))) <= 4 * np.finfo(dtype).eps


# -------------------------------------------------------------------------------------------------- memory of results


@pytest.mark.parametrize("classes", [10, 300, 5000])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_nothing_is_read_from_the_memory_of_a_gradient_before_it_is_written(classes, dtype):
    """Fresh memory holds anything: a row without a label once became NaN when there was a NaN in it by chance."""
    logits = np.random.default_rng(0).normal(size=(4, classes)).astype(dtype)
    labels = np.array([1, -100, 2, classes])
    garbage = np.full((4, classes), np.nan, dtype)
    _, lse, gradient = CpuBackend().forward_backward(logits, labels, 1.0, Objective(), out=garbage)
    from_lse = CpuBackend().backward(logits, labels, lse, 1.0, Objective(), out=np.full((4, classes), np.nan, dtype))
    for found in (gradient, from_lse):
        assert np.isfinite(found[[0, 2]]).all()
        assert (found[1] == 0).all()
        assert np.isnan(found[3]).all()
