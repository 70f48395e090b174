"""The implementations that are measured. All get the same tensors and the same number of threads:

- labels are int64, logits are contiguous, the loss is the mean;
- "forward" is the loss alone, without a gradient, as in evaluation;
- "forward + backward" is the loss and `torch.autograd.grad` of it, with the gradient in new memory each time, allocated
  as the implementation always does;
- what is done once in real use (compiling, probabilities for scikit-learn) is done before the measurement.

The limit is a copy of the logits: `torch.clone` into fresh memory, whose pages the system has to clear, and `copy_`
into memory that has been used before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from xent.bench.shapes import Shape

if TYPE_CHECKING:
    from torch import Tensor

Measure = Literal["forward", "forward_backward", "copy"]
Calls = dict[Measure, Callable[[], Any]]

OURS, EAGER, NUMPY = "xent.torch", "F.cross_entropy", "xent.numpy"
REUSED, FRESH = "copy, reused memory", "copy, fresh memory"

_BLOCK = 1 << 24


class NotAvailableError(Exception):
    """This implementation cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Inputs:
    """Logits and labels, the same for all implementations."""

    shape: Shape
    dtype: str
    logits: Tensor
    target: Tensor

    @property
    def arrays(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The same memory as NumPy arrays; NotAvailableError for bfloat16, which NumPy does not have."""
        if self.dtype == "bfloat16":
            raise NotAvailableError("NumPy has no bfloat16")
        return self.logits.detach().numpy(), self.target.numpy()


@dataclass(frozen=True)
class Implementation:
    name: str
    role: Literal["ours", "peer", "limit"]
    prepare: Callable[[Inputs], Calls]
    note: str = ""
    quick: bool = True
    """Whether it is measured in a quick run."""


def make_inputs(shape: Shape, dtype: str, seed: int = 0) -> Inputs:
    """Normal logits of standard deviation 2, random labels; beyond 16 million elements a block is repeated."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    block = torch.randn(min(_BLOCK, shape.elements), generator=generator).mul_(2).to(getattr(torch, dtype))
    logits = torch.empty(shape.size, dtype=block.dtype)
    flat = logits.view(-1)
    for start in range(0, shape.elements, _BLOCK):
        flat[start : start + _BLOCK] = block[: shape.elements - start]
    target = torch.randint(shape.classes, (shape.rows, *shape.positions), generator=generator)
    return Inputs(shape, dtype, logits.requires_grad_(), target)


def torch_calls(loss: Callable[[Tensor, Tensor], Tensor], inputs: Inputs) -> Calls:
    """Both measures of a function with the signature of `F.cross_entropy`."""
    import torch

    logits, target = inputs.logits, inputs.target

    def forward() -> Tensor:
        with torch.no_grad():
            return loss(logits, target)

    def forward_backward() -> tuple[Tensor, Tensor]:
        value = loss(logits, target)
        (gradient,) = torch.autograd.grad(value, logits)
        return value, gradient

    return {"forward": forward, "forward_backward": forward_backward}


def _xent_torch(inputs: Inputs) -> Calls:
    import xent.torch

    return torch_calls(xent.torch.cross_entropy, inputs)


def _xent_numpy(inputs: Inputs) -> Calls:
    import xent.numpy

    logits, target = inputs.arrays
    return {
        "forward": lambda: xent.numpy.cross_entropy(logits, target),
        "forward_backward": lambda: xent.numpy.cross_entropy_value_and_grad(logits, target),
    }


def _eager(inputs: Inputs) -> Calls:
    import torch

    return torch_calls(torch.nn.functional.cross_entropy, inputs)


def _compiled(inputs: Inputs) -> Calls:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++") if name):
        raise NotAvailableError("torch.compile needs a C++ compiler, and there is none (g++ or clang++)")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no helper processes after the compilation
    import torch

    torch.compiler.reset()
    calls = torch_calls(torch.compile(torch.nn.functional.cross_entropy, dynamic=False, fullgraph=True), inputs)
    try:
        for call in calls.values():
            call()
    except Exception as error:  # compilers raise anything
        raise NotAvailableError(f"torch.compile failed: {str(error).strip().splitlines()[0][:200]}") from error
    return calls


def _log_loss(inputs: Inputs) -> Calls:
    try:
        from sklearn.metrics import log_loss
    except ImportError:
        raise NotAvailableError("scikit-learn is not installed") from None
    if inputs.shape.positions:
        raise NotAvailableError("takes two-dimensional arrays only")
    logits, target = inputs.arrays
    # float64: in float32 it clips at 1.2e-7, which changes the loss.
    probabilities = inputs.logits.detach().double().softmax(dim=1).numpy()
    classes = np.arange(logits.shape[1])
    return {"forward": lambda: log_loss(target, probabilities, labels=classes)}


def _formula(inputs: Inputs) -> Calls:
    logits, target = inputs.arrays
    index = target[:, None]

    def exponentials() -> tuple[Any, Any, Any]:
        shift = logits.max(axis=1, keepdims=True)
        e = logits - shift
        label = np.take_along_axis(e, index, axis=1)
        np.exp(e, out=e)
        total = e.sum(axis=1, keepdims=True)
        return (np.log(total) - label).mean(), e, total

    def forward_backward() -> tuple[Any, Any]:
        loss, e, total = exponentials()
        e *= 1 / (total * target.size)
        np.put_along_axis(e, index, np.take_along_axis(e, index, axis=1) - 1 / target.size, axis=1)
        return loss, e

    return {"forward": lambda: exponentials()[0], "forward_backward": forward_backward}


def _copy_fresh(inputs: Inputs) -> Calls:
    logits = inputs.logits.detach()
    return {"copy": lambda: logits.clone()}


def _copy_reused(inputs: Inputs) -> Calls:
    logits = inputs.logits.detach()
    used = logits.clone()
    return {"copy": lambda: used.copy_(logits)}


IMPLEMENTATIONS: tuple[Implementation, ...] = (
    Implementation(OURS, "ours", _xent_torch, "`xent.torch.cross_entropy`"),
    Implementation(NUMPY, "ours", _xent_numpy, "`xent.numpy.cross_entropy` and `cross_entropy_value_and_grad`"),
    Implementation(EAGER, "peer", _eager, "torch, as it is"),
    Implementation("F.cross_entropy, compiled", "peer", _compiled, "`torch.compile`, compiled beforehand", quick=False),
    Implementation("NumPy formula", "peer", _formula, "log-sum-exp and softmax in place, on one thread"),
    Implementation(
        "scikit-learn log_loss",
        "peer",
        _log_loss,
        "takes float64 probabilities (float32 ones it clips at 1.2e-7), made beforehand. No gradient",
        quick=False,
    ),
    Implementation(FRESH, "limit", _copy_fresh, "`torch.clone`"),
    Implementation(REUSED, "limit", _copy_reused, "`Tensor.copy_`"),
)
"""In the order of the tables."""
