"""Classes sharded over 1, 2, 3 and 4 processes give what the definition gives for all classes at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from inspect import signature
from typing import Any
from unittest import mock

import numpy as np
import pytest
import ranks
import torch
import torch.distributed as dist
from cases import Case, Expected
from comparison import assert_within, eps, finite, kernel_bounds, rounded_to
from ranks import Failure, Given, Ranks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from xent import reference
from xent.errors import ArgumentError, DTypeError, LabelError, ObjectiveError, RankError, ShapeError, XentError
from xent.numpy import linear_cross_entropy_value_and_grad
from xent.objective import Objective
from xent.reference.cross_entropy import ignored, softcapped_logits, softcapped_logits_derivative, target_weights
from xent.torch import parallel
from xent.torch.parallel import agreement, traffic
from xent.torch.parallel.agreement import REPORT_BYTES

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
    sample_weight: np.ndarray | None = None


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
    "focal": {"focal_gamma": 2.0, "weight": True, "ignore": [1]},
    "sample-weight": {"sample_weight": True, "ignore": [1]},
    "sample-weight-none": {"sample_weight": True, "reduction": "none"},
    "sample-weight-everything": {"sample_weight": True, "weight": True, "label_smoothing": 0.2, "ignore": [3]},
    "sample-weight-soft": {"sample_weight": True, "soft": True},
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
    of_rows = rng.integers(0, 5, ROWS).astype(np.float32) / 4 if options.pop("sample_weight", False) else None
    return Problem(hidden @ head.T + bias, hidden, head, bias, target, weight, options, of_rows)


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
    slope = softcapped_logits_derivative(logits, numbers)
    q = np.exp(softcapped_logits(logits, numbers) - lse[:, None])
    total = t.sum(axis=1)
    counted = ~ignored(of.target, numbers)
    pull = np.abs(total + 2 * numbers.z_loss * lse)[:, None] * q * slope * counted[:, None]
    expected = Expected(loss, lse * counted, gradient, pull, t * slope, loss, total)
    case = Case("parallel", logits, of.target, of.options)
    loss_bound, gradient_bound = kernel_bounds(case, expected, "float32")
    scale = np.ones(ROWS) if of.sample_weight is None else of.sample_weight.astype(np.float64)
    if numbers.reduction == "mean":
        counts = scale * counted
        if of.weight is not None and of.target.ndim == 1:
            counts = counts * of.weight[np.where(counted, of.target, 0)]
        scale = scale / (numbers.denominator or counts.sum())
    if numbers.reduction == "none":
        value, bound = loss * scale, loss_bound * scale
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
    if of.sample_weight is not None:
        arrays["sample_weight"] = (of.sample_weight, None)
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
    of = problem(name)
    workspace = 2 * 4 * (CLASSES + (CLASSES if of.target.ndim == 2 else 0)) + 500_000
    check_layer(pool.run(ranks.evaluate, size, given_layer(of, size, workspace=workspace)), of)


@pytest.mark.parametrize("name", ["plain", "everything", "soft", "masked"])
def test_layers_on_other_devices_are_the_definition(pool, name):
    """What a GPU computes with, on the CPU."""
    check_layer(pool.run(ranks.evaluate_formulas, 3, given_layer(problem(name), 3)), problem(name))


def check_layer(found: list[dict[str, Any]], of: Problem) -> None:
    right = wanted(of)
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


# ---------------------------------------------------------------------------------------------------- other properties


SMALL = (0, 30, 31, 31, 97)


def small(dtype: str = "float64", **options: Any) -> tuple[Given, Given]:
    """A small call on logits and as a layer, of 97 classes over four ranks."""
    rng = np.random.default_rng(5)
    hidden, head = rng.integers(-2, 3, (9, 4)).astype(dtype), rng.integers(-2, 3, (97, 4)).astype(dtype)
    labels = rng.integers(0, 97, 9)
    arrays: dict[str, Any] = {"input": (hidden @ head.T, 1), "target": (labels, None)}
    logits = Given("cross_entropy", arrays, SMALL, options, dtype)
    layer = {"input": (hidden, None), "linear_weight": (head, 0), "target": (labels, None)}
    return logits, Given("linear_cross_entropy", layer, SMALL, options, dtype)


@pytest.mark.parametrize("name", OPTIONS)
def test_formulas_of_other_devices_are_the_definition(pool, name):
    """What a GPU computes with, on the CPU."""
    check_logits(pool.run(ranks.evaluate_formulas, 3, given_logits(problem(name), 3)), problem(name))


@pytest.mark.parametrize("task", [ranks.evaluate, ranks.evaluate_formulas])
def test_every_row_has_its_own_upstream_gradient(pool, task):
    """Liger-Kernel #968: with reduction="none" each row's gradient is scaled by its own."""
    logits, layer = small(reduction="none")
    upstream = np.linspace(2.0, -1.5, 9)
    plain, scaled = (pool.run(task, 4, logits._replace(upstream=(u,))) for u in (1.0, upstream))
    for one, other in zip(plain, scaled, strict=True):
        assert_within(other["input"], one["input"] * upstream[:, None], 4 * eps(np.float64))
    plain, scaled = (pool.run(ranks.evaluate, 4, layer._replace(upstream=(u,))) for u in (np.ones(9), upstream))
    rows = layer.arrays["input"][0]
    for one, other in zip(plain, scaled, strict=True):
        assert_within(other["input"], one["input"] * upstream[:, None], 400 * eps(np.float64))
        assert np.abs(other["input"]).max() > 0.1
    assert rows.shape == plain[0]["input"].shape


