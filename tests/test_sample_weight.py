"""One weight for each loss: what execution_modes.py and test_parallel.py do not see of `sample_weight`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import xent.numpy
import xent.torch
from xent.errors import DTypeError, ShapeError
from xent.torch.deferred import DeferredLogits, defer_logits

LABELS = torch.tensor([2, 0, -100, 3, 1, 1])
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.0, 1.25, 0.25], dtype=torch.float64)


def tensors(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def by_hand(losses: torch.Tensor) -> torch.Tensor:
    return (WEIGHTS * losses).sum() / WEIGHTS[LABELS != -100].sum()


def test_the_numpy_front_has_the_same_value_and_gradients():
    logits = tensors(6, 4)
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(
        logits.numpy(), LABELS.numpy(), sample_weight=WEIGHTS.numpy()
    )
    x = logits.clone().requires_grad_()
    wanted = by_hand(torch.nn.functional.cross_entropy(x, LABELS, reduction="none"))
    wanted.backward()
    assert abs(loss - wanted.item()) <= 1e-15
    assert np.abs(gradient - x.grad.numpy()).max() <= 1e-15
    assert xent.numpy.cross_entropy(logits.numpy(), LABELS.numpy(), sample_weight=WEIGHTS.numpy()) == loss

    hidden, head = tensors(6, 3), tensors(4, 3, 1)[..., 0]
    parts = (hidden.numpy(), head.numpy(), LABELS.numpy())
    loss, gradients = xent.numpy.linear_cross_entropy_value_and_grad(*parts, sample_weight=WEIGHTS.numpy())
    h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    wanted = by_hand(torch.nn.functional.cross_entropy(h @ w.T, LABELS, reduction="none"))
    wanted.backward()
    assert abs(loss - wanted.item()) <= 1e-15
    assert np.abs(gradients.input - h.grad.numpy()).max() <= 1e-15
    assert np.abs(gradients.linear_weight - w.grad.numpy()).max() <= 1e-15
    assert xent.numpy.linear_cross_entropy(*parts, sample_weight=WEIGHTS.numpy()) == loss


def test_a_module_takes_them_beside_the_target():
    logits = tensors(6, 4)
    wanted = xent.torch.cross_entropy(logits, LABELS, sample_weight=WEIGHTS, label_smoothing=0.1)
    assert torch.equal(xent.torch.CrossEntropyLoss(label_smoothing=0.1)(logits, LABELS, WEIGHTS), wanted)
    module = xent.torch.LinearCrossEntropyLoss(3, 4, dtype=torch.float64)
    hidden = tensors(6, 3)
    wanted = xent.torch.linear_cross_entropy(hidden, module.linear.weight, LABELS, sample_weight=WEIGHTS)
    assert torch.equal(module(hidden, LABELS, WEIGHTS), wanted)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_deferred_logits_stay_deferred(reduction):
    model = defer_logits(nn.Sequential(nn.Linear(3, 4)), "0").double()
    hidden = tensors(6, 3)
    logits = model(hidden)
    assert isinstance(logits, DeferredLogits)
    options = {"sample_weight": WEIGHTS, "reduction": reduction}
    found = xent.torch.cross_entropy(logits, LABELS, **options)
    head = model[0]
    parts = (hidden, head.weight, LABELS)
    wanted = xent.torch.linear_cross_entropy(*parts, linear_bias=head.bias, **options)
    assert torch.equal(found, wanted)
    for one, other in zip(*(torch.autograd.grad(x.sum(), head.parameters()) for x in (found, wanted)), strict=True):
        assert torch.equal(one, other)


def test_the_positions_of_a_layer_have_weights_of_their_own():
    hidden, weight = tensors(5, 3), tensors(4, 2, 3)
    labels = torch.tensor([[0, 1], [2, -100], [3, 3], [1, 0], [2, 2]])
    weights = torch.linspace(0.0, 2.0, 10, dtype=torch.float64).reshape(5, 2)
    losses = xent.torch.linear_cross_entropy(hidden, weight, labels, reduction="none")
    found = xent.torch.linear_cross_entropy(hidden, weight, labels, sample_weight=weights)
    wanted = (losses * weights).sum() / weights[labels != -100].sum()
    assert torch.allclose(found, wanted, rtol=1e-15, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_has_no_weight_counts_for_nothing_even_if_its_loss_is_infinite(dtype):
    logits = torch.tensor([[0.0, 1.0, -torch.inf], [0.5, 0.0, 2.0]], dtype=dtype, requires_grad=True)
    labels = torch.tensor([2, 0])
    loss = xent.torch.cross_entropy(logits, labels, sample_weight=torch.tensor([0.0, 3.0]))
    loss.backward()
    alone = logits.detach()[1:].clone().requires_grad_()
    wanted = xent.torch.cross_entropy(alone, labels[1:])
    wanted.backward()
    # Times 3 and over 3, in the dtype of the loss.
    assert abs(loss.item() - wanted.item()) <= 2 * torch.finfo(loss.dtype).eps * wanted.item()
    assert (logits.grad[0] == 0).all()
    assert (logits.grad[1] - alone.grad[0]).abs().max() <= 2 * torch.finfo(dtype).eps
    found = xent.numpy.cross_entropy(logits.detach().double().numpy(), labels.numpy(), sample_weight=[0.0, 3.0])
    assert abs(found - wanted.item()) <= 2 * torch.finfo(loss.dtype).eps * wanted.item()


def test_weights_that_sum_to_nothing_give_nan_without_a_gradient():
    logits = tensors(6, 4).requires_grad_()
    loss = xent.torch.cross_entropy(logits, LABELS, sample_weight=torch.zeros(6))
    loss.backward()
    assert loss.isnan()
    assert (logits.grad == 0).all()


def test_three_products_with_weights_as_without():
    """The flops that torch counts of the operator; the losses of rows would need a fourth product."""
    hidden, head = tensors(6, 3).float().requires_grad_(), tensors(4, 3).float().requires_grad_()

    def gradients(**options: torch.Tensor) -> list[str]:
        with torch.profiler.profile() as profile:
            xent.torch.linear_cross_entropy(hidden, head, LABELS, **options).backward()
        return [event.name for event in profile.events() if event.name in ("aten::mm", "aten::addmm")]

    assert gradients(sample_weight=WEIGHTS.float()) == gradients() != []


@pytest.mark.parametrize("front", ["torch", "numpy"])
def test_weights_of_another_shape_or_kind_are_refused(front):
    logits, labels = tensors(6, 4), LABELS
    call, make = (
        (xent.torch.cross_entropy, torch.as_tensor) if front == "torch" else (xent.numpy.cross_entropy, np.asarray)
    )
    arguments = (logits, labels) if front == "torch" else (logits.numpy(), labels.numpy())
    with pytest.raises(ShapeError, match=r"cross_entropy\(sample_weight=\.\.\.\): found shape \(5,\), expected \(6,\)"):
        call(*arguments, sample_weight=make(np.ones(5)))
    with pytest.raises(ShapeError, match="sample_weight"):
        call(*arguments, sample_weight=make(np.ones((6, 1))))
    with pytest.raises(DTypeError, match="sample_weight"):
        call(*arguments, sample_weight=make(np.ones(6, dtype=bool if front == "torch" else object)))
