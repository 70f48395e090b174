"""Values and gradients against 50-digit arithmetic, and against torch in float64."""

from __future__ import annotations

import math

import mpmath_oracle
import numpy as np
import pytest
import torch
from cases import CASES, OPTIONS, RANDOM, REDUCTIONS, SQUARED_ERROR, WEIGHT, Case, expected
from comparison import (
    ULPS,
    assert_within,
    check_reduction,
    check_rows,
    eps,
    magnification,
    relative,
    slope_magnification,
)

import xent.numpy
from xent.objective import Objective
from xent.reference import (
    linear_cross_entropy,
    linear_cross_entropy_gradients,
    squared_error,
    squared_error_gradient,
)

EPS = eps(np.float64)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_rows_agree_with_the_oracle(implementation, case):
    for dtype in implementation.dtypes:
        if case.fits(dtype):
            check_rows(implementation, case, dtype)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_reductions_agree_with_the_oracle(front, case):
    for dtype in front.dtypes:
        for reduction in REDUCTIONS:
            if case.fits(dtype):
                check_reduction(front, case, dtype, reduction)


def _assert_squared_error(case: Case, losses: np.ndarray, gradient: np.ndarray, scale: float = 1.0) -> None:
    """Relative to the value for plain labels; else to q + p where q - p is taken, which may cancel."""
    wanted = expected(case, "float64", "squared_error")
    smallest = 5e-324 * 4
    loss_size = wanted.loss if case.plain else wanted.loss_size
    bound = 2 * ULPS * EPS * (1 + magnification(case)) * loss_size  # a square doubles a relative error
    assert_within(losses, wanted.loss, bound + smallest, f"{case} loss")
    factor = 1 + magnification(case) + slope_magnification(case)
    bound = 2 * ULPS * EPS * factor[:, None] * wanted.sizes
    assert_within(gradient, wanted.gradient * scale, bound * scale + smallest, f"{case} gradient")


@pytest.mark.parametrize("case", SQUARED_ERROR, ids=repr)
def test_squared_error_agrees_with_the_oracle(case):
    objective = Objective(**case.options)
    losses = squared_error(case.logits, case.target, objective)
    _assert_squared_error(case, losses, squared_error_gradient(case.logits, case.target, objective))


@pytest.mark.parametrize("case", SQUARED_ERROR, ids=repr)
def test_squared_error_of_the_front_agrees_with_the_oracle(case):
    losses, gradient = xent.numpy.squared_error_value_and_grad(
        case.logits, case.target, **case.options, reduction="none"
    )
    _assert_squared_error(case, losses, gradient)
    wanted = expected(case, "float64", "squared_error").loss.sum()
    total = xent.numpy.squared_error(case.logits, case.target, **case.options, reduction="sum")
    assert_within(total, losses.sum(), len(losses) * EPS * wanted)


@pytest.mark.parametrize("case", [case for case in SQUARED_ERROR if case.plain], ids=repr)
def test_squared_error_of_a_label_keeps_its_relative_accuracy(case):
    """With one label no difference has to cancel. Its loss and gradient are products of few accurate factors."""
    objective = Objective(**case.options)
    wanted = expected(case, "float64", "squared_error")
    relative(squared_error(case.logits, case.target, objective), wanted.loss)


LINEAR = {
    "plain": {},
    "weight-smoothing": {"weight": WEIGHT, "label_smoothing": 0.2},
    "z-loss": {"z_loss": 0.01},
    "ignore": {"ignore_index": 2},
}


def _linear_case(exact: bool, soft: bool = False):
    """Hidden states, weight, bias and target. Exact: multiples of 1/8, whose products and sums do not round."""
    rng = np.random.default_rng(3)
    h, w, b = rng.normal(size=(4, 5)) * 3, rng.normal(size=(6, 5)), rng.normal(size=6)
    if exact:
        h, w, b = (np.round(8 * v) / 8 for v in (h, w, b))
    target = rng.dirichlet(np.ones(6), 4) if soft else np.array([0, 5, 2, 2])
    return h, w, b, target


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("exact", [True, False], ids=["exact-logits", "rounded-logits"])
@pytest.mark.parametrize("options", LINEAR.values(), ids=LINEAR)
def test_linear_loss_and_gradients_agree_with_the_oracle(options, exact, soft):
    h, w, b, target = _linear_case(exact, soft)
    objective = Objective(**{**options, "weight": np.array(options["weight"]) if "weight" in options else None})
    wanted, *oracle = mpmath_oracle.linear_cross_entropy(h, w, b, target, np.full(4, -2.0), options)
    gradients, sizes = oracle[:3], oracle[3:]
    losses, _ = linear_cross_entropy(h, w, b, target, objective)
    # Rounded logits are off by up to (features + 1) eps / 2 times the size of their terms.
    condition = 1 if exact else 1 + (np.abs(h) @ np.abs(w).T + np.abs(b)).max()
    assert_within(losses, wanted, ULPS * EPS * condition * wanted)
    found = linear_cross_entropy_gradients(h, w, b, target, -2.0, objective)
    for value, gradient, size in zip(found, gradients, sizes, strict=True):
        gradient, size = (np.reshape(v, np.shape(value)) for v in (gradient, size))
        assert_within(value, gradient, ULPS * EPS * condition * size)