@pytest.mark.parametrize("factor", [1.0, 0.5, 3.0])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_gradient_from_above_scales_what_is_ready(pool, dtype, factor):
    _, layer = small("float32", reduction="sum")
    found = pool.run(ranks.evaluate, 4, layer._replace(dtype=dtype, upstream=(factor,)))
    hidden, head, labels = (layer.arrays[name][0] for name in ("input", "linear_weight", "target"))
    right = reference.linear_cross_entropy_gradients(
        hidden.astype(float), head.astype(float), None, labels, factor, Objective()
    )
    unit = eps(np.float64) * 50 if dtype == "float64" else 2.0**-7
    # 16-bit gradients of logits are rounded where the products are; each share is rounded, and then their sum.
    size = np.abs(
        reference.cross_entropy_gradient(hidden.astype(float) @ head.T.astype(float), labels, Objective()) * factor
    )
    assert_within(same_on_all([p["input"] for p in found]), right.input, 2 * unit * (size @ np.abs(head)) + 1e-30)
    assert_within(joined(found, "linear_weight", 0), right.linear_weight, 2 * unit * (size.T @ np.abs(hidden)) + 1e-30)


STATISTICS = {"plain": {}, "softcap": {"softcap": 4.0, "logit_scale": 0.5}, "ignore": {"ignore_index": 40}}


@pytest.mark.parametrize("task", [ranks.evaluate, ranks.evaluate_formulas])
@pytest.mark.parametrize("options", STATISTICS.values(), ids=STATISTICS)
@pytest.mark.parametrize("size", [1, 4])
def test_sharded_statistics_are_those_of_all_classes(pool, size, options, task):
    """Against the definitions of information.py; ties and a masked class in every row."""
    logits, layer = small()
    cuts = SMALL if size == 4 else (0, 97)
    x, labels = logits.arrays["input"][0].copy(), logits.arrays["target"][0].copy()
    x[:, 50] = -np.inf
    labels[:3] = [40, 50, 96]
    upstream = tuple(np.linspace(1, 2, 9) * factor for factor in (1.0, -0.5, 0.25))
    upstream[0][1] = 0  # the label is masked: its log-probability has no gradient to speak of
    given = Given("statistics", {"input": (x, 1), "target": (labels, None)}, cuts, options, "float64", upstream)
    found = pool.run(task, size, given)
    numbers = Objective(**options)
    z = softcapped_logits(x, numbers)
    lse = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)
    q = np.exp(z - lse[:, None])
    log_q = np.where(np.isfinite(z), z - lse[:, None], 0)
    entropy = -(q * log_q).sum(1)
    label_x = np.take_along_axis(x, labels[:, None], 1)
    log_prob = np.take_along_axis(z, labels[:, None], 1)[:, 0] - lse
    one_hot = labels[:, None] == np.arange(97)
    rank = (x > label_x).sum(1)
    without = ignored(labels, numbers)
    log_prob[without], rank[without] = 0, -1
    values = [same_on_all([part["value"][i] for part in found]) for i in range(5)]
    for value, right in zip(values[:3], (log_prob, entropy, lse), strict=True):
        assert_within(value, right, 40 * eps(np.float64) * (1 + np.abs(finite(right))))
    np.testing.assert_array_equal(values[3], x.argmax(1))
    np.testing.assert_array_equal(values[4], rank)
    of_label, of_entropy, of_lse = (u[:, None] for u in upstream)
    of_label = of_label * ~without[:, None]
    gradient = of_label * (one_hot - q) - of_entropy * q * (log_q + entropy[:, None]) + of_lse * q
    gradient = gradient * softcapped_logits_derivative(x, numbers)
    assert_within(joined(found, "input", 1), gradient, 100 * eps(np.float64))
    if task is ranks.evaluate:
        hidden, head = layer.arrays["input"][0], layer.arrays["linear_weight"][0]
        bias = np.where(np.arange(97) == 50, -np.inf, 0.0)
        arrays = {"input": (hidden, None), "linear_weight": (head, 0), "linear_bias": (bias, 0)}
        arrays["target"] = (labels, None)
        options = {**options, "workspace": 4000}
        linear = pool.run(ranks.evaluate, size, Given("linear_statistics", arrays, cuts, options, "float64", upstream))
        for value, right in zip((same_on_all([p["value"][i] for p in linear]) for i in range(5)), values, strict=True):
            assert_within(value, right, 40 * eps(np.float64) * (1 + np.abs(finite(right))))
        assert_within(same_on_all([p["input"] for p in linear]), gradient @ head, 1000 * eps(np.float64))
        assert_within(joined(linear, "linear_weight", 0), gradient.T @ hidden, 1000 * eps(np.float64))


def test_chunks_do_not_change_the_result(pool):
    """One chunk or nine: the same to rounding, and the same on every rank."""
    _, layer = small("float32", label_smoothing=0.1)
    few, many = (
        pool.run(ranks.evaluate, 4, layer._replace(options={**layer.options, "workspace": workspace}))
        for workspace in ("1MB", 2000)
    )
    for one, other in zip(few, many, strict=True):
        for name in ("input", "linear_weight"):
            assert_within(other[name], one[name], 20 * eps(np.float32))
        assert_within(other["value"][0], one["value"][0], 4 * eps(np.float32) * one["value"][0])


