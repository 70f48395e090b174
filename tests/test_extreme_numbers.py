"""The largest numbers of a dtype, and sums that have to stay exact: against mpmath."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import mpmath_oracle as oracle
import numpy as np
import pytest
import torch
from comparison import ULPS, assert_within, eps, relative

import xent.numpy
import xent.reference as reference
import xent.torch
from xent.backends.formula import FORMULA
from xent.information import cross_entropy, entropy, js_divergence, kl_divergence, log_softmax, perplexity, softmax
from xent.objective import Objective

# --------------------------------------------------------------------------------------------------- the largest floats

LARGEST = 3e38
ROWS = {
    "both signs": [LARGEST, -LARGEST, 0.0],
    "signs exchanged": [-LARGEST, LARGEST, 0.0],
    "all positive": [LARGEST] * 3,
    "all negative": [-LARGEST] * 3,
    "two equal": [1e38, 1e38, 0.0],
    "one": [LARGEST, -1.0, -5.0],
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "z-loss": {"z_loss": 1e-4},
    "smoothing": {"label_smoothing": 0.125},
    "softcap": {"softcap": 32.0},
    "softcap, scale": {"softcap": 32.0, "logit_scale": 2.0},
    "scale": {"logit_scale": 0.5},
    "weight": {"weight": [0.5, 2.0, 1.0]},
}


def from_numpy(logits: np.ndarray, target: np.ndarray, options: dict[str, Any]) -> tuple[Any, Any]:
    return xent.numpy.cross_entropy_value_and_grad(logits, target, reduction="sum", **options)


def from_linear(logits: np.ndarray, target: np.ndarray, options: dict[str, Any]) -> tuple[Any, Any]:
    identity = np.eye(logits.shape[1], dtype=np.float32)
    loss, gradients = xent.numpy.linear_cross_entropy_value_and_grad(
        logits, identity, target, reduction="sum", **options
    )
    return loss, gradients.input


def from_torch(logits: np.ndarray, target: np.ndarray, options: dict[str, Any]) -> tuple[Any, Any]:
    x, others = torch.tensor(logits, requires_grad=True), dict(options)
    weight = torch.tensor(others.pop("weight")) if "weight" in others else None
    loss = xent.torch.cross_entropy(x, torch.tensor(target), weight, reduction="sum", **others)
    loss.backward()
    return loss.detach().numpy(), x.grad.numpy()


def from_formula(logits: np.ndarray, target: np.ndarray, options: dict[str, Any]) -> tuple[Any, Any]:
    x, y, others = torch.tensor(logits), torch.tensor(target), dict(options)
    objective = Objective(**{**others, "weight": torch.tensor(others["weight"]) if "weight" in others else None})
    losses, saved = FORMULA.forward(x, y, objective)
    return losses[0].numpy(), FORMULA.backward(x, y, saved, 1.0, objective).numpy()


def from_reference(logits: np.ndarray, target: np.ndarray, options: dict[str, Any]) -> tuple[Any, Any]:
    x, objective = logits.astype(np.float64), Objective(**options)
    with np.errstate(over="ignore"):
        loss = reference.cross_entropy(x, target, objective)[0][0].astype(np.float32)
    return loss, reference.cross_entropy_gradient(x, target, objective)


FRONTS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "numpy": from_numpy,
    "linear": from_linear,
    "torch": from_torch,
    "formula": from_formula,
    "reference": from_reference,
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("front", FRONTS)
def test_the_largest_logits_have_a_loss_where_float32_holds_it_and_no_gradient_is_nan(front, row, options):
    logits, given = np.array([ROWS[row]], np.float32), OPTIONS[options]
    if front == "formula":  # torch's operations hold the differences of the logits, which have to be in float32
        logits = logits / 2
    for target in (0, 1, 2, [0.5, 0.25, 0.25]):
        with oracle.exactly():
            wanted = oracle.cross_entropy_row(logits[0], target, **given)
            exact, gradient = float(wanted.loss), oracle.floats(wanted.gradient)
            size = oracle.floats([a + b for a, b in zip(wanted.pull, wanted.push, strict=True)])
        y = np.array([target], np.float32) if isinstance(target, list) else np.array([target])
        loss, found = FRONTS[front](logits, y, given)
        unit = 4 * eps(np.float32)
        with np.errstate(over="ignore"):
            rounded = np.float32(exact)
        # The softcapped logits, up to 32, are rounded; so is the weight of each class that multiplies them.
        assert_within(loss, rounded, unit * (exact + 32) if np.isfinite(rounded) else 0, f"loss, target {target}")
        # In a probability exp(z - lse) the rounding of z, between -32 and 32, is a relative error.
        size = size * (1 + 64 * ("softcap" in given))
        assert_within(found[0], gradient, unit * size + float(np.finfo(np.float32).tiny), f"gradient, target {target}")


@pytest.mark.parametrize("row", ROWS)
def test_the_largest_logits_have_statistics(row):
    """The log-probability and the entropy of ties and of certain classes, and -inf where float32 does not hold it."""
    logits = np.array([ROWS[row]], np.float32)
    for label in range(3):
        found = xent.numpy.linear_statistics(logits, np.eye(3, dtype=np.float32), [label])
        of_torch = xent.torch.statistics(torch.tensor(logits), torch.tensor([label]))
        with oracle.exactly():
            logs = oracle.log_softmax(logits[0])
            entropy_of_row = -mpmath.fsum(mpmath.exp(v) * v for v in logs)
            with np.errstate(over="ignore"):
                wanted = np.float32(float(logs[label])), float(entropy_of_row)
        for statistics in (found, of_torch):
            assert_within(np.asarray(statistics.log_prob)[0], wanted[0], 4 * eps(np.float32) * abs(wanted[0]))
            assert_within(np.asarray(statistics.entropy)[0], wanted[1], 8 * eps(np.float32))


@pytest.mark.parametrize("z_loss", [1.0, 1e3, 1e30])
def test_an_overflow_of_the_z_loss_is_no_nan_in_the_gradient_of_the_definitions(z_loss):
    """2 z_loss lse overflows, and infinity times a probability of 0 is NaN."""
    for row in ([1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [-1.0, -1.0, -1.0]):
        with np.errstate(over="ignore"):
            gradient = reference.cross_entropy_gradient(
                1.7e308 * np.array([row]), np.array([0]), Objective(z_loss=z_loss)
            )
        assert not np.isnan(gradient).any()
        assert (np.sign(gradient[0, 0]) == np.sign(row[0])).all()
        logits = torch.tensor([row]) * 3.4e38
        of_formula = FORMULA.backward(logits, torch.tensor([0]), None, 1.0, Objective(z_loss=z_loss))
        assert not torch.isnan(of_formula).any()


# ---------------------------------------------------------------------------------------------------------------- sums


@pytest.mark.parametrize("classes", [513, 2047, 2048])
@pytest.mark.parametrize("positions", [1, 5])
def test_uniform_class_probabilities_of_many_classes_keep_the_promise_of_float64(classes, positions):
    """Naive summation of 2047 equal terms is off by five times as much."""
    p = np.full((2, classes, positions), 1 / classes)
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(np.zeros(p.shape), p, reduction="none")
    with oracle.exactly():
        mass = classes * mpmath.mpf(1 / classes)
        wanted = float(mass * mpmath.log(classes))
        slope = float(mass / classes - mpmath.mpf(1 / classes))
    relative(loss, np.full(loss.shape, wanted))
    assert_within(gradient, np.full(p.shape, slope), ULPS * eps(np.float64) / classes)


# ---------------------------------------------------------------------------------------------------------- longdouble

LONG_EPS = np.finfo(np.longdouble).eps


def exact(values: np.ndarray) -> list[mpmath.mpf]:
    """The numbers of a longdouble array, which float() would round."""
    upper = values.astype(np.float64)
    lower = (values - upper).astype(np.float64)
    return [mpmath.mpf(float(a)) + mpmath.mpf(float(b)) for a, b in zip(upper, lower, strict=True)]


def distributions() -> list[tuple[np.ndarray, np.ndarray]]:
    """Near and far pairs: the series of the divergences is used where they are near."""
    rng = np.random.default_rng(3)
    pairs = []
    for spread in (1e-3, 0.3, 3.0):
        p = rng.random(7).astype(np.longdouble) + np.longdouble(0.05)
        q = p * np.exp(spread * rng.normal(size=7).astype(np.longdouble))
        pairs.append((p / p.sum(), q / q.sum()))
    narrow = np.array([np.longdouble(7) / 20, np.longdouble(13) / 20])
    return [*pairs, (narrow, narrow[::-1].copy())]


@pytest.mark.skipif(eps(np.float64) == LONG_EPS, reason="longdouble is float64 here")
@pytest.mark.parametrize("base", [None, 2, 10, 3])
def test_longdouble_is_computed_to_the_accuracy_of_longdouble(base, monkeypatch):
    monkeypatch.setattr(oracle, "numbers", lambda values: values if isinstance(values, list) else exact(values))
    options = {} if base is None else {"base": base}
    for p, q in distributions():
        with oracle.exactly(100):
            unit = mpmath.log(base) if base else mpmath.mpf(1)
            wanted = {
                entropy: oracle.entropy(p) / unit,
                cross_entropy: oracle.cross_entropy(p, q) / unit,
                kl_divergence: oracle.kl_divergence(p, q) / unit,
                js_divergence: oracle.js_divergence(p, q) / unit,
            }
            for f, value in wanted.items():
                found = f(p, **options) if f is entropy else f(p, q, **options)
                assert found.dtype == np.longdouble
                error = abs(exact(np.reshape(found, 1))[0] - value)
                assert error <= ULPS * float(LONG_EPS) * value, f"{f.__name__}: {float(error / value / LONG_EPS)} ulps"
            found = exact(np.reshape(perplexity(p, q), 1))[0]
            value = mpmath.exp(oracle.cross_entropy(p, q))
            assert abs(found - value) <= ULPS * float(LONG_EPS) * value


@pytest.mark.skipif(eps(np.float64) == LONG_EPS, reason="longdouble is float64 here")
def test_the_softmax_of_longdouble_is_computed_to_its_accuracy():
    x = 40 * np.random.default_rng(4).normal(size=9).astype(np.longdouble)
    with oracle.exactly(100):
        q, lse = oracle.softmax(exact(x))
        for found, value in zip(exact(softmax(x)), q, strict=True):
            assert abs(found - value) <= ULPS * float(LONG_EPS) * value
        for found, logit in zip(exact(log_softmax(x)), exact(x), strict=True):
            assert abs(found - (logit - lse)) <= ULPS * float(LONG_EPS) * abs(logit - lse)
