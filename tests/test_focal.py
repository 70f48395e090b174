"""The focal loss: what execution_modes.py does not see of `focal_gamma`."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import xent.numpy
import xent.reference
import xent.torch
from xent.errors import ObjectiveError
from xent.focal import focal_loss, focal_slope
from xent.objective import Objective
from xent.torch.deferred import defer_logits

SURPRISES = [0.0, 1e-300, 1e-12, 1e-3, 0.1, 0.7, 3.0, 20.0, 63.9, 64.0, 500.0, np.inf]


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0, 2.0, 5.0])
def test_value_and_slope_are_right_to_their_last_digits(gamma):
    """By 40 digits; (1 - p)**gamma and its derivative where p is nearly 1, and nearly 0."""
    s = np.array(SURPRISES)
    value, slope = focal_loss(s, gamma, np), focal_slope(s, gamma, np)
    with mpmath.workdps(40):
        for one, found, derivative in zip(SURPRISES, value, slope, strict=True):
            if one in (0.0, np.inf):
                assert (found, derivative) == ((0.0, 0.0) if one == 0.0 else (np.inf, 1.0))
                continue
            x = mpmath.mpf(one)
            p, rest = mpmath.exp(-x), -mpmath.expm1(-x)
            wanted = rest**gamma * x
            pull = rest**gamma + gamma * rest ** (gamma - 1) * p * x
            # A few roundings, and those of an exponent of up to 700 * gamma, in units of 2**-52.
            bound = (8 + 4 * gamma * abs(float(mpmath.log(rest)))) * 2.0**-52
            assert abs(mpmath.mpf(float(found)) - wanted) <= bound * abs(wanted) + 5e-324
            assert abs(mpmath.mpf(float(derivative)) - pull) <= bound * abs(pull) + 5e-324


def test_the_fronts_and_the_reference_agree():
    rng = np.random.default_rng(0)
    logits, labels, weight = 3 * rng.normal(size=(7, 5)), rng.integers(0, 5, 7), rng.random(5)
    labels[2] = -100
    objective = Objective(weight=weight, focal_gamma=1.5)
    losses, _ = xent.reference.cross_entropy(logits, labels, objective)
    slopes = xent.reference.cross_entropy_gradient(logits, labels, objective)
    counted = weight[labels[labels >= 0]].sum()
    options = {"weight": weight, "focal_gamma": 1.5}
    value, gradient = xent.numpy.cross_entropy_value_and_grad(logits, labels, **options)
    assert abs(value - losses.sum() / counted) <= 1e-15
    assert np.abs(gradient - slopes / counted).max() <= 4e-16
    assert xent.numpy.cross_entropy(logits, labels, **options) == value
    x = torch.tensor(logits, requires_grad=True)
    loss = xent.torch.cross_entropy(x, torch.tensor(labels), torch.tensor(weight), focal_gamma=1.5)
    loss.backward()
    assert abs(loss.item() - value) <= 1e-15
    assert np.abs(x.grad.numpy() - gradient).max() <= 4e-16

    hidden, head = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    value, gradients = xent.numpy.linear_cross_entropy_value_and_grad(hidden, head, labels, **options)
    h, w = torch.tensor(hidden, requires_grad=True), torch.tensor(head, requires_grad=True)
    wanted = xent.torch.cross_entropy(h @ w.T, torch.tensor(labels), torch.tensor(weight), focal_gamma=1.5)
    wanted.backward()
    assert abs(value - wanted.item()) <= 2e-15
    assert np.abs(gradients.input - h.grad.numpy()).max() <= 2e-15
    assert np.abs(gradients.linear_weight - w.grad.numpy()).max() <= 2e-15
    assert xent.numpy.linear_cross_entropy(hidden, head, labels, **options) == value


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_certain_row_and_an_impossible_label_have_gradients_that_are_numbers(gamma):
    logits = torch.tensor([[200.0, 0.0], [-torch.inf, 0.0], [0.0, 0.0]], requires_grad=True)
    loss = xent.torch.cross_entropy(logits, torch.tensor([0, 0, 0]), reduction="none", focal_gamma=gamma)
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] == torch.inf
    assert (logits.grad[0] == 0).all()
    assert logits.grad[1].tolist() == [0.0, 1.0] or logits.grad[1].tolist() == [-1.0, 1.0]
    assert logits.grad[2].isfinite().all()


def test_an_impossible_label_whose_class_weighs_nothing_adds_nothing():
    logits, labels, weight = np.array([[-np.inf, 0.0], [0.5, 0.0]]), np.array([0, 1]), np.array([0.0, 2.0])
    options = {"focal_gamma": 2.0, "reduction": "sum"}
    wanted = 2 * xent.numpy.cross_entropy(logits[1], labels[1], **options)
    losses, _ = xent.reference.cross_entropy(logits, labels, Objective(weight=weight, **options))
    assert abs(losses.sum() - wanted) <= 1e-15
    assert abs(xent.numpy.cross_entropy(logits, labels, weight=weight, **options) - wanted) <= 1e-15
    x = torch.tensor(logits, requires_grad=True)
    loss = xent.torch.cross_entropy(x, torch.tensor(labels), torch.tensor(weight), **options)
    loss.backward()
    assert abs(loss.item() - wanted) <= 1e-15
    assert (x.grad[0] == 0).all()


def test_an_exponent_of_0_is_the_plain_loss():
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 2, 1, 1])
    plain = xent.torch.cross_entropy(logits, labels)
    assert torch.equal(xent.torch.cross_entropy(logits, labels, focal_gamma=0.0), plain)
    assert xent.torch.CrossEntropyLoss(focal_gamma=2.0)(logits, labels) < plain


def test_deferred_logits_stay_deferred():
    model = defer_logits(nn.Sequential(nn.Linear(3, 4)), "0")
    hidden, labels = torch.randn(5, 3), torch.tensor([0, 3, -100, 1, 1])
    found = xent.torch.cross_entropy(model(hidden), labels, focal_gamma=2.0)
    head = model[0]
    wanted = xent.torch.linear_cross_entropy(hidden, head.weight, labels, linear_bias=head.bias, focal_gamma=2.0)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
def test_what_is_not_about_the_label_alone_is_refused(options):
    with pytest.raises(ObjectiveError, match=r"focal_gamma.*Leave out label_smoothing and z_loss"):
        xent.torch.cross_entropy(torch.randn(2, 3), torch.tensor([0, 1]), focal_gamma=2.0, **options)


def test_class_probabilities_are_refused_on_all_fronts():
    logits, target = np.zeros((2, 3)), np.full((2, 3), 1 / 3)
    tensors = (torch.tensor(logits), torch.tensor(target))
    for call in (
        lambda: xent.numpy.cross_entropy(logits, target, focal_gamma=2.0),
        lambda: xent.torch.cross_entropy(*tensors, focal_gamma=2.0),
        lambda: xent.torch.linear_cross_entropy(
            torch.ones(2, 4), torch.ones(3, 4), tensors[1].float(), focal_gamma=2.0
        ),
    ):
        with pytest.raises(ObjectiveError, match=r"focal_gamma.*Pass class indices"):
            call()
    with pytest.raises(ObjectiveError, match="focal_gamma"):
        xent.numpy.squared_error(logits, [0, 1], focal_gamma=2.0)
