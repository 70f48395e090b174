"""Classes sharded over 1, 2, 3 and 4 processes give what the definition gives for all classes at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import ranks
from cases import Case, Expected
from comparison import assert_within, eps, finite, kernel_bounds, rounded_to
from ranks import Failure, Given, Ranks

from xent import reference
from xent.objective import Objective
from xent.reference.cross_entropy import bent_logits, bent_logits_derivative, ignored, target_weights
from xent.torch.parallel import traffic

CLASSES, ROWS, FEATURES = 50257, 6, 8
CUTS = {
    1: (0, CLASSES),
    2: (0, 17000, CLASSES),
    3: (0, 20001, 20002, CLASSES),  # one rank has one class
    4: (0, 9000, 30000, 30000, CLASSES),  # and one has none
}


@pytest.fixture(scope="module")
def pool() -> Iterator[Ranks]:
    found = Ranks(4)
    yield found
    found.close()


def _weights(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 5, CLASSES).astype(np.float32) / 4


@dataclass(frozen=True, eq=False)
class Problem:
    """One call on all classes, in float64 and as float32 has it."""

    logits: np.ndarray
    hidden: np.ndarray
    head: np.ndarray
    bias: np.ndarray
    target: np.ndarray
    weight: np.ndarray | None
    options: dict[str, Any]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "denominator": {"denominator": 2.5},
    "ignore": {"ignore": [1, 4]},
    "ignore-all": {"ignore": range(ROWS), "reduction": "sum"},
    "weight": {"weight": True},
    "weight-ignore": {"weight": True, "ignore": [0], "ignore_index": 7},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing-weight": {"label_smoothing": 0.3, "weight": True, "ignore": [2]},
    "z-loss": {"z_loss": 0.01},
    "softcap": {"softcap": 4.0},
    "scale": {"logit_scale": 0.25},
    "everything": {
        "weight": True, "label_smoothing": 0.2, "z_loss": 0.01, "softcap": 9.0, "logit_scale": 0.5, "ignore": [3],
    },
    "soft": {"soft": True},
    "soft-everything": {"soft": True, "weight": True, "label_smoothing": 0.2, "z_loss": 0.01, "softcap": 9.0},
    "masked": {"masked": slice(9000, 30000)},
    "offset": {"offset": 8192.0},
}  # fmt: skip


@cache
def problem(name: str) -> Problem:
    """Small whole numbers times each other make logits that float32 has exactly, also as the output of a layer."""
    options = dict(OPTIONS[name])
    rng = np.random.default_rng(len(name))
    hidden = rng.integers(-2, 3, (ROWS, FEATURES)).astype(np.float32)
    head = rng.integers(-2, 3, (CLASSES, FEATURES)).astype(np.float32)
    bias = rng.integers(-3, 4, CLASSES).astype(np.float32) + options.pop("offset", 0.0)
    bias[options.pop("masked", slice(0))] = -np.inf
    target: np.ndarray = rng.integers(0, CLASSES, ROWS)
    # Labels at the ends of the shards, in a masked one never.
    target[:5] = [0, 8999, 30000, 30001, CLASSES - 1]
    if options.pop("soft", False):
        target = rng.dirichlet(np.full(CLASSES, 0.01), ROWS).astype(np.float32)
        target[0] = 0
        target[0, 20001] = 1
    without = list(options.pop("ignore", []))
    if without:
        target[without] = options.get("ignore_index", -100)
    weight = _weights(rng) if options.pop("weight", False) else None
    return Problem(hidden @ head.T + bias, hidden, head, bias, target, weight, options)


@dataclass(frozen=True)
class Wanted:
    value: np.ndarray
    value_bound: np.ndarray
    gradient: np.ndarray
    gradient_bound: np.ndarray


@cache
def wanted(of: Problem) -> Wanted:
    """Value and gradient by the definition, and what float32 is entitled to."""
    numbers = Objective.of("test", {**of.options, "weight": of.weight})  # type: ignore[typeddict-item]
    logits = of.logits.astype(np.float64)
    loss, lse = reference.cross_entropy(logits, of.target, numbers)
    gradient = reference.cross_entropy_gradient(logits, of.target, numbers)
    t = target_weights(of.target, CLASSES, numbers)
    slope = bent_logits_derivative(logits, numbers)
    q = np.exp(bent_logits(logits, numbers) - lse[:, None])
    total = t.sum(axis=1)
    counted = ~ignored(of.target, numbers)
    pull = np.abs(total + 2 * numbers.z_loss * lse)[:, None] * q * slope * counted[:, None]
    expected = Expected(loss, lse * counted, gradient, pull, t * slope, loss, total)
    case = Case("parallel", logits, of.target, of.options)
    loss_bound, gradient_bound = kernel_bounds(case, expected, "float32")
    scale = np.ones(ROWS)
    if numbers.reduction == "mean":
        soft = of.target.ndim == 2
        count = ROWS if soft else counted.sum()
        if of.weight is not None and not soft:
            count = sum(of.weight[label] for label in of.target[counted])
        scale = scale / (numbers.denominator or count)
    if numbers.reduction == "none":
        value, bound = loss, loss_bound
    else:
        value, bound = (loss * scale).sum(), (loss_bound * scale).sum()
    gradient, gradient_bound = gradient * scale[:, None], gradient_bound * scale[:, None]
    return Wanted(
        np.asarray(value),
        np.asarray(bound + rounded_to("float32", np.asarray(value))),
        gradient,
        gradient_bound + 2 * rounded_to("float32", gradient),
    )


def given_logits(of: Problem, size: int, dtype: str = "float32") -> Given:
    axis = 1 if of.target.ndim == 2 else None
    arrays: dict[str, Any] = {"input": (of.logits, 1), "target": (of.target, axis)}
    if of.weight is not None:
        arrays["weight"] = (of.weight, 0)
    return Given("cross_entropy", arrays, CUTS[size], of.options, dtype)


def given_layer(of: Problem, size: int, dtype: str = "float32", **options: Any) -> Given:
    arrays = {**given_logits(of, size).arrays, "input": (of.hidden, None), "linear_weight": (of.head, 0)}
    arrays["linear_bias"] = (of.bias, 0)
    return Given("linear_cross_entropy", arrays, CUTS[size], {**of.options, **options}, dtype)


def joined(found: list[dict[str, Any]], name: str, axis: int) -> np.ndarray:
    return np.concatenate([part[name] for part in found], axis)


def same_on_all(found: list[Any]) -> np.ndarray:
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])
    return np.asarray(found[0])


def check_logits(found: list[dict[str, Any]], of: Problem) -> None:
    right = wanted(of)
    value = same_on_all([part["value"][0] for part in found])
    assert_within(value, right.value, right.value_bound, "value")
    assert_within(joined(found, "input", 1), right.gradient, right.gradient_bound, "gradient")


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("name", OPTIONS)
def test_sharded_logits_are_the_definition(pool, size, name):
    """Value and gradient, all options, on 1, 2, 3 and 4 ranks with uneven shards."""
    of = problem(name)
    check_logits(pool.run(ranks.evaluate, size, given_logits(of, size)), of)


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("name", OPTIONS)
def test_sharded_layers_are_the_definition(pool, size, name):
    """The same for the linear loss, in chunks of two rows: value, and gradients of input, weight and bias."""
    of, right = problem(name), wanted(problem(name))
    workspace = 2 * 4 * (CLASSES + (CLASSES if of.target.ndim == 2 else 0)) + 500_000
    found = pool.run(ranks.evaluate, size, given_layer(of, size, workspace=workspace))
    value = same_on_all([part["value"][0] for part in found])
    assert_within(value, right.value, right.value_bound, "value")
    sums = 600 * eps(np.float32)  # what a product adds up one after the other, in blocks
    size_of, bound = np.abs(right.gradient), right.gradient_bound
    assert_within(
        same_on_all([part["input"] for part in found]),
        right.gradient @ of.head.astype(np.float64),
        bound @ np.abs(of.head) + sums * (size_of @ np.abs(of.head)),
        "input",
    )
    assert_within(
        joined(found, "linear_weight", 0),
        right.gradient.T @ of.hidden.astype(np.float64),
        bound.T @ np.abs(of.hidden) + ROWS * eps(np.float32) * (size_of.T @ np.abs(of.hidden)),
        "weight",
    )
    assert_within(
        joined(found, "linear_bias", 0),
        right.gradient.sum(axis=0),
        bound.sum(axis=0) + ROWS * eps(np.float32) * size_of.sum(axis=0),
        "bias",
    )