@pytest.mark.parametrize("count", [5, 6])
def test_linear_gradients_scale_each_row_by_its_own_factor(count):
    """With as many rows as classes (6) a factor per row must not be taken for one per class."""
    h, w, b, _ = _linear_case(exact=True)
    h = np.concatenate([h, h[:2] + 1])[:count]
    target, row_scale = np.array([0, 5, 2, 2, 1, 4])[:count], np.array([1.0, -2.0, 0.5, 3.0, 0.0, 1.0])[:count]
    found = linear_cross_entropy_gradients(h, w, b, target, row_scale, Objective())
    rows = [linear_cross_entropy_gradients(h[[i]], w, b, target[[i]], row_scale[i], Objective()) for i in range(count)]
    assert_within(found.input, np.concatenate([row.input for row in rows]), ULPS * EPS * 10)
    assert_within(found.linear_weight, sum(row.linear_weight for row in rows), ULPS * EPS * 100)


def test_linear_without_bias_is_linear_with_a_bias_of_zero():
    h, w, _, target = _linear_case(exact=False)
    with_zero = xent.numpy.linear_cross_entropy_value_and_grad(h, w, target, linear_bias=np.zeros(6))
    without = xent.numpy.linear_cross_entropy_value_and_grad(h, w, target)
    assert without[0] == with_zero[0]
    np.testing.assert_array_equal(without[1].input, with_zero[1].input)
    np.testing.assert_array_equal(without[1].linear_weight, with_zero[1].linear_weight)
    assert without[1].linear_bias is None


# Against torch, with every option that torch has.


TORCH_OPTIONS = {"weight", "ignore_index", "label_smoothing"}
SHARED = [case for case in [*RANDOM, *OPTIONS] if set(case.options) <= TORCH_OPTIONS]


def _torch(logits, target, options, reduction):
    x = torch.tensor(logits, requires_grad=True)
    given = {**options, "weight": torch.tensor(options["weight"], dtype=x.dtype) if "weight" in options else None}
    loss = torch.nn.functional.cross_entropy(x, torch.tensor(target), **given, reduction=reduction)
    loss.sum().backward()
    return loss.detach().numpy(), x.grad.numpy()


def _assert_as_torch(front, logits, target, options, reduction):
    """torch's own error: it rounds x - max x, lse and their difference, each relative to the largest logit."""
    value, gradient = front.call(logits, target, **options, reduction=reduction)
    wanted, wanted_gradient = _torch(logits, target, options, reduction)
    largest = 1 + np.abs(logits).max(initial=0.0)
    weights = max(options.get("weight", [1.0])) * max(1, np.size(wanted_gradient))
    assert_within(value, wanted, ULPS * EPS * largest * weights)
    assert_within(gradient, wanted_gradient, ULPS * EPS * largest * weights)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("case", SHARED, ids=repr)
def test_agrees_with_torch(front, case, reduction):
    _assert_as_torch(front, case.logits, case.target, case.options, reduction)


SHAPES = {
    "unbatched": (6,),
    "sequence": (2, 6, 3),
    "image": (2, 6, 3, 4),
    "no-rows": (0, 6),
    "no-pixels": (2, 6, 0),
    "one-row": (1, 6),
}


@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_shapes_are_those_of_torch(front, shape, reduction, soft):
    rng = np.random.default_rng(5)
    axis = 1 if len(shape) > 1 else 0
    logits, labels = rng.normal(size=shape), rng.integers(0, 6, [n for i, n in enumerate(shape) if i != axis])
    p = rng.dirichlet(np.ones(6), labels.shape)
    target = np.moveaxis(p, -1, axis) if soft else labels
    _assert_as_torch(front, logits, target, {"weight": WEIGHT, "label_smoothing": 0.1}, reduction)


def test_strided_input_has_the_same_answer(front):
    wide = np.random.default_rng(6).normal(size=(8, 12))
    for view in (wide[::2, 1::3], wide.T[:4, ::-2], wide[::-1, ::-1]):
        target = np.arange(len(view)) % view.shape[1]
        value, gradient = front.call(view, target)
        copied_value, copied = front.call(np.ascontiguousarray(view), target)
        # Not bit for bit: a sum may add up in another order.
        relative(value, copied_value)
        assert_within(gradient, copied, ULPS * EPS)


def test_two_classes_are_binary_log_loss(front):
    x = np.linspace(-40, 40, 81)
    y = np.arange(81) % 2
    losses, _ = front.call(np.stack([np.zeros(81), x], axis=1), y, reduction="none")
    binary = torch.nn.functional.softplus(torch.tensor(np.where(y == 1, -x, x)), threshold=50).numpy()
    # lse - x[label] is a difference of numbers up to |x|.
    assert_within(losses, binary, 2 * EPS * (1 + np.abs(x)))


@pytest.mark.parametrize(("probabilities", "nats"), [([0.6, 0.2, 0.2], 1.6094), ([0.25, 0.25, 0.5], 0.6931)])
def test_worked_numbers(front, probabilities, nats):
    value, _ = front.call(np.log(probabilities), 2)
    assert round(float(value), 4) == nats
    relative(value, -math.log(probabilities[2]), ulps=4)
