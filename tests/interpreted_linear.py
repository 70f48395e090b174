"""What only the GPU's implementation has, for a linear layer and for statistics; on_device.py says where this runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import INF, WEIGHT
from comparison import assert_within, eps, rounded_to
from implementations import array
from on_device import EVERYTHING, SMALL, assert_same, both, labels_for, moved, placed, random

import xent.reference
import xent.torch
from xent.backends.choice import choose
from xent.backends.formula import FORMULA
from xent.backends.gpu.backend import GpuBackend
from xent.backends.tensor_steps import TensorSteps
from xent.errors import ArgumentError, LabelError
from xent.linear import driver
from xent.linear.backend import LinearBackend
from xent.linear.driver import Layer, Wanted
from xent.linear.plan import Plan
from xent.objective import Objective
from xent.torch import linear_operators

__all__ = ["placed"]


# ------------------------------------------------------------------------------------------------------ the linear loss


def linear(chunks, parts) -> LinearBackend:
    """The linear loss with the rows and the classes of the weight cut in this way."""
    plan = Plan(tuple(chunks), tuple(parts), 1, summed=False, slab_bytes=0, bytes=0)
    return LinearBackend(GpuBackend(), lambda layer, wanted: TensorSteps(layer, wanted, plan))


def layer_of(x, weight, bias, target) -> Layer:
    return Layer("test", x, weight, bias, target, weight.dtype, 10**6)


CUTS = {
    "whole": ([(0, 7)], [(0, 6)]),
    "chunks": ([(0, 3), (3, 6), (6, 7)], [(0, 6)]),
    "chunks and parts": ([(0, 4), (4, 7)], [(0, 3), (3, 6)]),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("per_row", [False, True])
def test_linear_steps_agree_with_the_reference(cut, dtype, per_row):
    chunks, parts = CUTS[cut]
    x, weight, bias = (random(*s, dtype=dtype, seed=i) / 4 for i, s in enumerate([(7, 5), (6, 5), (6,)]))
    labels = torch.tensor([0, 5, 2, -100, 1, 4, 3])
    options = {**EVERYTHING, "weight": torch.tensor(WEIGHT)}
    row_scale = torch.linspace(0.5, 2.0, 7) if per_row else 0.5
    layer, steps = layer_of(x, weight, bias, labels), linear(chunks, parts)
    found, _, made = steps.forward_backward(layer, row_scale, Objective(**options), Wanted())

    objective = Objective(**{**options, "weight": np.array(WEIGHT)})
    arrays = [array(tensor.double()) for tensor in (x, weight, bias)]
    scale = array(row_scale.double()) if per_row else row_scale
    losses, _ = xent.reference.linear_cross_entropy(*arrays, array(labels), objective)
    gradients = xent.reference.linear_cross_entropy_gradients(*arrays, array(labels), scale, objective)
    # Logits below 8 and their gradients below 16 are rounded to the dtype, and 5 or 7 products of theirs added up.
    unit = eps({torch.float64: "float64", torch.float32: "float32", torch.float16: "float16"}[dtype])
    assert_within(found.double(), losses, 4 * unit * 8 * max(WEIGHT))
    made = made._replace(bias=made.bias.to(dtype))
    assert [tensor.dtype for tensor in made] == [dtype] * 3
    for tensor, gradient in zip(made, gradients, strict=True):
        assert_within(tensor.double(), gradient, 8 * unit * 16)


def test_the_gradient_of_the_weight_is_added_up_in_more_than_16_bits():
    """Each of 64 chunks adds 1/64 of the gradient: in float16 sums the error would grow with their number."""
    rows, chunks = 64, [(i, i + 1) for i in range(64)]
    x, weight = random(1, 8, dtype=torch.float16).expand(rows, 8).contiguous(), random(3, 8, dtype=torch.float16) / 8
    layer = layer_of(x, weight, None, torch.zeros(rows, dtype=torch.long))
    wanted = Wanted(input=False, bias=False)
    many, one = (
        linear(cut, [(0, 3)]).forward_backward(layer, 1 / rows, Objective(), wanted)[2].weight
        for cut in (chunks, [(0, rows)])
    )
    # The logits' gradients are rounded to float16 in both; their sums then differ by the rounding of the result.
    whole = array(one.double())
    assert_within(many.double(), whole, 2 * rounded_to("float16", whole))


def test_frozen_arguments_get_no_memory():
    steps = TensorSteps(layer_of(random(4, 3), random(5, 3), None, labels_for(4, 5)), driver.NOTHING)
    assert steps.gradients() == (None, None, None)
    assert steps._sums is None


def test_gradients_are_scaled_in_place_unless_by_one():
    gradient, empty, backend = random(3, 5), random(0, 5), choose(random(1).device)
    before = gradient.clone()
    backend.scale(empty, torch.tensor(0.25))
    backend.scale(gradient, torch.tensor(1.0))
    assert torch.equal(gradient, before)
    backend.scale(gradient, torch.tensor(0.25))
    assert torch.equal(gradient, before / 4)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("workspace", ["1MB", 784], ids=["whole", "chunks"])
def test_the_linear_loss_of_the_front_is_that_of_the_cpu(reduction, workspace):
    """Values and gradients for an upstream gradient other than 1, and for 1; in float64, beside the CPU's."""
    x, weight, bias = (random(*s, seed=i) / 4 for i, s in enumerate([(7, 5), (6, 5), (6,)]))
    labels = torch.tensor([0, 5, 2, -100, 1, 4, 3])
    options = {**EVERYTHING, "reduction": reduction}

    def computed(place: str, factor: float) -> tuple[torch.Tensor, ...]:
        variables = [tensor.to(place, copy=True).requires_grad_() for tensor in (x, weight, bias)]
        given = {**options, "weight": torch.tensor(WEIGHT), "linear_bias": variables[2], "workspace": workspace}
        loss = xent.torch.linear_cross_entropy(*variables[:2], labels.to(place), **given)
        above = torch.linspace(1.0, 2.0, loss.numel()).double().reshape(loss.shape) * factor
        return loss.detach(), *torch.autograd.grad(loss, variables, above)

    for factor in (1.0, -1.5):
        for ours, theirs in both(lambda place, factor=factor: computed(place, factor)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=64 * eps("float64") * 20)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_linear_loss_of_frozen_and_of_no_rows(dtype):
    weight = random(6, 5, dtype=dtype)
    for rows in (0, 4):
        x = random(rows, 5, dtype=dtype).requires_grad_()
        loss = xent.torch.linear_cross_entropy(x, weight, labels_for(rows, 6), reduction="sum", workspace=664)
        (gradient,) = torch.autograd.grad(loss, x)
        assert loss.dtype == torch.float32
        assert gradient.shape == (rows, 5)
        assert gradient.dtype == dtype
        head = weight.clone().requires_grad_()
        loss = xent.torch.linear_cross_entropy(x.detach(), head, labels_for(rows, 6), reduction="sum", workspace=664)
        (gradient,) = torch.autograd.grad(loss, head)
        assert gradient.isfinite().all()
        assert bool(gradient.any()) == (rows > 0)


