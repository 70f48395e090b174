"""Broken twins: each has a fault that was found in the field, and the comparisons of the real tests have to reject it.

A twin is the reference with one fault, rounded to the dtype that it was given. It is measured with the wider bounds of
the kernels; the honest twin passes them, so it is the fault that is rejected, in float64, float32 and float16 alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import mpmath
import mpmath_oracle as oracle
import numpy as np
import pytest
from cases import BY_NAME, CASES, REDUCTIONS, Case
from comparison import check_reduction, check_rows, denominator, loss_dtype, relative
from implementations import REFERENCE, Implementation

DTYPES = ("float64", "float32", "float16")
Rows = tuple[np.ndarray, np.ndarray]
Fault = Callable[[np.ndarray, np.ndarray, dict[str, Any]], Rows]


def honest(logits: np.ndarray, target: np.ndarray, options: dict[str, Any]) -> Rows:
    return REFERENCE.loss_and_gradient(logits, target, options)


def twin(name: str, fault: Fault, scale: Callable[[np.ndarray], np.ndarray] = lambda s: s) -> Implementation:
    def run(logits, target, options, row_scale):
        dtype = str(logits.dtype)
        with np.errstate(all="ignore"):
            exact = target.astype(np.float64) if target.ndim == 2 else target
            loss, gradient = fault(logits.astype(np.float64), exact, options)
            if row_scale is not None:
                gradient = gradient * scale(row_scale)[:, None]
            return loss.astype(loss_dtype(dtype)), gradient.astype(dtype)

    return Implementation(name, DTYPES, run)


def rejected(implementation: Implementation, dtype: str) -> list[str]:
    """The names of the cases whose comparison fails."""
    names = []
    for case in CASES:
        if case.fits(dtype):
            try:
                check_rows(implementation, case, dtype)
            except AssertionError:
                names.append(case.name)
    return names


def without(*names: str) -> Fault:
    """An option that is accepted and not passed on."""
    return lambda x, y, o: honest(x, y, {key: value for key, value in o.items() if key not in names})


def gradient_without(*names: str) -> Fault:
    """An option that the loss knows and its gradient does not."""
    return lambda x, y, o: (honest(x, y, o)[0], without(*names)(x, y, o)[1])


def on_gradient(change: Callable[..., np.ndarray]) -> Fault:
    def fault(x, y, o):
        loss, gradient = honest(x, y, o)
        return loss, change(gradient, x, y, o)

    return fault


def on_logits(change: Callable[..., np.ndarray]) -> Fault:
    return lambda x, y, o: honest(change(x, o), y, o)


def only_the_label(gradient, x, y, o):
    return gradient if y.ndim == 2 else np.where(np.arange(x.shape[1]) == y[:, None], gradient, 0.0)


def not_ignored(gradient, x, y, o):
    ignored = y == o.get("ignore_index", -100) if y.ndim == 1 else np.zeros(len(y), bool)
    return np.where(ignored[:, None], honest(x, np.zeros(len(y), int), {})[1], gradient)


def ignored_loss_uninitialised(x, y, o):
    loss, gradient = honest(x, y, o)
    return (loss if y.ndim == 2 else np.where(y == o.get("ignore_index", -100), 1e-30, loss)), gradient


def ignored_rows_count(x, y, o):
    return honest(x, y if y.ndim == 2 else y.clip(0, x.shape[1] - 1), {**o, "ignore_index": -(2**40)})


def padded_columns(x, y, o):
    """Columns of zeros up to the next multiple of four, counted in the log-sum-exp."""
    classes, padding = x.shape[1], -x.shape[1] % 4
    wide = np.pad(x, ((0, 0), (0, padding)))
    p = np.pad(y, ((0, 0), (0, padding))) if y.ndim == 2 else y
    options = {**o, "weight": np.pad(np.asarray(o["weight"]), (0, padding))} if "weight" in o else o
    loss, gradient = honest(wide, p, options)
    return loss, gradient[:, :classes]


def last_column_lost(x, y, o):
    """The log-sum-exp ends at the last full block of two: the tail counts for the target only."""
    loss, gradient = honest(x, y, o)
    if x.shape[1] % 2 == 0 or x.shape[1] == 1:
        return loss, gradient
    z = o.get("logit_scale", 1.0) * x
    tail = np.exp(z[:, -1] - np.logaddexp.reduce(z, axis=1))
    return loss + np.log1p(-np.minimum(tail, 1 - 1e-16)), gradient


def lse_rounded(digits: int) -> Fault:
    """The log-sum-exp is kept with so many bits, as an accumulation in a narrower dtype leaves it."""

    def fault(x, y, o):
        loss, gradient = honest(x, y, o)
        lse = np.logaddexp.reduce(x, axis=1)
        mantissa, exponent = np.frexp(lse)
        error = np.ldexp(np.round(np.ldexp(mantissa, digits)), exponent - digits) - lse
        return loss + np.where(np.isfinite(error) & (loss != 0), error, 0.0), gradient

    return fault


def smoothed_by_local_classes(x, y, o):
    """Two shards, each of which spreads the smoothing over its own half of the classes."""
    loss, gradient = honest(x, y, o)
    plain, plain_gradient = without("label_smoothing")(x, y, o)
    return plain + 2 * (loss - plain), plain_gradient + 2 * (gradient - plain_gradient)


def smoothing_weighted_by_the_label(x, y, o):
    if "weight" not in o or y.ndim == 2:
        return honest(x, y, o)
    counts = np.asarray(o["weight"])[np.where(y == o.get("ignore_index", -100), 0, y)]
    loss, gradient = without("weight")(x, y, o)
    return loss * counts, gradient * counts[:, None]


def softcapped_mask(x, o):
    return np.where(np.isneginf(x), -1e30, x) if "softcap" in o else x


def hardened(x, y, o):
    return honest(x, y.argmax(axis=1) if y.ndim == 2 else y, o)


def clipped(x, y, o):
    loss, gradient = honest(x, y, o)
    return np.minimum(loss, -np.log(1e-15)), gradient


BROKEN = {
    "gradient is zero": on_gradient(lambda g, x, y, o: 0 * np.nan_to_num(g)),
    "gradient is zero off the label": on_gradient(only_the_label),
    "gradient has the wrong sign": on_gradient(lambda g, x, y, o: -g),
    "gradient is moved by a class": on_gradient(lambda g, x, y, o: np.roll(g, 1, axis=1)),
    "gradient is half": on_gradient(lambda g, x, y, o: g / 2),
    "gradient is off by a thousandth": on_gradient(lambda g, x, y, o: g * 1.001),
    "gradient is left in ignored rows": on_gradient(not_ignored),
    "smoothing is dropped": without("label_smoothing"),
    "smoothing is dropped from the gradient": gradient_without("label_smoothing"),
    "smoothing uses the classes of a shard": smoothed_by_local_classes,
    "smoothing has the label's weight": smoothing_weighted_by_the_label,
    "z-loss is dropped": without("z_loss"),
    "z-loss is dropped from the gradient": gradient_without("z_loss"),
    "z-loss is there although off": lambda x, y, o: honest(x, y, {"z_loss": 1e-4, **o}),
    "weights are dropped": without("weight"),
    "weights are dropped from the gradient": gradient_without("weight"),
    "softcap is dropped": without("softcap"),
    "softcap is dropped from the gradient": gradient_without("softcap"),
    "softcap unmasks a class": on_logits(softcapped_mask),
    "scale is dropped": without("logit_scale"),
    "scale is dropped from the gradient": gradient_without("logit_scale"),
    "ignored rows have a loss": ignored_loss_uninitialised,
    "ignored rows count": ignored_rows_count,
    "padding counts in the log-sum-exp": padded_columns,
    "the tail is missing in the log-sum-exp": last_column_lost,
    "log-sum-exp in bfloat16": lse_rounded(8),
    "class probabilities are taken for labels": hardened,
    "impossible events are clipped": clipped,
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_honest_twin_passes(dtype):
    assert rejected(twin("honest", honest), dtype) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", BROKEN.values(), ids=BROKEN)
def test_a_broken_twin_is_rejected(fault, dtype):
    assert rejected(twin("broken", fault), dtype)


@pytest.mark.parametrize(("dtype", "digits"), [("float64", 24), ("float64", 45), ("float32", 11), ("float32", 16)])
def test_a_log_sum_exp_of_fewer_bits_is_rejected(dtype, digits):
    """Also when it has 45 of float64's 53 bits, or 16 of float32's 24: the bounds are no wider than rounding."""
    assert rejected(twin("narrow", lse_rounded(digits)), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "scale",
    [lambda s: np.full_like(s, s[0]), np.ones_like, np.abs, lambda s: s[::-1], lambda s: s / len(s)],
    ids=["first row for all", "dropped", "absolute", "reversed", "divided by the rows"],
)
def test_a_wrong_factor_per_row_is_rejected(scale, dtype):
    assert rejected(twin("scaled", honest, scale), dtype)


# The front: what is made of the rows.


def front(name: str, divide: Callable[[Case, dict[str, Any]], tuple[float, float]]) -> Implementation:
    """A twin whose value and gradient are divided by what `divide` returns for the case and the reduction."""

    def call(logits, target, **options):
        reduction = {key: options.pop(key) for key in ("reduction", "denominator") if key in options}
        case = Case(name, logits, target, options)
        loss, gradient = honest(logits.astype(np.float64), target, options)
        by, gradient_by = divide(case, reduction)
        value = loss.sum() / by if by else np.nan
        return value, gradient / gradient_by if gradient_by else 0 * gradient

    return Implementation(name, ("float64",), REFERENCE.run, call)


def right(case: Case, reduction: dict[str, Any]) -> float:
    return 1.0 if reduction["reduction"] == "sum" else reduction.get("denominator", denominator(case))


def all_rows(case: Case, reduction: dict[str, Any]) -> float:
    return right(case, reduction) if "denominator" in reduction or reduction["reduction"] == "sum" else len(case.target)


def not_weighted(case: Case, reduction: dict[str, Any]) -> float:
    plain = replace(case, options={key: value for key, value in case.options.items() if key != "weight"})
    return right(plain, reduction)


def own_denominator(case: Case, reduction: dict[str, Any]) -> float:
    return right(case, {"reduction": reduction["reduction"]})


WRONG_DENOMINATORS = {
    "ignored rows count": lambda c, r: (all_rows(c, r),) * 2,
    "weights are not counted": lambda c, r: (not_weighted(c, r),) * 2,
    "the given one is dropped": lambda c, r: (own_denominator(c, r),) * 2,
    "gradient is that of the sum": lambda c, r: (right(c, r), 1.0),
    "gradient is divided by all rows": lambda c, r: (right(c, r), all_rows(c, r)),
    "never zero": lambda c, r: (max(right(c, r), 1e-8),) * 2,
}


def rejected_reductions(implementation: Implementation) -> list[str]:
    names = []
    for case in CASES:
        for reduction in REDUCTIONS:
            try:
                check_reduction(implementation, case, "float64", reduction)
            except AssertionError:
                names.append(case.name)
    return names


def test_the_honest_front_passes():
    assert rejected_reductions(front("honest", lambda c, r: (right(c, r), right(c, r)))) == []


@pytest.mark.parametrize("divide", WRONG_DENOMINATORS.values(), ids=WRONG_DENOMINATORS)
def test_a_wrong_denominator_is_rejected(divide):
    assert rejected_reductions(front("broken", divide))


# Information: the textbook formulas, at the distributions for which the careful ones were written.


def test_the_textbook_divergence_is_rejected():
    p = np.array([0.5, 0.25, 0.25])
    q = p * (1 + np.array([1e-9, -1e-9, -1e-9]))
    with mpmath.workdps(60):
        wanted = float(oracle.kl_divergence(p, q))
    with pytest.raises(AssertionError, match="rounding"):
        relative(np.sum(p * np.log(p / q)), wanted)


def test_the_logarithm_of_a_softmax_is_rejected():
    x = BY_NAME["confident"].logits[0]
    with oracle.exactly():
        wanted = oracle.floats(oracle.log_softmax(x))
    q = np.exp(x) / np.exp(x).sum()
    with pytest.raises(AssertionError, match="rounding"):
        relative(np.log(q), wanted)


def test_a_comparison_sees_a_wrong_infinity_a_nan_and_a_wrong_shape():
    for found in ([np.inf, 1.0], [np.nan, 1.0], [-np.inf, 1.0], [1e308, 1.0], [2.0], [[2.0, 1.0]]):
        with pytest.raises(AssertionError):
            relative(found, [2.0, 1.0])
    with pytest.raises(AssertionError):
        relative([1e308, 1.0], [np.inf, 1.0])
