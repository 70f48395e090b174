"""The binary cross-entropy by the GPU's kernel; on_device.py says where this runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from binary_oracle import GRIDS, Grid, check
from comparison import assert_within, eps
from implementations import DEVICE, array
from on_device import both, moved, placed, random

import xent.torch
from xent.backends.binary_protocol import Elements
from xent.backends.formula_binary import FORMULA_BINARY
from xent.backends.gpu.binary_backend import GpuBinary
from xent.errors import LabelError
from xent.objective import Objective

__all__ = ["placed"]

SMALL = 16
OPTIONS: list[dict[str, Any]] = [
    {},
    {"label_smoothing": 0.1, "softcap": 3.0, "logit_scale": 0.6},
    {"logit_scale": 2.0},
    {"focal_gamma": 1.5, "softcap": 4.0},
]
WEIGHTS = [
    (None, None, None),
    ((5,), (4, 1), (3, 4, 1)),
    ((3, 1, 5), (1, 4, 1), None),
    ((3, 4, 5), (), (3, 4, 1)),
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_losses_and_gradients_are_those_of_60_digits(grid: Grid, dtype: str):
    """In float32 the exponential is that of the special function unit, with what its argument lost put back."""

    def call(logits: np.ndarray, target: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
        del options["reduction"]
        given = {name: torch.as_tensor(options.pop(name)) for name in ("weight", "pos_weight") if name in options}
        tensors = torch.from_numpy(logits).to(DEVICE), torch.from_numpy(target).to(DEVICE)
        found = GpuBinary().visit(Elements(*tensors, Objective(**options), **given), 1.0, losses=True)
        return array(found.losses), array(found.gradient)

    check(call, grid, dtype, 16)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64], ids=str)
@pytest.mark.parametrize("shapes", WEIGHTS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weights_targets_and_options_are_those_of_the_formula(options, shapes, dtype):
    x, y = random(3, 4, 5), (random(3, 4, 5, seed=1) > 0).to(dtype)
    x[2, 0, :4] = torch.tensor([1.0, -1.0, 1.0, -1.0]) * torch.inf
    y[0, 0, 0], y[1, 1, 1] = -100, 3
    weights = [None if shape is None else random(*shape, seed=2).abs() for shape in shapes]
    elements = Elements(x, y, Objective(**options), *weights)
    scale = random(3, 4, 5, seed=3) if dtype is torch.float64 else 0.5
    wanted = FORMULA_BINARY.visit(elements, scale, losses=True)
    found = GpuBinary().visit(elements, scale, losses=True, block=SMALL)
    for name in ("losses", "gradient"):
        one, other = array(getattr(found, name)), array(getattr(wanted, name))
        assert_within(one, other, 64 * eps("float64") * (1 + np.abs(np.nan_to_num(other, posinf=0))), name)
    assert found.total.isnan() == bool(wanted.losses.isnan().any())


def test_a_gradient_that_is_finished_is_left_alone():
    x, y = random(7, 9), (random(7, 9, seed=1) > 0).double()
    elements, out = Elements(x, y, Objective()), torch.full((7, 9), 7.0, dtype=torch.float64)
    GpuBinary().visit(elements, 2.0, out=out, finished=torch.ones(()))
    assert (out == 7.0).all()
    GpuBinary().visit(elements, 2.0, out=out, finished=torch.full((), 2.0))
    assert_within(out, array(FORMULA_BINARY.visit(elements, 2.0).gradient), 1e-14)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_the_front_answers_as_on_the_cpu(reduction):
    arguments = [random(6, 5), (random(6, 5, seed=1) > 0).double(), random(5, seed=2).abs(), random(6, 1, seed=3).abs()]
    arguments[1][2, 3] = -100

    def compute(place: str) -> tuple[torch.Tensor, ...]:
        x, y, weight, pos_weight = moved(arguments, place)
        found = []
        for factor in (1.0, 0.75):
            logits, options = x.clone().requires_grad_(), {"reduction": reduction, "pos_weight": pos_weight}
            loss = xent.torch.binary_cross_entropy_with_logits(logits, y, weight, **options)
            (loss.sum() * factor).backward()
            found += [loss.detach(), logits.grad]
        return tuple(found)

    for one, other in both(compute):
        assert_within(one, other, 64 * eps("float64") * 20)


def test_a_target_out_of_range_is_nan_unless_it_is_checked():
    x, y = torch.zeros(2, 3), torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.0, 1.0]])
    losses = xent.torch.binary_cross_entropy_with_logits(x, y, reduction="none")
    assert losses.isnan().tolist() == [[False, True, False], [False, False, False]]
    with pytest.raises(LabelError, match=r"2 at \(0, 1\)"):
        xent.torch.binary_cross_entropy_with_logits(x, y, check=True)
