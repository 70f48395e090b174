"""Errors of loss and gradient against the float64 reference, ours beside torch's own in the same dtype.

An error is the greatest over the rows, for losses in nats and for gradients as the gradient of one row's loss. The
reference sees the same rounded logits, so nothing counts that happened before the call. For float64 logits the
reference is no judge of last digits; there the error is measured against torch's float64 and ours against the
reference's own formulas, both of which differ by rounding only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import xent.torch
from xent import reference
from xent.benchmark import machine
from xent.benchmark.primitives import measured_primitives
from xent.checks import as_rows
from xent.objective import Objective

DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHAPES = {"10 classes": (4096, 10), "1000": (256, 1000), "50257": (16, 50257), "21, positions inside": (2, 21, 32, 32)}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "class weights": {"weighted": True},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "class probabilities": {"soft": True},
    "z-loss 1e-4": {"z_loss": 1e-4},
    "softcap 30": {"softcap": 30.0},
}
NOT_IN_TORCH = ("z_loss", "softcap")
OFFSETS = {"": 0.0, ", all logits + 100": 100.0}

Array = NDArray[np.float64]


def run_accuracy(
    command: str = "", progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> dict[str, Any]:
    """Measure all cases; a minute or two."""
    options = [(option, offset) for option in OPTIONS for offset in OFFSETS if not offset or option == "plain"]
    wanted = list(itertools.product(DTYPES, SHAPES, options))
    cases = []
    for done, (dtype, shape, (option, offset)) in enumerate(wanted):
        progress("accuracy", done, len(wanted))
        cases.append(measured(dtype, shape, option, offset))
    about = machine.describe(command, torch.get_num_threads())
    return {"record": "xent accuracy", **about, "cases": cases, "primitives": measured_primitives()}


def measured(dtype: str, shape: str, option: str, offset: str = "", seed: int = 0) -> dict[str, Any]:
    """The errors of one case: `loss` and `gradient`, each of "xent" and (where it has the option) of "torch"."""
    logits, target, weight, options = _inputs(dtype, shape, option, OFFSETS[offset], seed)
    exact_loss, exact_gradient = _exact(logits, target, weight, options)
    case: dict[str, Any] = {"dtype": dtype, "shape": shape, "option": option + offset}
    case["epsilon"] = float(torch.finfo(torch.float64 if dtype == "float64" else torch.float32).eps)
    case["gradient_epsilon"] = float(torch.finfo(DTYPES[dtype]).eps)
    case["greatest_loss"] = float(np.abs(exact_loss).max())
    case["greatest_gradient"] = float(np.abs(exact_gradient).max())
    for name, found in _contestants(logits, target, weight, options):
        case[name] = {
            "loss": float(np.abs(found[0] - exact_loss).max()),
            "gradient": float(np.abs(found[1] - exact_gradient).max()),
        }
    return case


def _inputs(
    dtype: str, shape: str, option: str, offset: float, seed: int
) -> tuple[Tensor, Tensor, Tensor | None, dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    size, classes = SHAPES[shape], SHAPES[shape][1]
    logits = (3 * torch.randn(size, generator=generator, dtype=torch.float64) + offset).to(DTYPES[dtype])
    options = dict(OPTIONS[option])
    if options.pop("soft", False):
        computing = torch.float64 if dtype == "float64" else torch.float32
        target = torch.softmax(torch.randn(size, generator=generator, dtype=torch.float64), 1).to(computing)
    else:
        target = torch.randint(0, classes, size[:1] + size[2:], generator=generator)
    weighted = options.pop("weighted", False)
    weight = torch.rand(classes, generator=generator).to(DTYPES[dtype]) + 0.5 if weighted else None
    return logits, target, weight, options


def _contestants(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
) -> Iterator[tuple[str, tuple[Array, Array]]]:
    yield "xent", _differentiated(xent.torch.cross_entropy, logits, target, weight, options)
    if not set(NOT_IN_TORCH) & set(options):
        soft = target.to(logits.dtype) if target.is_floating_point() else target
        yield "torch", _differentiated(F.cross_entropy, logits, soft, weight, options)


def _differentiated(
    function: Any, logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
) -> tuple[Array, Array]:
    x = logits.clone().requires_grad_()
    losses = function(x, target, weight=weight, reduction="none", **options)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach().double().numpy().reshape(-1), as_rows(gradient.double().numpy(), 1)


def _exact(logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]) -> tuple[Array, Array]:
    objective = replace(Objective(**options), weight=None if weight is None else weight.double().numpy())
    x = as_rows(logits.double().numpy(), 1)
    y: Any = target.numpy()
    y = as_rows(y.astype(np.float64), 1) if target.is_floating_point() else y.reshape(-1)
    return reference.cross_entropy(x, y, objective)[0], reference.cross_entropy_gradient(x, y, objective)
