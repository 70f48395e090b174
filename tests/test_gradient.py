"""Gradients: what the values' finite differences say, and what holds for them as such."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from cases import CASES, OPTIONS, RANDOM, SQUARED_ERROR, WEIGHT, Case
from comparison import ULPS, assert_gradient, assert_within, bent_logits, denominator, eps

import xent.numpy
from xent import reference
from xent.objective import Objective

EPS = eps(np.float64)
STEP = 2.0**-10  # near eps^(1/5), where truncation and rounding are in balance; a power of two adds without rounding

Function = Callable[[np.ndarray], np.ndarray]


def objective(case: Case) -> Objective:
    weight = case.options.get("weight")
    return Objective(**{**case.options, "weight": None if weight is None else np.array(weight)})


def finite_difference(f: Function, x: np.ndarray, index: tuple) -> np.ndarray:
    """4th-order central difference of f by the entries x[index]: (8 (f1 - f-1) - (f2 - f-2)) / 12 h."""

    def at(steps: int) -> np.ndarray:
        moved = x.copy()
        moved[index] += steps * STEP
        return f(moved)

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * STEP)


def bound(size: np.ndarray, value: np.ndarray, x: np.ndarray, scale: float) -> np.ndarray:
    """Truncation h^4 / 30 times the fifth derivative, plus 18 / 12 h times the rounding of values and of x + h.

    The fifth derivatives of log-sum-exp, softmax and tanh are small multiples (below 32) of the first ones' size, times
    the fifth power of the logits' scale.
    """
    truncation = STEP**4 * size * max(1.0, scale) ** 5
    return truncation + 1.5 / STEP * 4 * EPS * (np.abs(value) + size * np.abs(x))


def assert_row_gradients(f: Function, gradient: np.ndarray, case: Case, size: np.ndarray) -> None:
    """Each row's loss by each of its logits; all rows move at once. Masked logits and infinite losses cannot move."""
    value = f(case.logits)
    usable = np.isfinite(value)
    logits = case.logits[usable]
    within = Case(case.name, logits, case.target[usable], case.options)
    for j in range(logits.shape[1]):
        free = np.isfinite(logits[:, j])
        with np.errstate(invalid="ignore"):
            numeric = finite_difference(lambda x: f(_back(case, usable, x)), within.logits, np.s_[:, j])
        largest = np.abs(np.where(np.isinf(logits), 0.0, logits)).max(axis=1)
        limit = bound(size[usable], value[usable], largest, case.options.get("logit_scale", 1.0))
        assert_within(gradient[usable, j][free], numeric[usable][free], limit[free], f"{case} class {j}")


def _back(case: Case, usable: np.ndarray, rows: np.ndarray) -> np.ndarray:
    logits = case.logits.copy()
    logits[usable] = rows
    return logits


def gradient_size(case: Case, lse: np.ndarray) -> np.ndarray:
    largest_weight = max(case.options.get("weight", [1.0]))
    return largest_weight * np.ones_like(lse) + 2 * case.options.get("z_loss", 0.0) * (1 + np.abs(lse))


# A step of 0.001 is not seen beside 10^15; there the oracle of test_value.py speaks alone.
MOVABLE = [case for case in CASES if np.abs(np.where(np.isinf(case.logits), 0, case.logits)).max() < 1e5]


@pytest.mark.parametrize("case", MOVABLE, ids=repr)
def test_cross_entropy_gradient_is_the_slope_of_the_loss(case):
    options = objective(case)
    gradient = reference.cross_entropy_gradient(case.logits, case.target, options)
    _, lse = reference.cross_entropy(case.logits, case.target, options)

    def losses(x: np.ndarray) -> np.ndarray:
        return reference.cross_entropy(x, case.target, options)[0]

    assert_row_gradients(losses, gradient, case, gradient_size(case, lse))


@pytest.mark.parametrize("case", [case for case in MOVABLE if case in SQUARED_ERROR], ids=repr)
def test_squared_error_gradient_is_the_slope_of_the_loss(case):
    options = objective(case)
    gradient = reference.squared_error_gradient(case.logits, case.target, options)

    def losses(x: np.ndarray) -> np.ndarray:
        return reference.squared_error(x, case.target, options)

    assert_row_gradients(losses, gradient, case, np.full(len(case.logits), 4.0))


LINEAR_OPTIONS = {
    "plain": {},
    "all": {"weight": np.array(WEIGHT), "label_smoothing": 0.1, "z_loss": 0.01, "softcap": 8.0, "logit_scale": 0.7},
    "ignore": {"ignore_index": 2},
}


@pytest.mark.parametrize("by", ["input", "linear_weight", "linear_bias"])
@pytest.mark.parametrize("options", LINEAR_OPTIONS.values(), ids=LINEAR_OPTIONS)
def test_linear_gradients_are_the_slopes_of_the_loss(options, by):
    rng = np.random.default_rng(1)
    at = {"input": rng.normal(size=(4, 5)), "linear_weight": rng.normal(size=(6, 5)), "linear_bias": rng.normal(size=6)}
    target, options = np.array([0, 2, 5, 3]), Objective(**options)

    def total(x: np.ndarray) -> np.ndarray:
        return reference.linear_cross_entropy(**{**at, by: x}, target=target, objective=options)[0].sum()

    gradients = reference.linear_cross_entropy_gradients(**at, target=target, row_scale=1.0, objective=options)
    found, x = getattr(gradients, by), at[by]
    numeric = np.array([finite_difference(total, x, index) for index in np.ndindex(x.shape)]).reshape(x.shape)
    # Four rows, and chain factors of the other arguments to the fifth power.
    largest = max(1.0, *(np.abs(v).max() for v in at.values()))
    assert_within(found, numeric, bound(np.float64(40.0), total(x), x, largest))