def test_axes_behind_the_classes(pool):
    """(N, C, d1, d2) logits, as torch has them."""
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(2, 97, 3, 2)), rng.integers(0, 97, (2, 3, 2))
    arrays = {"input": (logits, 1), "target": (labels, None)}
    found = pool.run(ranks.evaluate, 4, Given("cross_entropy", arrays, SMALL, {"reduction": "none"}, "float64"))
    rows = np.moveaxis(logits, 1, -1).reshape(-1, 97)
    loss, _ = reference.cross_entropy(rows, labels.reshape(-1), Objective())
    gradient = reference.cross_entropy_gradient(rows, labels.reshape(-1), Objective())
    assert_within(same_on_all([p["value"][0] for p in found]), loss.reshape(labels.shape), 40 * eps(np.float64))
    gradient = np.moveaxis(gradient.reshape(2, 3, 2, 97), -1, 1)
    assert_within(joined(found, "input", 1), gradient, 40 * eps(np.float64))


def test_dtensors_bring_their_group(pool):
    """Shard(1) of logits, Shard(0) of a weight, cut by torch: 97 classes in 25, 25, 25 and 22."""
    for given in small():
        found = pool.run(ranks.dtensors, 4, given)
        arrays = {name: array for name, (array, _) in given.arrays.items()}
        logits = arrays["input"] @ arrays["linear_weight"].T if "linear_weight" in arrays else arrays["input"]
        loss, _ = reference.cross_entropy(logits, arrays["target"], Objective())
        gradient = reference.cross_entropy_gradient(logits, arrays["target"], Objective()) / 9
        assert_within(same_on_all([p["value"][0] for p in found]), loss.mean(), 40 * eps(np.float64))
        if "linear_weight" in arrays:
            assert_within(found[0]["linear_weight"], gradient.T @ arrays["input"], 400 * eps(np.float64))
            gradient = gradient @ arrays["linear_weight"]
        assert_within(same_on_all([p["input"] for p in found]), gradient, 400 * eps(np.float64))


# ------------------------------------------------------------------------------------------------------------ traffic


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weight": True}, {"weight": True, "sum": True}])
def test_traffic_is_what_the_docs_say(pool, options):
    """Every collective is counted, with 9 rows in chunks of 1; the number of classes does not enter."""
    options = dict(options)
    weight = np.ones(97, np.float32)
    has_mass = options.pop("weight", False)
    reduction = "sum" if options.pop("sum", False) else "mean"
    # The weighted count of a mean is one number more.
    count = 8 if has_mass and reduction == "mean" else 0
    for given, features in zip(small("float32", reduction=reduction, **options), (0, 4), strict=True):
        given = given._replace(options={**given.options, **({"workspace": 2000} if features else {})})
        if has_mass:
            given = given._replace(arrays={**given.arrays, "weight": (weight, 0)})
        told = traffic(features=features, has_mass=has_mass)
        for handed in pool.run(ranks.counted, 4, given):
            chunks = (handed["calls"] - (3 if features else 0) - (count > 0) + (1 if features else 0)) // 2
            rows = 9 * (told.forward_per_row + told.backward_per_row)
            flags = told.per_chunk * chunks + (8 if features else 0)
            assert handed["all_reduce"] == rows + flags + count
            assert 300 < handed["all_gather"] <= REPORT_BYTES
            assert told.per_call == REPORT_BYTES + (8 if features else 0)


def test_traffic_of_statistics(pool):
    given, _ = small("float32")
    told = traffic("statistics")
    for handed in pool.run(ranks.counted, 4, given._replace(call="statistics")):
        assert handed["all_reduce"] == 9 * told.forward_per_row + told.per_chunk
        assert 300 < handed["all_gather"] <= told.per_call


def test_the_longest_report_fits_its_bound(pool):
    """Every option given, every number as long as it gets, all arguments there: per_call of `traffic` is a bound."""
    _, layer = small("float64")
    labels = layer.arrays["target"][0].copy()
    labels[0] = 2**62
    options = {
        "ignore_index": 2**62, "label_smoothing": 1 / 3, "z_loss": 1 / 3, "softcap": 100 / 3, "logit_scale": 1 / 3,
        "denominator": 1 / 3, "workspace": 2**60,
    }  # fmt: skip
    arrays = {**layer.arrays, "target": (labels, None), "linear_bias": (np.ones(97), 0), "weight": (np.ones(97), 0)}
    for handed in pool.run(ranks.counted, 4, layer._replace(arrays=arrays, options=options)):
        assert 500 < handed["all_gather"] < 0.8 * REPORT_BYTES  # the rest is for greater numbers of rows and classes


@pytest.mark.parametrize(
    ("argument", "value"),
    [("quantity", "nonsense"), ("quantity", ["loss"]), ("features", -1), ("features", 0.5), ("itemsize", 0)],
)
def test_traffic_of_nonsense_is_an_error(argument, value):
    with pytest.raises(ArgumentError, match=rf"traffic\({argument}=...\): found .*, expected "):
        traffic(**{argument: value})


