"""Likelihood of a data set: its logarithm, and the number itself where a float underflows."""

from __future__ import annotations

import math

import mpmath
import mpmath_oracle as oracle
import numpy as np
import pytest
from comparison import ULPS, eps, relative

from xent.information import cross_entropy, information_content, one_hot
from xent.likelihood import Likelihood, likelihood, log_likelihood, negative_log_likelihood

EPS = eps(np.float64)
ROWS = 1797  # the digits of scikit-learn


def _data(rows: int = ROWS, classes: int = 10, concentration: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(17)
    proba = rng.dirichlet(np.full(classes, concentration), rows)
    return rng.integers(0, classes, rows), proba


@pytest.mark.parametrize("concentration", [0.1, 0.3, 1.0, 100.0])
def test_likelihood_of_1797_rows_agrees_with_the_oracle(concentration):
    labels, proba = _data(concentration=concentration)
    with mpmath.workdps(50):
        log, mantissa, exponent = oracle.likelihood(labels, proba)
    found = likelihood(labels, proba)
    assert math.exp(found.log) == 0.0  # a float does not hold it
    relative(found.log, float(log))
    assert found.exponent == exponent
    # The exponential turns the logarithm's absolute error, |log| eps / 2 and that of a quotient, into a relative one.
    relative(found.mantissa, float(mantissa), 4 * abs(float(log)))


def test_likelihood_of_few_rows_is_the_product():
    labels, proba = _data(rows=5, concentration=3.0)
    product = math.prod(proba[np.arange(5), labels])
    found = likelihood(labels, proba)
    relative(found.mantissa * 10.0**found.exponent, product, ULPS * (1 + abs(found.log)))
    relative(math.exp(found.log), product, ULPS * (1 + abs(found.log)))


@pytest.mark.parametrize("power", [0, -1, -2, -16, -300, -2000])
def test_powers_of_ten_have_a_mantissa_in_range(power):
    """Just at the border the mantissa is near 1 or near 10, and never outside [1, 10)."""
    found = Likelihood.from_log(power * math.log(10))
    assert 1.0 <= found.mantissa < 10.0
    with mpmath.workdps(50):
        value = mpmath.mpf(found.mantissa) * mpmath.mpf(10) ** (found.exponent - power)
    assert abs(float(value) - 1) <= 4 * EPS * (1 + abs(power) * math.log(10))


def test_mantissa_is_in_range_for_any_logarithm():
    for log in np.concatenate([np.linspace(-100, 100, 2001), -np.logspace(0, 12, 200)]):
        found = Likelihood.from_log(float(log))
        assert 1.0 <= found.mantissa < 10.0, log
        assert isinstance(found.exponent, int)


def test_likelihood_prints_a_readable_number():
    assert str(likelihood([0, 1], [[0.5, 0.5], [0.75, 0.25]])) == "1.250e-01"
    assert str(likelihood([0] * ROWS, [[0.5, 0.5]] * ROWS)) == "1.120e-541"
    # A mantissa of 9.9996 must not be printed as 10.000.
    assert "10.0" not in str(Likelihood(math.log(9.9999), 9.9999, 0))


def test_worked_numbers():
    assert round(float(negative_log_likelihood([2], [[0.6, 0.2, 0.2]])), 4) == 1.6094
    assert round(float(negative_log_likelihood([1], [[0.5, 0.5]])), 4) == 0.6931


@pytest.mark.parametrize("rows", [1, 2, ROWS])
def test_negative_log_likelihood_is_rows_times_the_mean_cross_entropy(rows):
    labels, proba = _data(rows)
    mean = float(np.mean(cross_entropy(one_hot(labels, 10), proba)))
    # Sums of n positive terms: pairwise, so well under n roundings.
    relative(float(negative_log_likelihood(labels, proba)), rows * mean, ULPS)
    relative(float(negative_log_likelihood(labels, proba, reduction="mean")), mean, ULPS)


def test_reductions_agree_with_each_other_and_with_information_content():
    labels, proba = _data(50)
    each = negative_log_likelihood(labels, proba, reduction="none")
    assert each.shape == (50,)
    relative(each, information_content(proba[np.arange(50), labels]), 2)
    relative(float(negative_log_likelihood(labels, proba)), math.fsum(each))
    relative(float(negative_log_likelihood(labels, proba, reduction="mean")), math.fsum(each) / 50)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_log_likelihood_is_the_negative(reduction):
    labels, proba = _data(50)
    log = log_likelihood(labels, proba, reduction=reduction)
    np.testing.assert_array_equal(log, -negative_log_likelihood(labels, proba, reduction=reduction))
    assert (np.asarray(log) <= 0).all()


def test_the_logarithm_puts_models_in_the_same_order():
    """Of models whose likelihoods a float holds; and the most likely one has the least cross-entropy."""
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 3, 6)
    models = [rng.dirichlet(np.ones(3), 6) for _ in range(40)]
    products = [math.prod(model[np.arange(6), labels]) for model in models]
    logs = [float(log_likelihood(labels, model)) for model in models]
    entropies = [float(np.mean(cross_entropy(one_hot(labels, 3), model))) for model in models]
    assert np.argsort(products).tolist() == np.argsort(logs).tolist() == np.argsort(entropies)[::-1].tolist()


