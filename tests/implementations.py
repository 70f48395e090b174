"""What the tests run: every implementation of softmax cross-entropy behind one small interface.

To add one (a device, a front), append an Implementation to the list at the end; no test names an implementation.

XENT_TEST_IMPLEMENTATIONS=gpu runs the Triton kernels instead: under their interpreter, which has to be chosen before
Triton is imported (test_gpu.py starts such a process), or without TRITON_INTERPRET=1 on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import torch

import xent.numpy
import xent.reference
import xent.torch
from xent.backends import choice, few_rows
from xent.backends.formula import FORMULA
from xent.objective import Objective

Array = np.ndarray
Options = dict[str, Any]

ON_GPU = os.environ.get("XENT_TEST_IMPLEMENTATIONS") == "gpu"
DEVICE = "cuda" if ON_GPU and os.environ.get("TRITON_INTERPRET") != "1" else "cpu"


def array(values: Any) -> Any:
    """A tensor's numbers, wherever they are; anything else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


@contextmanager
def by_kernels() -> Iterator[None]:
    """Let kernels compute also what is so small that torch's own loss or NumPy would."""
    with mock.patch.object(choice, "LIMIT", 0), mock.patch.object(few_rows, "MOST", 0):
        yield


@dataclass(frozen=True)
class Implementation:
    """Per-row loss and gradient, `run(logits, target, options, row_scale)`, as NumPy arrays.

    The gradient is that of sum(row_scale * loss). `call(logits, target, **options)` is the front's own call, which
    checks and reduces: value and gradient; None for what only computes rows.
    """

    name: str
    dtypes: tuple[str, ...]
    run: Callable[[Array, Array, Options, Array | None], tuple[Array, Array]]
    call: Callable[..., tuple[Any, Array]] | None = None
    kernel: bool = True  # the accuracy of an ordinary computation in that dtype; False: that of the reference
    checks_distributions: bool = True  # whether `call` refuses class probabilities that are no distribution

    from_lse: bool = False  # whether a float32 gradient is made from a log-sum-exp that was rounded to float64

    def arithmetic(self, dtype: str) -> str:
        """The dtype in which logits of this dtype are computed."""
        return "float64" if dtype == "float64" or not self.kernel else "float32"

    def loss_and_gradient(
        self, logits: Array, target: Array, objective_options: Options, row_scale: Array | None = None
    ) -> tuple[Array, Array]:
        return self.run(logits, target, objective_options, row_scale)


def _reference(logits: Array, target: Array, options: Options, row_scale: Array | None) -> tuple[Array, Array]:
    weight = options.get("weight")
    objective = Objective(**{**options, "weight": None if weight is None else np.asarray(weight, dtype=np.float64)})
    gradient = xent.reference.cross_entropy_gradient(logits, target, objective)
    loss, _ = xent.reference.cross_entropy(logits, target, objective)
    return loss, gradient if row_scale is None else gradient * row_scale[:, None]


def _numpy(logits: Array, target: Array, options: Options, row_scale: Array | None) -> tuple[Array, Array]:
    loss, gradient = xent.numpy.cross_entropy_value_and_grad(logits, target, **{**options, "reduction": "none"})
    return loss, gradient if row_scale is None else gradient * row_scale[:, None].astype(gradient.dtype)


def _tensors(logits: Array, target: Array, options: Options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Copies as tensors, since torch has no tensor of read-only memory; the logits want a gradient."""
    weight = options.get("weight")
    x = torch.from_numpy(np.array(logits)).to(DEVICE).requires_grad_()
    weights = None if weight is None else torch.tensor(np.asarray(weight, float), device=DEVICE)
    return x, torch.from_numpy(np.array(target)).to(DEVICE), weights


def _with_gradient(loss: torch.Tensor, x: torch.Tensor, upstream: Array | None) -> tuple[Array, Array]:
    above = torch.ones_like(loss) if upstream is None else torch.from_numpy(np.array(upstream)).to(loss)
    (gradient,) = torch.autograd.grad(loss, x, above)
    return array(loss), array(gradient)


def _torch(logits: Array, target: Array, options: Options, row_scale: Array | None) -> tuple[Array, Array]:
    x, y, weight = _tensors(logits, target, options)
    others = {name: value for name, value in options.items() if name != "weight"}
    loss = xent.torch.cross_entropy(x, y, weight, **{**others, "reduction": "none"})
    return _with_gradient(loss, x, row_scale)


def _formula(logits: Array, target: Array, options: Options, row_scale: Array | None) -> tuple[Array, Array]:
    x, y, weight = _tensors(logits, target, options)
    objective = Objective(**{**options, "weight": weight})
    return _with_gradient(FORMULA.forward(x, y, objective)[0], x, row_scale)


def _torch_call(logits: Any, target: Any, **options: Any) -> tuple[Any, Array]:
    logits, target = np.asarray(logits), np.asarray(target)
    x, y, weight = _tensors(logits, target, options)
    others = {name: value for name, value in options.items() if name != "weight"}
    loss = xent.torch.cross_entropy(x, y, weight, check=True, **others)
    value, gradient = _with_gradient(loss, x, None)
    return value if value.ndim else value[()], gradient


def _gpu(small: bool) -> Callable[[Array, Array, Options, Array | None], tuple[Array, Array]]:
    """Loss and gradient by the kernels, with the usual tiles, or with a few small ones in each direction."""
    from xent.backends.gpu.backend import GpuBackend
    from xent.backends.gpu.shapes import Tile

    def fourth(length: int) -> int:
        """A power of two."""
        return 1 << (length // 4).bit_length()

    def run(logits: Array, target: Array, options: Options, row_scale: Array | None) -> tuple[Array, Array]:
        x, y, weight = _tensors(logits, target, options)
        x = x.detach()
        objective = Objective(**{**options, "weight": weight})
        scale = 1.0 if row_scale is None else torch.from_numpy(np.array(row_scale)).to(DEVICE)
        tile = Tile(max(1, fourth(len(x))), max(1, fourth(x.shape[1])), 1) if small else None
        loss, _, gradient = GpuBackend(tile).forward_backward(x, y, scale, objective)
        return array(loss), array(gradient)

    return run


DTYPES = ("float64", "float32", "float16")
REFERENCE = Implementation("reference", ("float64",), _reference, kernel=False)
NUMPY = Implementation("numpy", DTYPES, _numpy, call=xent.numpy.cross_entropy_value_and_grad)
TORCH = Implementation("torch", DTYPES, _torch, call=_torch_call, checks_distributions=False, from_lse=True)
FORMULAS = Implementation("formula", DTYPES, _formula)

KERNELS = [
    replace(of, name=f"{of.name}-kernels", run=by_kernels()(of.run), call=by_kernels()(of.call))
    for of in (NUMPY, TORCH)
]
"""The two fronts without what they do for small calls."""

IMPLEMENTATIONS = [REFERENCE, NUMPY, TORCH, FORMULAS, *KERNELS]
if ON_GPU:
    if DEVICE == "cpu":
        choice.interpret(True)
    # The usual tiles are larger than most cases; small ones go the way of many classes, block after block.
    IMPLEMENTATIONS = [replace(TORCH, name="gpu"), Implementation("gpu-small-tiles", ("float32",), _gpu(small=True))]
FRONTS = [implementation for implementation in IMPLEMENTATIONS if implementation.call is not None]