@pytest.mark.parametrize("size", [0, -1, 2.0, None])
def test_a_number_of_ranks_is_checked(size):
    with pytest.raises(ArgumentError, match=r"ranks=...\): found .*, expected an integer of 1 or more"):
        traffic().sent_per_row(size)


# ------------------------------------------------------------------------------------------------------- denominators


@pytest.mark.parametrize("weighted", [False, True])
def test_the_global_denominator_counts_the_rows_of_all_ranks(pool, weighted):
    """pytorch #185167, Liger-Kernel #802, TRL #5890, transformers #35203: means of means, with 1 of 2 and 3 of 5 rows.

    pytorch's is a weighted mean over a tensor whose rows are split; the others are micro-batches of unequal size.
    """
    rng = np.random.default_rng(11)
    logits, labels = rng.normal(0, 3, (7, 12)), rng.integers(0, 12, 7)
    labels[[0, 4, 5]] = -100
    weight = rng.integers(1, 9, 12) / 4 if weighted else None
    numbers = Objective(weight=weight)
    loss, _ = reference.cross_entropy(logits, labels, numbers)
    gradient = reference.cross_entropy_gradient(logits, labels, numbers)
    of_rows = rng.integers(0, 5, 7) / 4 if weighted else np.ones(7)
    kept = np.ones(12) if weight is None else weight
    count = (of_rows * kept[np.where(labels == -100, 0, labels)])[labels != -100].sum()
    found = pool.run(ranks.rows_and_classes, 4, logits, labels, weight, of_rows if weighted else None)
    value = (of_rows * loss).sum() / count
    assert_within(found[0]["value"] + found[2]["value"], value, 40 * eps(np.float64))
    assert_within(found[0]["whole"] + found[2]["whole"], value, 40 * eps(np.float64))
    assert found[0]["value"] == found[1]["value"]
    for part in found:
        right = (of_rows[:, None] * gradient)[part["rows"]][:, part["classes"]] / count
        assert_within(part["gradient"], right, 40 * eps(np.float64))


@pytest.mark.parametrize("given", small(), ids=["logits", "layer"])
def test_a_mean_over_nothing_is_nan_with_zero_gradients(pool, given):
    """Liger-Kernel #177, pytorch #75181: all labels ignored."""
    labels = np.full(9, -100)
    found = pool.run(ranks.evaluate, 4, given._replace(arrays={**given.arrays, "target": (labels, None)}))
    assert np.isnan(same_on_all([p["value"][0] for p in found]))
    assert not any(p["input"].any() for p in found)


# --------------------------------------------------------------------------------------------- known failures of others


def test_smoothing_is_over_the_classes_of_all_ranks(pool):
    """Megatron-LM #737, #7464: label smoothing under tensor parallelism used the local number of classes."""
    x, labels = np.zeros((1, 8)), np.array([2])
    x[0, 2] = 4.0
    arrays = {"input": (x, 1), "target": (labels, None)}
    given = Given("cross_entropy", arrays, (0, 1, 3, 4, 8), {"label_smoothing": 0.4}, "float64")
    lse = np.log(np.exp(4.0) + 7)
    right = lse - (0.6 + 0.4 / 8) * 4.0
    for part in pool.run(ranks.evaluate, 4, given):
        assert_within(part["value"][0], right, 10 * eps(np.float64))


@pytest.mark.parametrize("sentinel", [-1, 97, 98, 128, -(2**31)])
@pytest.mark.parametrize("given", small(), ids=["logits", "layer"])
def test_a_sentinel_matches_no_column_of_a_shard(pool, given, sentinel):
    """ml-cross-entropy #59: a sentinel label matched a padded column of a shard and gave inf."""
    labels = given.arrays["target"][0].copy()
    labels[[1, 6]] = sentinel
    options = {"ignore_index": sentinel, "reduction": "none"}
    found = pool.run(
        ranks.evaluate, 4, given._replace(arrays={**given.arrays, "target": (labels, None)}, options=options)
    )
    value = same_on_all([p["value"][0] for p in found])
    assert not value[[1, 6]].any()
    assert (value[[0, 2, 3, 4, 5, 7, 8]] > 0).all()
    assert np.isfinite(value).all()


def test_padded_classes_of_the_last_shard_add_nothing(pool):
    """tokamax, verl #2899: zero-padded columns counted in the log-sum-exp. Here padding is -inf, all of a shard."""
    given, _ = small(reduction="none")
    x = np.concatenate([given.arrays["input"][0], np.full((9, 40), -np.inf)], axis=1)
    padded = given._replace(arrays={**given.arrays, "input": (x, 1)}, cuts=(0, 30, 60, 97, 137))
    right, found = pool.run(ranks.evaluate, 4, given), pool.run(ranks.evaluate, 4, padded)
    assert_within(found[0]["value"][0], right[0]["value"][0], 20 * eps(np.float64))
    assert not found[3]["input"].any()


def test_a_nan_stays_in_its_row(pool):
    """NaN, +inf, and nothing but masked classes: NaN for that row alone, on every rank."""
    given, _ = small(reduction="none")
    x = given.arrays["input"][0].copy()
    x[1, 3], x[4, 96], x[6] = np.nan, np.inf, -np.inf
    found = pool.run(ranks.evaluate, 4, given._replace(arrays={**given.arrays, "input": (x, 1)}))
    value = same_on_all([p["value"][0] for p in found])
    assert np.isnan(value[[1, 4, 6]]).all()
    plain = same_on_all([p["value"][0] for p in pool.run(ranks.evaluate, 4, given)])
    np.testing.assert_array_equal(np.delete(value, [1, 4, 6]), np.delete(plain, [1, 4, 6]))