def test_more_probability_for_a_label_raises_the_log_likelihood():
    logs = [float(log_likelihood([0, 1], [[q, 1 - q], [0.5, 0.5]])) for q in np.linspace(0.01, 0.99, 99)]
    assert (np.diff(logs) > 0).all()


def test_an_impossible_label_has_likelihood_zero():
    labels, proba = [0, 1, 0], [[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]]
    found = likelihood(labels, proba)
    assert (found.log, found.mantissa, found.exponent) == (-math.inf, 0.0, 0)
    assert float(negative_log_likelihood(labels, proba)) == math.inf
    assert float(log_likelihood(labels, proba)) == -math.inf
    assert np.isposinf(negative_log_likelihood(labels, proba, reduction="none")).tolist() == [False, True, False]


def test_certain_labels_have_likelihood_one():
    found = likelihood([0, 1], [[1.0, 0.0], [0.0, 1.0]])
    assert (found.log, found.mantissa, found.exponent) == (0.0, 1.0, 0)
    assert math.copysign(1, found.log) == 1
    assert math.copysign(1, float(negative_log_likelihood([0], [[1.0, 0.0]]))) == 1


def test_no_rows_are_an_empty_product_and_an_empty_sum():
    nothing, proba = np.zeros(0, dtype=int), np.zeros((0, 3))
    found = likelihood(nothing, proba)
    assert (found.log, found.mantissa, found.exponent) == (0.0, 1.0, 0)
    assert float(negative_log_likelihood(nothing, proba)) == 0.0
    assert negative_log_likelihood(nothing, proba, reduction="none").shape == (0,)
    assert np.isnan(negative_log_likelihood(nothing, proba, reduction="mean"))


def test_subnormal_probabilities_are_possible():
    found = likelihood([0, 0], [[5e-324, 1.0]] * 2)
    relative(found.log, 2 * math.log(5e-324), 4)
    assert found.exponent == -647


def test_any_array_library_and_dtype(xp):
    labels, proba = _data(20)
    for dtype in ("float32", "float64"):
        y, q = xp.integers(labels), xp.asarray(proba, dtype)
        wanted = -np.log(xp.numpy(q)[np.arange(20), labels].astype(float))
        each = negative_log_likelihood(y, q, reduction="none")
        assert xp.is_native(each)
        assert each.dtype == q.dtype
        relative(xp.numpy(each), wanted, ULPS, dtype)
        relative(float(negative_log_likelihood(y, q)), wanted.sum(), ULPS, dtype)
        found = likelihood(y, q)
        assert isinstance(found.log, float)
        relative(found.log, -wanted.sum(), ULPS, dtype)


def test_labels_may_be_plain_or_of_any_integer_dtype():
    labels, proba = _data(20)
    wanted = float(negative_log_likelihood(labels, proba))
    for given in (labels.tolist(), labels.astype(np.int8), labels.astype(np.uint64)):
        assert float(negative_log_likelihood(given, proba)) == wanted


def test_float32_softmax_of_many_classes_is_a_distribution():
    """A sum of 50,000 float32 probabilities is not 1 to the last digits."""
    x = np.random.default_rng(8).normal(size=(3, 50_000)).astype(np.float32)
    q = np.exp(x - x.max(axis=1, keepdims=True))
    q /= q.sum(axis=1, keepdims=True, dtype=np.float32)
    assert np.isfinite(negative_log_likelihood([0, 1, 2], q))
    assert np.isfinite(negative_log_likelihood([0, 1, 2], q.astype(np.float64)))
