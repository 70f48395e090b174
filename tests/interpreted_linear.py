"""What only the GPU's implementation has, for a linear layer and for statistics; on_device.py says where this runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import CASES, INF, WEIGHT, expected
from comparison import assert_within, bounds, eps, rounded_to
from implementations import DEVICE, IMPLEMENTATIONS, array
from on_device import EVERYTHING, SMALL, assert_same, both, labels_for, on_cpu, placed, random, reference

import xent.reference
import xent.torch
from xent.backends import formula as composed
from xent.backends.gpu import cross_entropy as gpu
from xent.backends.gpu import linear, on_chip, shapes
from xent.backends.gpu.statistics_gradient import statistics_gradient
from xent.errors import ArgumentError, LabelError
from xent.linear import driver
from xent.linear.plan import Plan
from xent.objective import Objective
from xent.torch import linear_operators

__all__ = ["placed"]


# ------------------------------------------------------------------------------------------------------ the linear loss


def drive(device: linear.Device, chunks, parts, wanted: driver.Wanted) -> None:
    plan = Plan(tuple(chunks), tuple(parts), 1, summed=False, slab_bytes=0, bytes=0)
    driver.forward_backward(device, plan, wanted)


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
    options = {**EVERYTHING, "weight": torch.tensor(WEIGHT, dtype=gpu.compute_dtype(dtype))}
    row_scale = torch.linspace(0.5, 2.0, 7) if per_row else 0.5
    wanted = driver.Wanted()
    problem = linear.Problem(x, weight, bias, labels, Objective(**options), dtype)
    device = linear.Device(problem, chunks, parts, row_scale, **wanted._asdict())
    drive(device, chunks, parts, wanted)

    objective = Objective(**{**options, "weight": np.array(WEIGHT)})
    arrays = [array(tensor.double()) for tensor in (x, weight, bias)]
    scale = array(row_scale.double()) if per_row else row_scale
    losses, _ = xent.reference.linear_cross_entropy(*arrays, array(labels), objective)
    gradients = xent.reference.linear_cross_entropy_gradients(*arrays, array(labels), scale, objective)
    # Logits below 8 and their gradients below 16 are rounded to the dtype, and 5 or 7 products of theirs added up.
    unit = eps({torch.float64: "float64", torch.float32: "float32", torch.float16: "float16"}[dtype])
    assert_within(device.losses.double(), losses, 4 * unit * 8 * max(WEIGHT))
    found = (device.of_input, device.of_weight, device.bias_sums.to(dtype))
    assert [tensor.dtype for tensor in found] == [dtype] * 3
    for tensor, gradient in zip(found, gradients, strict=True):
        assert_within(tensor.double(), gradient, 8 * unit * 16)


def test_the_gradient_of_the_weight_is_added_up_in_more_than_16_bits():
    """Each of 64 chunks adds 1/64 of the gradient: in float16 sums the error would grow with their number."""
    rows, chunks = 64, [(i, i + 1) for i in range(64)]
    x, weight = random(1, 8, dtype=torch.float16).expand(rows, 8).contiguous(), random(3, 8, dtype=torch.float16) / 8
    problem = linear.Problem(x, weight, None, torch.zeros(rows, dtype=torch.long), Objective(), torch.float16)
    wanted = driver.Wanted(input=False, bias=False)
    device = linear.Device(problem, chunks, [(0, 3)], 1 / rows, weight=True)
    drive(device, chunks, [(0, 3)], wanted)
    one = linear.Device(problem, [(0, rows)], [(0, 3)], 1 / rows, weight=True)
    drive(one, [(0, rows)], [(0, 3)], wanted)
    # The logits' gradients are rounded to float16 in both; their sums then differ by the rounding of the result.
    whole = array(one.of_weight.double())
    assert_within(device.of_weight.double(), whole, 2 * rounded_to("float16", whole))


def test_frozen_arguments_get_no_memory():
    problem = linear.Problem(random(4, 3), random(5, 3), None, labels_for(4, 5), Objective(), torch.float64)
    device = linear.Device(problem, [(0, 4)], [(0, 5)])
    assert device.of_input is device.of_weight is device.bias_sums is device._sums is None


def test_gradients_are_scaled_in_place_unless_by_one():
    gradients = [random(3, 5), None, random(0, 5)]
    before = gradients[0].clone()
    linear.scale(gradients, torch.tensor(1.0))
    assert torch.equal(gradients[0], before)
    linear.scale(gradients, torch.tensor(0.25))
    assert torch.equal(gradients[0], before / 4)


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


# --------------------------------------------------------------------------------- the linear loss with logits on chip

# The matrix units of a GPU take no less than 16.
CHIP = on_chip.ProductTile(4, 8, 4, 1, 1) if DEVICE == "cpu" else on_chip.ProductTile(16, 16, 16, 4, 2)


def on_chip_rows(x, weight, bias, target, options, **cut) -> tuple[torch.Tensor, torch.Tensor]:
    given = options.get("weight")
    objective = Objective(**{**options, "weight": None if given is None else torch.tensor(given)})
    return on_chip.forward(linear.Problem(x, weight, bias, target, objective, x.dtype), tile=CHIP, **cut)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_losses_on_chip_agree_with_the_oracle(case):
    """Each row is a layer of one feature, which is 1, so that its logits are the weight itself, infinities too."""
    if not case.fits("float32"):
        return
    given, wanted = case.rounded("float32"), expected(case, "float32")
    bound = bounds(IMPLEMENTATIONS[1], case, "float32")[0]
    for row, logits in enumerate(torch.from_numpy(given.logits).to(DEVICE)):
        target = torch.from_numpy(given.target[row : row + 1]).to(DEVICE)
        loss, lse = on_chip_rows(torch.ones(1, 1), logits[:, None], None, target, case.options, parts=3)
        assert_within(loss, wanted.loss[row : row + 1], bound[row] if np.ndim(bound) else bound, repr(case))
        assert_within(lse, wanted.lse[row : row + 1], 8 * eps("float32") * (1 + abs(wanted.lse[row])), repr(case))


@pytest.mark.parametrize("parts", [1, 2, 9])
@pytest.mark.parametrize("everything", [False, True], ids=["plain", "everything"])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_products_on_chip_are_added_up_in_float32(dtype, soft, everything, parts):
    """7 rows, 11 features, 21 classes: no tile divides any of them; more parts are asked for than there are blocks."""
    options = {**EVERYTHING, "weight": np.arange(1.0, 22.0) / 8} if everything else {}
    x, weight, bias = (random(*s, dtype=dtype, seed=i) / 3 for i, s in enumerate([(7, 11), (21, 11), (21,)]))
    target = torch.tensor([0, 20, 3, -100, 8, 7, 15])
    if soft:
        target = torch.softmax(random(7, 21, seed=5), 1).to(dtype)
    loss, lse = on_chip_rows(x, weight, bias, target, options, parts=parts)
    arrays = [array(tensor.double()) for tensor in (x, weight, bias)]
    arrays.append(array(target.double() if soft else target))
    wanted, wanted_lse = xent.reference.linear_cross_entropy(*arrays, Objective(**options))
    if not soft:
        wanted_lse[3] = 0.0  # an ignored row is not looked at
    assert loss.dtype == torch.float32
    # 12 terms of up to 9 each add up to a logit; losses below 40 are weighted by up to 3.
    assert_within(loss.double(), wanted, 12 * 9 * eps("float32") * (3 if everything else 1), "loss")
    assert_within(lse, wanted_lse, 12 * 9 * eps("float32"), "lse")


@pytest.mark.parametrize("label", [21, 24, 10**6, -1, -(2**62), 2**62])
def test_a_label_out_of_range_makes_its_row_nan_on_chip(label):
    """Also where a block reaches beyond the classes: no class 21 to 23 is ever taken for a label."""
    x, weight = random(3, 5, dtype=torch.float32), random(21, 5, dtype=torch.float32, seed=1)
    options = {"weight": np.arange(1.0, 22.0), "label_smoothing": 0.1}
    loss, lse = on_chip_rows(x, weight, None, torch.tensor([1, label, 2]), options, parts=2)
    assert loss.isnan().tolist() == lse.isnan().tolist() == [False, True, False]


def test_the_front_takes_the_chip_when_told_to():
    """It needs no workspace: one byte, which holds no row of logits, will do."""
    x, weight = random(5, 4, dtype=torch.float32).requires_grad_(), random(6, 4, dtype=torch.float32, seed=1)
    labels = labels_for(5, 6)
    wanted = xent.torch.cross_entropy((x @ weight.t()).detach(), labels, reduction="none")
    given = {"reduction": "none", "workspace": 1}
    with pytest.raises(ArgumentError, match="do not hold one row"):
        xent.torch.linear_cross_entropy(x, weight, labels, **given)
    with on_chip.chosen():
        found = xent.torch.linear_cross_entropy(x, weight, labels, **given)
        with pytest.raises(ArgumentError, match="do not hold one row"):
            xent.torch.linear_cross_entropy(x.double(), weight.double(), labels, **given)
    torch.testing.assert_close(found.detach(), wanted, rtol=0, atol=64 * eps("float32") * 20)
    # With a gradient the logits are needed once more: a workspace too.
    with pytest.raises(ArgumentError, match="do not hold one row"):
        found.sum().backward()


def test_strides_change_nothing_on_chip():
    """Input and weight transposed, every second number of the bias."""
    x, weight, bias = (random(*s, dtype=torch.float32, seed=i) for i, s in enumerate([(3, 5), (11, 5), (11,)]))
    labels = labels_for(3, 11)
    wanted = on_chip_rows(x, weight, bias, labels, {}, parts=2)
    gaps = torch.stack([bias, -bias], 1)[:, 0]
    assert not gaps.is_contiguous()
    found = on_chip_rows(x.t().contiguous().t(), weight.t().contiguous().t(), gaps, labels, {}, parts=2)
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_no_rows_and_no_features_on_chip():
    empty = torch.zeros(0, 3), torch.zeros(5, 3), None, torch.zeros(0, dtype=torch.long)
    assert on_chip_rows(*empty, {})[0].shape == (0,)
    bias = random(5, dtype=torch.float32)
    loss, _ = on_chip_rows(torch.zeros(2, 0), torch.zeros(5, 0), bias, torch.tensor([0, 4]), {})
    assert_within(loss.double(), reference(bias.expand(2, 5), torch.tensor([0, 4]), {})[0], 40 * eps("float32"))


def test_tiles_on_chip_found_by_trying_give_the_same(monkeypatch):
    x, weight = random(3, 5, dtype=torch.float32), random(70, 5, dtype=torch.float32, seed=1)
    problem = linear.Problem(x, weight, None, labels_for(3, 70), Objective(), x.dtype)
    wanted = on_chip.forward(problem)
    monkeypatch.setenv("XENT_GPU_AUTOTUNE", "1")
    found = on_chip.forward(problem)
    assert any(key[0] == "on chip" for key in shapes._best)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=12 * 9 * eps("float32"))


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
    found = gpu.statistics(logits, labels, objective, tile=tile)
    gradient = statistics_gradient(logits, labels, found.lse, found.entropy, upstream, objective, tile=tile)
    wanted = composed.statistics_gradient(logits.double(), labels, *upstream, objective)
    # Products of what arrives, below 4, and of logits, logarithms and entropies below 12; then stored in the dtype.
    arithmetic = "float64" if dtype == torch.float64 else "float32"
    stored = rounded_to("float16", array(wanted)) if dtype == torch.float16 else 0.0
    assert gradient.dtype == dtype
    assert_within(gradient.double(), wanted, 8 * eps(arithmetic) * 4 * 12 + stored)
    there = logits.clone()
    assert statistics_gradient(there, labels, found.lse, found.entropy, upstream, objective, out=there) is there
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
    numbers = [*Objective(**EVERYTHING).to_numbers(), 0.0]
    rows, call = (x, weight, bias, labels, random(6, seed=4).abs()), (numbers, reduction, 784, torch.float64)
    forward = (*rows, *call, [reduction == "mean"] * 3)
    ours = linear_operators.forward_on_gpu(*forward)
    assert_same(ours, linear_operators._forward(*on_cpu(forward)))
    backward = (random(*ours[0].shape, seed=5), *rows, *call, [True, True, True])
    assert_same(linear_operators.backward_on_gpu(*backward), linear_operators._backward(*on_cpu(backward)))
    statistics = (*rows[:4], [*Objective(**LINEAR_STATISTICS).to_numbers(), 0.0], "none", 784, torch.float64)
    found = linear_operators.statistics_on_gpu(*statistics)
    assert_same(found, linear_operators._statistics(*on_cpu(statistics)))
    upstream = [random(7, seed=seed) for seed in (6, 7, 8)]
    backward = (upstream, *rows[:4], found[1], found[5], *statistics[4:], [True, False, True])
    assert_same(
        linear_operators.statistics_backward_on_gpu(*backward),
        linear_operators._statistics_backward(*on_cpu(backward)),
    )


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