# ----------------------------------------------------------------------------------------------------------- bad input


def failures(found: list[Any], kind: str, *words: str) -> None:
    """Every rank raised that error with those words, within seconds."""
    for failure in found:
        assert isinstance(failure, Failure), failure
        assert failure.kind == kind, failure
        assert failure.seconds < 20
        for word in words:
            assert word in failure.text, failure


@pytest.mark.parametrize("given", small(), ids=["logits", "layer"])
@pytest.mark.parametrize("label", [97, -1, 2**40])
def test_a_label_out_of_range_on_one_rank_is_an_error_on_all(pool, given, label):
    labels = given.arrays["target"][0].copy()
    labels[4] = label
    found = pool.run(ranks.evaluate, 4, given, {2: {"target": labels}})
    failures(found, "LabelError", f"class index {label} at row 4 of rank 2 is outside [0, 97)")


@pytest.mark.parametrize("given", small(), ids=["logits", "layer"])
def test_ranks_that_differ_are_named_on_all(pool, given):
    labels = given.arrays["target"][0]
    name, array = "input", given.arrays["input"][0]
    short = array[:5] if "linear_weight" in given.arrays else array[:5, : SMALL[2] - SMALL[1]]
    cases: list[tuple[dict[str, Any], str, tuple[str, ...]]] = [
        ({name: short, "target": labels[:5]}, "ShapeError", ("rank 1 has rows 5 where rank 0 has 9",)),
        ({name: short}, "ShapeError", ("On rank 1", "target")),
        ({"target": labels[::-1].copy()}, "LabelError", ("rank 1 has label", "at row 0 where rank 0 has")),
        ({"label_smoothing": 0.1}, "ObjectiveError", ("rank 1 has label_smoothing 0.1 where rank 0 has 0.0",)),
        ({"label_smoothing": 2.0}, "ObjectiveError", ("On rank 1", "label_smoothing")),
        ({"reduction": "sum"}, "ObjectiveError", ("rank 1 has reduction",)),
        ({name: short.astype(np.int64)}, "DTypeError", ("On rank 1", "input")),
        ({"weight": np.ones(1)}, "ObjectiveError", ("rank 1 has class weights",)),
        ({"weight": np.ones(2)}, "ShapeError", ("On rank 1", "weight")),
        ({"target": "labels"}, "DTypeError", ("On rank 1", "target")),
    ]
    for changed, kind, words in cases:
        if changed.get(name) is not None and changed[name].dtype == np.int64 and "linear_weight" in given.arrays:
            continue
        failures(pool.run(ranks.evaluate, 4, given, {1: changed}), kind, *words)


@pytest.mark.parametrize("size", CUTS)
def test_a_sampled_gradient_does_not_depend_on_the_shards(pool, size):
    """With one seed all ranks keep the entries that one process keeps."""
    of = problem("ignore")
    options = {"gradient": "sampled", "seed": 3, "threshold": 2.0**-10}
    found = pool.run(ranks.evaluate, size, given_layer(of, size, **options))
    arrays = [array.astype(np.float32) for array in (of.hidden, of.head, of.bias)]
    loss, wanted = linear_cross_entropy_value_and_grad(
        *arrays[:2], of.target, linear_bias=arrays[2], **options, **of.options
    )
    assert same_on_all([part["value"][0] for part in found]) == pytest.approx(loss, rel=1e-6)
    dweight = joined(found, "linear_weight", 0)
    apart = np.abs(dweight - wanted.linear_weight).max(1) > 1e-5 * np.abs(wanted.linear_weight).max()
    # The log-sum-exps differ by their rounding: of 300,000 entries one may come to lie on the other side of its draw.
    assert apart.sum() <= 3
    assert ((dweight == 0).all(1) == (wanted.linear_weight == 0).all(1)).mean() > 0.9999
    assert (dweight == 0).all(1).mean() > 0.1


CALLS = ["cross_entropy", "linear_cross_entropy", "statistics", "linear_statistics"]


def of_call(call: str, dtype: str = "float64", **options: Any) -> Given:
    logits, layer = small("float32", **options)
    return (layer if call.startswith("linear") else logits)._replace(call=call, dtype=dtype)


@pytest.mark.parametrize(("call", "other"), [*itertools.permutations(CALLS, 2)])
def test_another_call_is_named(pool, call, other):
    found = pool.run(ranks.evaluate_each, 3, of_call(call), {1: of_call(other)})
    failures(found, "RankError", f"rank 1 calls {other} where rank 0 calls {call}")


DTYPES = ["float64", "float32", "bfloat16", "float16"]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("dtype", "other"), [*itertools.combinations(DTYPES, 2), ("float16", "bfloat16")])
def test_another_dtype_is_named(pool, call, dtype, other):
    """float16 and bfloat16 too, whose names end alike."""
    found = pool.run(ranks.evaluate_each, 3, of_call(call, dtype), {1: of_call(call, other)})
    failures(found, "DTypeError", f"rank 1 has dtype torch.{other} where rank 0 has torch.{dtype}")