# ---------------------------------------------------------------------------------- statistics and their gradients

SIX = ((6, 13), (6,)), ((2, 13, 3), (2, 3))


@pytest.mark.parametrize("tile", [None, SMALL], ids=["usual", "small"])
@pytest.mark.parametrize("options", [{}, {"softcap": 5.0, "logit_scale": 0.5}, {"logit_scale": 0.5}], ids=str)
@pytest.mark.parametrize(("shape", "rows"), SIX, ids=["rows", "positions"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_the_gradient_of_statistics_is_that_of_the_formula(dtype, shape, rows, options, tile):
    """Among the labels one that is ignored and one out of range, among the logits masked ones."""
    logits = random(*shape, dtype=dtype)
    logits[1, 3:6] = -INF
    labels = torch.tensor([0, 12, 9, -100, 13, 4]).reshape(rows)
    upstream = tuple(random(*rows, seed=seed) for seed in (1, 2, 3))
    objective = Objective(**options)
    backend = GpuBackend(tile)
    found = backend.statistics(logits, labels, objective)
    gradient = backend.statistics_gradient(logits, labels, found, upstream, objective)
    wanted = FORMULA.statistics_gradient(logits.double(), labels, None, upstream, objective)
    # Products of what arrives, below 4, and of logits, logarithms and entropies below 12; then stored in the dtype.
    arithmetic = "float64" if dtype == torch.float64 else "float32"
    stored = rounded_to("float16", array(wanted)) if dtype == torch.float16 else 0.0
    assert gradient.dtype == dtype
    assert_within(gradient.double(), wanted, 8 * eps(arithmetic) * 4 * 12 + stored)
    there = logits.clone()
    assert backend.statistics_gradient(there, labels, found, upstream, objective, out=there) is there
    assert_within(there.double(), wanted, 8 * eps(arithmetic) * 4 * 12 + stored)


def test_gradients_of_statistics_of_the_front_in_float32():
    """By the kernel; what the caller does to the entropy it was given changes nothing."""
    labels = torch.tensor([[0, 3]])
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = random(1, 4, 2, dtype=torch.float32).to(dtype).requires_grad_()
        found = xent.torch.statistics(x, labels)
        total = sum((value * factor).sum() for value, factor in zip(found[:3], (1.0, -2.0, 0.5), strict=True))
        with torch.no_grad():
            found.entropy.zero_()
        gradients.append(torch.autograd.grad(total, x)[0].double())
    assert_within(*gradients, 64 * eps("float32"))


LINEAR_STATISTICS = {"softcap": 8.0, "logit_scale": 0.9}


@pytest.mark.parametrize("workspace", ["1MB", 784], ids=["whole", "chunks"])
def test_linear_statistics_of_the_front_are_those_of_the_cpu(workspace):
    x, weight, bias = (random(*s, seed=i) / 4 for i, s in enumerate([(7, 5), (6, 5), (6,)]))
    labels = torch.tensor([0, 5, 2, -100, 1, 4, 3])

    def computed(place: str) -> tuple[torch.Tensor, ...]:
        variables = [tensor.to(place, copy=True).requires_grad_() for tensor in (x, weight, bias)]
        given = {**LINEAR_STATISTICS, "linear_bias": variables[2], "workspace": workspace}
        values = xent.torch.linear_statistics(*variables[:2], labels.to(place), **given)
        total = values.log_prob.sum() - (2.0 * values.entropy).sum()  # none for lse
        return *(value.detach() for value in values), *torch.autograd.grad(total, variables)

    for ours, theirs in both(computed):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=64 * eps("float64") * 20)


def test_linear_statistics_hold_no_logits():
    """A workspace that is too small is refused; second derivatives are left to the formula, which holds them."""
    x, weight = random(2, 3).requires_grad_(), random(4, 3)
    with pytest.raises(ArgumentError, match="do not hold one row"):
        xent.torch.linear_statistics(x, weight, torch.tensor([0, 3]), workspace=1)
    assert torch.autograd.gradgradcheck(lambda x: xent.torch.linear_statistics(x, weight, torch.tensor([0, 3]))[:3], x)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_linear_operators_for_a_gpu_are_those_of_the_cpu(reduction):
    """What torch.compile calls on a GPU, beside what it calls on the CPU."""
    x, weight, bias = (random(*s, seed=i) / 4 for i, s in enumerate([(7, 5), (6, 5), (6,)]))
    labels = torch.tensor([0, 5, 2, -100, 1, 4, 3], dtype=torch.int32)
    rows = (x, weight, bias, labels.long(), random(6, seed=4).abs())
    call = (Objective(**EVERYTHING, reduction=reduction).to_text(), 784, torch.float64)
    upstream = random(*(7,) * (reduction == "none"), seed=5)
    statistics = (*rows[:4], Objective(**LINEAR_STATISTICS).to_text(), 784, torch.float64)
    entropy, lse = (linear_operators.STATISTICS(*statistics)[place] for place in (1, 5))
    upstreams = [random(7, seed=seed) for seed in (6, 7, 8)]

    def computed(place):
        made = [reduction == "mean"] * 3
        loss, *ready = linear_operators.LOSS(*moved((*rows, *call), place), made)
        backward = moved((upstream, *rows, *ready, *call), place)
        yield from (loss, *ready, *linear_operators.LOSS_BACKWARD(*backward, [True] * 3, made))
        yield from linear_operators.STATISTICS(*moved(statistics, place))
        saved = moved((*upstreams, *rows[:4], entropy, lse, *statistics[4:]), place)
        yield from linear_operators.STATISTICS_BACKWARD(*saved, [True, False, True])

    for ours, theirs in both(lambda place: list(computed(place))):
        assert_same([ours], [theirs])


def test_labels_of_linear_losses_are_looked_at_when_asked():
    x, weight, labels = random(3, 2), random(5, 2), torch.tensor([0, 5, 1])
    assert xent.torch.linear_cross_entropy(x, weight, labels).isnan()
    for call in (xent.torch.linear_cross_entropy, xent.torch.linear_statistics):
        with pytest.raises(LabelError, match=r"class index 5 at row 1 is outside \[0, 5\)"):
            call(x, weight, labels, check=True)
    with pytest.raises(LabelError, match="row 1"):
        xent.torch.LinearCrossEntropyLoss(2, 5, dtype=x.dtype, check=True)(x, labels)


def test_second_derivatives_of_the_linear_loss():
    x, weight = random(2, 2).requires_grad_(), random(3, 2).requires_grad_()
    labels = torch.tensor([0, 2])
    assert torch.autograd.gradgradcheck(lambda x, w: xent.torch.linear_cross_entropy(x, w, labels), (x, weight))
