"""What went wrong when the package was used: each case found, under the name of what has to hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import xent.errors
import xent.numpy
import xent.torch

X = torch.tensor([[259.1, 258.3, 257.0], [-262.0, -259.5, -261.0]])
LABELS = torch.tensor([0, 2])


# T1: compiled code runs the operators of this package


def operators_in_graph(function, *arguments: Tensor) -> list[str]:
    """The names of our operators in the graphs of forward and backward, in their order."""
    from torch._dynamo.testing import AotEagerAndRecordGraphs

    torch._dynamo.reset()
    backend = AotEagerAndRecordGraphs()
    torch.compile(function, fullgraph=True, backend=backend)(*arguments).backward()
    graphs = [*backend.fw_graphs, *backend.bw_graphs]
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert not any("linear" in target and "xent" not in target for target in targets), "the logits are held"
    return [target.split(".")[1] for target in targets if target.startswith("xent")]


COMPILED = {
    "cross_entropy": ("cross_entropy_rows", False),
    "statistics": ("statistics_rows", False),
    "linear_cross_entropy": ("linear_cross_entropy", True),
    "linear_statistics": ("linear_statistics", True),
}


@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_code_runs_our_operators(name):
    operator, is_linear = COMPILED[name]
    x = torch.randn(6, 5, requires_grad=True)
    variables = [x, torch.randn(9, 5, requires_grad=True)] if is_linear else [x]
    labels = torch.tensor([0, 4, 2, -100, 1, 3])

    def total(*variables: Tensor) -> Tensor:
        value = getattr(xent.torch, name)(*variables, labels)
        return value if isinstance(value, Tensor) else value.log_prob.sum() + value.entropy.sum()

    assert operators_in_graph(total, *variables) == [operator, f"{operator}_backward"]


def test_transforms_inside_compiled_code_see_through_formulas():
    x, labels = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 4, 2, 1])

    def per_row(x: Tensor, labels: Tensor) -> Tensor:
        return torch.vmap(torch.func.grad(lambda row, label: xent.torch.cross_entropy(row, label)))(x, labels)

    compiled = torch.compile(per_row, fullgraph=True, backend="aot_eager")(x, labels)
    wanted = torch.softmax(x, 1) - torch.nn.functional.one_hot(labels, 5)
    torch.testing.assert_close(compiled, wanted, rtol=0, atol=8 * torch.finfo(torch.float64).eps)


# T14: class weights of the torch front


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_both_fronts_refuse_weights_that_are_negative_or_not_finite(wrong):
    weight = torch.tensor([1.0, wrong, 2.0])
    x, head = torch.zeros(2, 3), torch.zeros(3, 4)
    calls = [
        lambda: xent.torch.cross_entropy(x, LABELS, weight),
        lambda: xent.torch.CrossEntropyLoss(weight)(x, LABELS),
        lambda: xent.torch.linear_cross_entropy(torch.zeros(2, 4), head, LABELS, weight=weight),
        lambda: xent.numpy.cross_entropy(x.numpy(), LABELS.numpy(), weight=weight.numpy()),
    ]
    for call in calls:
        with pytest.raises(xent.errors.ObjectiveError, match=r"weight=.*negative or not finite"):
            call()


# T16: the derivative of the softcap cancels


def assert_relative(found: Tensor, wanted: Tensor, softcap: float) -> None:
    """u = x / softcap is rounded, which 1 / cosh(u)^2 magnifies by 2 |u|; and a few roundings more."""
    bound = (2 * 262 / softcap + 32) * torch.finfo(torch.float32).eps
    assert ((found.double() - wanted).abs() <= bound * wanted.abs()).all(), (found, wanted)


@pytest.mark.parametrize("name", ["log_prob", "lse"])
def test_the_gradient_of_softcapped_statistics_keeps_its_digits(name):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = X.to(dtype, copy=True).requires_grad_()
        value = getattr(xent.torch.statistics(x, LABELS, softcap=30.0), name)
        gradients.append(torch.autograd.grad(value.sum(), x)[0])
    assert gradients[1].abs().min() > 0
    assert_relative(*gradients, softcap=30.0)


@pytest.mark.parametrize("create_graph", [False, True])
def test_the_gradient_of_a_softcapped_loss_keeps_its_digits(create_graph):
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = X.to(dtype, copy=True).requires_grad_()
        loss = xent.torch.cross_entropy(x, LABELS, softcap=30.0)
        gradients.append(torch.autograd.grad(loss, x, create_graph=create_graph)[0].detach())
    truth = xent.numpy.cross_entropy_value_and_grad(X.double().numpy(), LABELS.numpy(), softcap=30.0)[1]
    np.testing.assert_allclose(gradients[1].numpy(), truth, rtol=1e-12)
    assert_relative(gradients[0], torch.from_numpy(truth), softcap=30.0)


# T17: bfloat16 gradients are rounded once, compiled too


@pytest.mark.parametrize("factor", [1.0, 0.5, 1 / 3])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_compiled_bfloat16_gradients_are_those_of_eager_code(factor, reduction):
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((12, 8), (20, 8)))
    labels = torch.randint(0, 20, (12,), generator=generator)

    def loss(x: Tensor, w: Tensor) -> Tensor:
        return xent.torch.linear_cross_entropy(x, w, labels, reduction=reduction) * factor

    gradients = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        variables = [tensor.clone().requires_grad_() for tensor in (x, w)]
        gradients.append(torch.autograd.grad(function(*variables), variables))
    for eager, compiled in zip(*gradients, strict=True):
        assert torch.equal(eager, compiled)