OTHER_OPTIONS = {
    "ignore_index": 5,
    "label_smoothing": 0.1,
    "z_loss": 0.01,
    "softcap": 30.0,
    "logit_scale": 0.5,
    "focal_gamma": 2.0,
    "reduction": "sum",
    "denominator": 7.5,
}


@pytest.mark.parametrize("option", [field.name for field in fields(Objective) if field.name != "weight"])
@pytest.mark.parametrize("given", small(), ids=["logits", "layer"])
def test_every_option_that_differs_is_named(pool, given, option):
    """On one rank, and on all but one. An option of `Objective` that is missing in the table above is an error."""
    value, default = OTHER_OPTIONS[option], getattr(Objective(), option)
    found = pool.run(ranks.evaluate, 3, given, {1: {option: value}})
    failures(found, "ObjectiveError", f"rank 1 has {option} {value!r} where rank 0 has {default!r}")
    found = pool.run(ranks.evaluate, 3, given, {0: {option: value}, 1: {option: value}})
    failures(found, "ObjectiveError", f"rank 2 has {option} {default!r} where rank 0 has {value!r}")


@pytest.mark.parametrize("option", ["ignore_index", "softcap", "logit_scale"])
@pytest.mark.parametrize("call", ["statistics", "linear_statistics"])
def test_every_option_of_statistics_that_differs_is_named(pool, call, option):
    found = pool.run(ranks.evaluate, 3, of_call(call), {1: {option: OTHER_OPTIONS[option]}})
    failures(found, "ObjectiveError", f"rank 1 has {option} {OTHER_OPTIONS[option]!r} where rank 0 has ")


def test_options_are_compared_by_value(pool):
    """A NumPy number, a tensor of one, an integer: the same options as the numbers that they are."""
    given = small(label_smoothing=0.5, logit_scale=2.0, ignore_index=3)[0]
    others = {"label_smoothing": np.float32(0.5), "logit_scale": 2, "ignore_index": np.int64(3)}
    same_on_all([p["value"][0] for p in pool.run(ranks.evaluate, 4, given, {1: others})])


def test_everything_else_that_differs_is_named(pool):
    """Shapes, kinds of arguments and the workspace, of rank 1."""
    logits, layer = small()
    labels, hidden = (layer.arrays[name][0] for name in ("target", "input"))
    classes = SMALL[2] - SMALL[1]
    here = slice(SMALL[1], SMALL[2])
    columns = logits.arrays["input"][0][:, here]
    soft = np.ones((9, classes)) / 97
    wide, wider = np.ones((9, 6)), np.ones((classes, 6))
    cases: list[tuple[Given, dict[str, Any], str, str]] = [
        (logits, {"input": columns[:4], "target": labels[:4]}, "ShapeError", "rank 1 has rows 4 where rank 0 has 9"),
        (layer, {"input": hidden[:4], "target": labels[:4]}, "ShapeError", "rank 1 has rows 4 where rank 0 has 9"),
        (logits, {"input": columns.T.reshape(1, classes, 9), "target": labels[None]}, "ShapeError",
         "rank 1 has losses of shape (1, 9) where rank 0 has (9,)"),
        (layer, {"input": hidden.reshape(3, 3, 4), "target": labels.reshape(3, 3)}, "ShapeError",
         "rank 1 has losses of shape (3, 3) where rank 0 has (9,)"),
        (layer, {"input": wide, "linear_weight": wider}, "ShapeError", "rank 1 has features 6 where rank 0 has 4"),
        (logits, {"target": soft}, "ObjectiveError",
         "rank 1 has a target of class probabilities where rank 0 has class indices"),
        (layer, {"target": soft}, "ObjectiveError",
         "rank 1 has a target of class probabilities where rank 0 has class indices"),
        (logits, {"weight": np.ones(classes)}, "ObjectiveError", "rank 1 has class weights where rank 0 has none"),
        (layer, {"weight": np.ones(classes)}, "ObjectiveError", "rank 1 has class weights where rank 0 has none"),
        (layer, {"linear_bias": np.ones(classes)}, "ObjectiveError", "rank 1 has linear_bias where rank 0 has none"),
        (layer, {"workspace": 10**6}, "ObjectiveError", "rank 1 has workspace 1000000 where rank 0 has 128000000"),
        (logits, {"denominator": "global"}, "ObjectiveError", "rank 1 has denominator 'global' where rank 0 has None"),
        (layer, {"denominator": "global"}, "ObjectiveError", "rank 1 has denominator 'global' where rank 0 has None"),
    ]  # fmt: skip
    for given, changed, kind, words in cases:
        failures(pool.run(ranks.evaluate, 3, given, {1: changed}), kind, words)
    weighted = logits._replace(arrays={**logits.arrays, "weight": (np.ones(97), 0)})
    found = pool.run(ranks.evaluate, 3, weighted, {2: {"weight": None}})
    failures(found, "ObjectiveError", "rank 2 has no class weights, rank 0 has")
    same_on_all([p["value"][0] for p in pool.run(ranks.evaluate, 4, layer, {1: {"workspace": "0.128GB"}})])