BALANCED = [case for case in CASES if not {"softcap", "z_loss"} & set(case.options)]


@pytest.mark.parametrize("case", BALANCED, ids=repr)
def test_gradient_rows_sum_to_zero(implementation, case):
    """A common shift of the logits changes nothing, also where a masked label makes the loss infinite."""
    for dtype in implementation.dtypes:
        if not case.fits(dtype):
            continue
        given = case.rounded(dtype)
        _, gradient = implementation.loss_and_gradient(given.logits, given.target, case.options)
        gradient = gradient.astype(np.float64)
        size = np.abs(gradient).sum(axis=1)
        # What cancels inside an entry (q - t) is of the size of a weight, though the entry may be smaller.
        if implementation.kernel or not case.plain:
            size = size + max(case.options.get("weight", [1.0]))
        smallest = float(np.finfo(dtype).smallest_subnormal) * gradient.shape[1]
        if implementation.from_lse and dtype != "float64":
            # All probabilities have the rounding of the log-sum-exp as a factor; it is as large as the largest logit.
            smallest = smallest + 2 * EPS * np.abs(bent_logits(given)).max(axis=1) * size
        assert_within(gradient.sum(axis=1), np.zeros(len(gradient)), ULPS * eps(dtype) * size + smallest)


@pytest.mark.parametrize("case", [case for case in OPTIONS if case.name.startswith("z-loss")], ids=repr)
def test_z_loss_gradient_rows_sum_to_the_slope_of_a_shift(implementation, case):
    """d/dc of loss(x + c) is 2 z_loss lse."""
    _, lse = reference.cross_entropy(case.logits, case.target, objective(case))
    _, gradient = implementation.loss_and_gradient(case.logits, case.target, case.options)
    slope = 2 * case.options["z_loss"] * lse
    size = max(case.options.get("weight", [1.0])) + np.abs(slope)
    assert_within(gradient.sum(axis=1), slope, ULPS * EPS * size * (1 + np.abs(lse)))


@pytest.mark.parametrize("case", [case for case in OPTIONS if "ignore_index" in case.options], ids=repr)
def test_ignored_rows_are_exactly_zero(implementation, case):
    given = case.target == case.options["ignore_index"]
    assert given.any()
    for dtype in implementation.dtypes:
        logits = case.rounded(dtype).logits
        losses, gradient = implementation.loss_and_gradient(logits, case.target, case.options)
        assert not losses[given].any()
        assert not gradient[given].any()
        for poison in (np.nan, np.inf, -np.inf):  # not even a factor 0 of what is in an ignored row
            poisoned = np.where(given[:, None], np.asarray(poison, dtype), logits)
            losses, gradient = implementation.loss_and_gradient(poisoned, case.target, case.options)
            assert not losses[given].any()
            assert not gradient[given].any()


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_gradient_without_reduction_is_that_of_the_sum(front, case):
    for dtype in front.dtypes:
        given = case.rounded(dtype)
        if case.fits(dtype):
            for reduction in ("none", "sum"):
                _, gradient = front.call(given.logits, given.target, **case.options, reduction=reduction)
                assert_gradient(front, case, dtype, gradient)


def test_denominators_of_the_table_are_what_they_should_be():
    """The helper that the tests above divide by, against numbers counted by hand."""
    by_hand = {"random-2-spread-1": 3, "soft-weight": 5, "ignore-default": 3, "ignore-all": 0}
    for case in CASES:
        if case.name in by_hand:
            assert denominator(case) == by_hand[case.name]
    weighted = Case("weights", np.zeros((3, 6)), np.array([0, 3, -100]), {"weight": WEIGHT})
    assert denominator(weighted) == 0.5 + 2.25


@pytest.mark.parametrize("name", ["cross_entropy", "squared_error"])
def test_value_alone_is_the_value_with_the_gradient(name):
    case = RANDOM[2]
    alone = getattr(xent.numpy, name)(case.logits, case.target)
    together, _ = getattr(xent.numpy, f"{name}_value_and_grad")(case.logits, case.target)
    np.testing.assert_allclose(alone, together, rtol=2 * EPS)


def test_linear_value_alone_is_the_value_with_the_gradients():
    rng = np.random.default_rng(2)
    h, w = rng.normal(size=(4, 5)), rng.normal(size=(6, 5))
    alone = xent.numpy.linear_cross_entropy(h, w, [0, 1, 2, 3])
    together, gradients = xent.numpy.linear_cross_entropy_value_and_grad(h, w, [0, 1, 2, 3])
    np.testing.assert_allclose(alone, together, rtol=2 * EPS)
    assert gradients.input.shape == h.shape
    assert gradients.linear_weight.shape == w.shape
    assert gradients.linear_bias is None
