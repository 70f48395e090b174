"""Errors of loss and gradient against the float64 reference, ours beside torch's own in the same dtype.

An error is the greatest over the rows: of losses in nats, of gradients as the gradient of one row's loss. The reference
takes the same rounded logits, so rounding before the call does not count. For float64 logits the reference rounds as
well: there an error of some units means agreement up to rounding.
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
from benchmarks.primitive_errors import measure_primitives
from xent import Objective, reference
from xent.bench import machine

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
    command: str = "", progress: Callable[[str, int, int], None] = lambda description, done, total: None
) -> dict[str, Any]:
    """Measure all cases, in a minute or two."""
    options = [(option, offset) for option in OPTIONS for offset in OFFSETS if not offset or option == "plain"]
    selected = list(itertools.product(DTYPES, SHAPES, options))
    cases = []
    for done, (dtype, shape, (option, offset)) in enumerate(selected):
        progress("accuracy", done, len(selected))
        cases.append(measure(dtype, shape, option, offset))
    head = {"record": "xent accuracy", **machine.describe(command, torch.get_num_threads())}
    return {**head, "cases": cases, "primitives": measure_primitives()}


def measure(dtype: str, shape: str, option: str, offset: str = "", seed: int = 0) -> dict[str, Any]:
    """The errors of loss and gradient in one case, of "xent" and, where it has the option, of "torch"."""
    logits, target, weight, options = _inputs(dtype, shape, option, OFFSETS[offset], seed)
    exact_loss, exact_gradient = _exact(logits, target, weight, options)
    case: dict[str, Any] = {"dtype": dtype, "shape": shape, "option": option + offset}
    case["epsilon"] = float(torch.finfo(torch.float64 if dtype == "float64" else torch.float32).eps)
    case["gradient_epsilon"] = float(torch.finfo(DTYPES[dtype]).eps)
    case["greatest_loss"] = float(np.abs(exact_loss).max())
    case["greatest_gradient"] = float(np.abs(exact_gradient).max())
    for name, (loss, gradient) in _implementations(logits, target, weight, options):
        case[name] = {
            "loss": float(np.abs(loss - exact_loss).max()),
            "gradient": float(np.abs(gradient - exact_gradient).max()),
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


def _implementations(
    logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
) -> Iterator[tuple[str, tuple[Array, Array]]]:
    yield "xent", _loss_and_gradient(xent.torch.cross_entropy, logits, target, weight, options)
    if not set(NOT_IN_TORCH) & set(options):
        soft = target.to(logits.dtype) if target.is_floating_point() else target
        yield "torch", _loss_and_gradient(F.cross_entropy, logits, soft, weight, options)


def _loss_and_gradient(
    function: Any, logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]
) -> tuple[Array, Array]:
    x = logits.clone().requires_grad_()
    losses = function(x, target, weight=weight, reduction="none", **options)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach().double().numpy().reshape(-1), _rows(gradient)


def _exact(logits: Tensor, target: Tensor, weight: Tensor | None, options: dict[str, Any]) -> tuple[Array, Array]:
    objective = replace(Objective(**options), weight=None if weight is None else weight.double().numpy())
    x = _rows(logits)
    y: Any = _rows(target) if target.is_floating_point() else target.numpy().reshape(-1)
    return reference.cross_entropy(x, y, objective)[0], reference.cross_entropy_gradient(x, y, objective)


def _rows(tensor: Tensor) -> Array:
    """As float64 with the classes, axis 1, in the last place: (rows, classes)."""
    array: Array = tensor.double().movedim(1, -1).reshape(-1, tensor.shape[1]).numpy()
    return array