def test_gradients_and_autocast_that_differ_are_named(pool):
    logits, layer = small("float32")
    found = pool.run(ranks.without_gradients, 3, logits, (1,))
    failures(found, "RankError", "rank 1 requires gradients of no argument where rank 0 requires input")
    found = pool.run(ranks.without_gradients, 3, layer, (0, 1))
    failures(found, "RankError", "rank 2 requires gradients of input, linear_weight where rank 0 requires no argument")
    found = pool.run(ranks.under_autocast, 3, layer, (1,))
    failures(found, "DTypeError", "rank 1 has products in torch.bfloat16 where rank 0 has torch.float32")


@pytest.mark.parametrize("given", small(), ids=["logits", "layer"])
def test_labels_that_differ_are_named_with_their_row(pool, given):
    """Two labels changed so that their sum, even weighted by 1, 3, 5 and so on, is the same."""
    labels = np.arange(20, 29)
    given = given._replace(arrays={**given.arrays, "target": (labels, None)})
    other = labels.copy()
    other[[3, 4]] += [9, -7]
    found = pool.run(ranks.evaluate, 4, given, {1: {"target": other}})
    failures(found, "LabelError", "rank 1 has label 32 at row 3 where rank 0 has 23 at row 3")
    other[[3, 4]] = labels[[3, 4]]
    other[7] = -100
    found = pool.run(ranks.evaluate, 4, given, {0: {"target": other}, 1: {"target": other}})
    failures(found, "LabelError", "rank 2 has label 27 at row 7 where rank 0 has -100 at row 7")
    found = pool.run(ranks.evaluate, 4, given, {1: {"target": labels.astype(np.int32)}})
    same_on_all([p["value"][0] for p in found])


@pytest.mark.parametrize("item", ["text", None, {"call": "cross_entropy"}, 7])
def test_a_rank_that_sends_something_else_is_named(pool, item):
    found = pool.run(ranks.sends_something_else, 3, small()[0], 1, item)
    failures([found[0], found[2]], "RankError", "rank 1 sent something that is not the report of a call")


def test_a_dtensor_with_other_placements_is_named_on_all(pool):
    found = pool.run(ranks.replicated, 4, small()[0], 1)
    failures(found, "ShapeError", "On rank 1: cross_entropy(input=...): found placements", "expected Shard(1) along")


def test_dtensors_that_are_not_sharded(alone):
    """Whole logits are refused; a whole input of a layer is taken as it is, with its weight on this rank."""
    mesh = init_device_mesh("cpu", (1,))
    whole = DTensor.from_local(LOGITS, mesh, [Replicate()])
    rows = DTensor.from_local(LOGITS, mesh, [Shard(0)])
    for logits in (whole, rows):
        with pytest.raises(ShapeError, match=r"input=.*expected Shard\(1\) along one dimension"):
            parallel.cross_entropy(logits, LABELS)
    with pytest.raises(ShapeError, match=r"input=.*expected Replicate\(\) everywhere"):
        parallel.linear_cross_entropy(rows, torch.zeros(3, 3), LABELS)
    loss = parallel.linear_cross_entropy(whole, torch.zeros(3, 3), LABELS)
    torch.testing.assert_close(loss, torch.tensor(math.log(3)))


@pytest.fixture
def alone() -> Iterator[Any]:
    """The process group of one process: this one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_every_difference_is_worded(alone):
    """Also those that take a second kind of device."""
    here = agreement.Ranks("cross_entropy", None, torch.device("cpu"))
    with pytest.raises(RankError, match="rank 1 has tensors on cuda where rank 0 has cpu"):
        here.compare("device", ["cpu", "cuda"])
    for fact, difference in agreement.DIFFERENCES.items():
        values = [True, True, False] if difference.is_presence else [1, 1, 2]
        with pytest.raises(difference.error, match=r"cross_entropy: rank 2 .*rank 0"):
            here.compare(fact, values)
        here.compare(fact, values[:2])


def test_a_report_travels_by_the_gpu_of_the_tensors(alone):
    """NCCL moves objects to the current GPU; that has to be the one that holds the tensors."""
    here = agreement.Ranks("cross_entropy", alone, torch.device("cuda", 3))
    entered: list[Any] = []

    @contextmanager
    def device(of: torch.device) -> Iterator[None]:
        entered.append(of)
        yield
        entered.append("left")

    def gather(items: list[Any], item: Any, group: Any) -> None:
        assert entered == [torch.device("cuda", 3)]
        items[:] = [item]

    with mock.patch.object(torch.cuda, "device", device), mock.patch.object(dist, "all_gather_object", gather):
        assert here.exchanged("report") == ["report"]
    assert entered == [torch.device("cuda", 3), "left"]


LOGITS, LABELS = torch.zeros(2, 3), torch.tensor([0, 2])
NO_ARGUMENTS: list[tuple[dict[str, Any], type[XentError]]] = [
    ({"input": [[0.0, 1.0]]}, DTypeError),
    ({"input": LOGITS.long()}, DTypeError),
    ({"input": torch.tensor(1.0)}, ShapeError),
    ({"target": [0, 1]}, DTypeError),
    ({"target": None}, DTypeError),
    ({"target": LABELS[:1]}, ShapeError),
    ({"target": LABELS + 1}, LabelError),
    ({"weight": [1.0, 1.0, 1.0]}, DTypeError),
    ({"weight": torch.ones(2)}, ShapeError),
    ({"denominator": "globl"}, ObjectiveError),
    ({"denominator": math.nan}, ObjectiveError),
    ({"denominator": -1}, ObjectiveError),
    ({"denominator": [1]}, ObjectiveError),
    ({"denominator": torch.ones(2)}, ObjectiveError),
    ({"denominator": np.ones(2)}, ObjectiveError),
    ({"denominator": "global", "reduction": "sum"}, ObjectiveError),
    ({"denominator": "global", "denominator_group": 3}, ArgumentError),
    ({"denominator": "global", "denominator_group": dist.GroupMember.NON_GROUP_MEMBER}, RankError),
    ({"label_smoothing": math.nan}, ObjectiveError),
    ({"softcap": "30"}, ObjectiveError),
    ({"softcap": torch.ones(2)}, ObjectiveError),
    ({"ignore_index": math.inf}, ObjectiveError),
    ({"ignore_index": 2**70}, ObjectiveError),
    ({"ignore_index": None}, ObjectiveError),
    ({"reduction": "average"}, ObjectiveError),
    ({"smoothing": 0.1}, ObjectiveError),
    ({"group": "tensor parallel"}, ArgumentError),
    ({"group": [0, 1]}, ArgumentError),
    ({"group": dist.GroupMember.NON_GROUP_MEMBER}, RankError),
]
NO_LAYER: list[tuple[dict[str, Any], type[XentError]]] = [
    ({"linear_weight": None}, DTypeError),
    ({"linear_weight": torch.zeros(3)}, ShapeError),
    ({"linear_weight": torch.zeros(3, 2)}, ShapeError),
    ({"linear_bias": 0.0}, DTypeError),
    ({"linear_bias": torch.zeros(2)}, ShapeError),
    ({"workspace": None}, ArgumentError),
    ({"workspace": math.nan}, ArgumentError),
    ({"workspace": "1 potato"}, ArgumentError),
]


@pytest.mark.parametrize("sharded", [True, False], ids=["sharded", "whole"])
@pytest.mark.parametrize("call", CALLS)
def test_every_error_is_ours(alone, call, sharded):
    """Nonsense in each argument, with classes sharded over a group and without: the same class of error."""
    layer = {"input": LOGITS, "linear_weight": torch.zeros(3, 3), "target": LABELS}
    right: dict[str, Any] = layer if call.startswith("linear") else {"input": LOGITS, "target": LABELS}
    right |= {"group": alone} if sharded else {}
    names = {*signature(getattr(parallel, call)).parameters, *(OTHER_OPTIONS if "cross" in call else ())}
    getattr(parallel, call)(**right)
    for changed, error in [*NO_ARGUMENTS, *(NO_LAYER if call.startswith("linear") else [])]:
        if changed.keys() <= names:
            with pytest.raises(error) as caught:
                getattr(parallel, call)(**{**right, **changed})
            assert type(caught.value) is error, (changed, caught.value)
            assert call in str(caught.value)


@pytest.mark.parametrize("options", [{"group": None}, {}], ids=["group", "no group"])
def test_without_a_process_group_a_global_denominator_is_an_error(options):
    with pytest.raises(RankError, match=r"denominator_group=.*init_process_group"):
        parallel.cross_entropy(LOGITS, LABELS, denominator="global", **options)


def test_a_process_group_that_was_destroyed_is_an_error():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    dist.destroy_process_group()
    with pytest.raises(RankError, match=r"group=.*cannot be used"):
        parallel.cross_entropy(LOGITS, LABELS, group=group)


def test_rows_of_class_probabilities_are_counted(alone):
    """A single row, and rows with more axes than two: the global denominator is the number of rows."""
    one = torch.tensor([0.5, 0.25, 0.25])
    loss = parallel.cross_entropy(torch.zeros(3), one, denominator="global")
    torch.testing.assert_close(loss, torch.tensor(math.log(3)))
    hidden, head = torch.zeros(2, 5, 4), torch.zeros(3, 4)
    loss = parallel.linear_cross_entropy(hidden, head, one.expand(2, 5, 3), denominator="global")
    torch.testing.assert_close(loss, torch.tensor(math.log(3)))


def test_a_rank_that_fails_in_a_chunk_is_named_on_all(pool):
    given = small("float32", workspace=2000)[1]
    found = pool.run(ranks.fails_in_a_chunk, 4, given, 3)
    failures(found, "RankError", "On rank 3", "MemoryError", "no room for the second chunk")
    # And the group can be used again.
    assert pool.run(ranks.evaluate, 4, given)[0]["value"][0] > 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_rank_that_fails_while_gradients_are_made_is_named_on_all(pool, reduction):
    """Those of a mean are made with the loss; without reduction they are made in backward."""
    given = small("float32")[1]
    given = given._replace(options={**given.options, "reduction": reduction})
    failures(pool.run(ranks.fails_in_a_product, 4, given, 0), "RankError", "On rank 0", "no room for gradients")


def test_a_workspace_too_small_for_the_largest_shard_is_an_error_on_all(pool):
    found = pool.run(ranks.evaluate, 4, small("float32", workspace=100)[1])
    failures(found, "ArgumentError", "workspace", "Pass at least")


def test_a_process_that_ended_is_an_error_and_not_a_hang():
    pair = Ranks(2)
    try:
        (failure,) = pair.run(ranks.ends, 2, small()[0], 1, answers=1)
        failures([failure], "RankError", "was not completed", "has ended")
    finally:
        pair.close()
