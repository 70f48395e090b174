"""The implementations that are measured on a GPU. All get the same tensors and return the mean loss and its gradients.

Gradients are in new memory. An implementation that writes them over the logits (`overwrites`) gets a copy of the logits
beforehand, and in later rounds works on its own results: its times do not depend on the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from xent.bench.peers import NotAvailableError

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[..., "Tensor"]
Calls = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Inputs:
    """Logits, or with a weight the input of a linear layer; and labels."""

    x: Tensor
    weight: Tensor | None
    target: Tensor

    @property
    def variables(self) -> list[Tensor]:
        return [self.x] if self.weight is None else [self.x, self.weight]

    def copied(self) -> Inputs:
        """The same numbers with the input, or the logits, in other memory."""
        return Inputs(self.x.detach().clone().requires_grad_(), self.weight, self.target)


@dataclass(frozen=True)
class Implementation:
    name: str
    role: Literal["ours", "peer", "limit"]
    prepare: Callable[[Inputs], Calls]
    note: str
    overwrites: bool = False

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "role": self.role, "note": self.note}


def loss_calls(loss: Loss, inputs: Inputs) -> Calls:
    """Forward, and forward with backward, of a loss that takes the variables and the labels."""
    import torch

    def forward() -> Tensor:
        with torch.no_grad():
            return loss(*inputs.variables, inputs.target)

    def forward_backward() -> tuple[Tensor, ...]:
        value = loss(*inputs.variables, inputs.target)
        return value.detach(), *torch.autograd.grad(value, inputs.variables)

    return {"forward": forward, "forward_backward": forward_backward}


def function(module: str, name: str, package: str) -> Loss:
    """A function of a package; NotAvailableError if the package is not installed or has no such function."""
    try:
        loss: Loss = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        missing = "" if module.startswith(str(error.name)) else f": {error}"
        raise NotAvailableError(f"{package} is not installed{missing}") from None
    except AttributeError:
        raise NotAvailableError(f"{module} has no {name}") from None
    return loss


def calls_of(module: str, name: str, package: str) -> Callable[[Inputs], Calls]:
    """How to prepare a loss of a package."""
    return lambda inputs: loss_calls(function(module, name, package), inputs)


def on_gpu_only(prepare: Callable[[Inputs], Calls]) -> Callable[[Inputs], Calls]:
    """For implementations that cannot run under the interpreter."""

    def prepared(inputs: Inputs) -> Calls:
        if inputs.x.device.type == "cpu":
            raise NotAvailableError("takes tensors on a GPU only")
        return prepare(inputs)

    return prepared


def _eager_linear(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.cross_entropy(F.linear(x, weight), target)


def _compiled(loss: Callable[[], Loss]) -> Callable[[Inputs], Calls]:
    def prepare(inputs: Inputs) -> Calls:
        import torch

        torch.compiler.reset()
        return loss_calls(torch.compile(loss(), dynamic=False, fullgraph=True), inputs)

    return on_gpu_only(prepare)


def _copy(inputs: Inputs) -> Calls:
    logits = inputs.x.detach()
    used = logits.clone()
    return {"forward_backward": lambda: used.copy_(logits)}


def _products(inputs: Inputs) -> Calls:
    """Logits, gradient of the input, gradient of the weight, each as one product."""
    import torch

    assert inputs.weight is not None
    x, weight = inputs.x.detach(), inputs.weight.detach()
    logits = x @ weight.t()
    by_x, by_weight = torch.empty_like(x), torch.empty_like(weight)

    def products() -> None:
        torch.mm(x, weight.t(), out=logits)
        torch.mm(logits, weight, out=by_x)
        torch.mm(logits.t(), x, out=by_weight)

    return {"forward_backward": products}


def _eager() -> Loss:
    import torch.nn.functional as F

    return F.cross_entropy


def _cce(inputs: Inputs) -> Calls:
    loss = function("cut_cross_entropy", "linear_cross_entropy", "cut-cross-entropy")
    return loss_calls(loss, inputs)


def _quack(inputs: Inputs) -> Calls:
    loss = function("quack.cross_entropy", "cross_entropy", "quack-kernels")
    return loss_calls(lambda x, target: loss(x, target, reduction="mean"), inputs)


PACKAGES = ("liger-kernel", "cut-cross-entropy", "quack-kernels")
"""Whose versions a record names."""
LIGER = "liger_kernel.transformers.functional"

LOGITS = (
    Implementation("xent.torch", "ours", calls_of("xent.torch", "cross_entropy", "xent"), "`xent.torch.cross_entropy`"),
    Implementation("F.cross_entropy", "peer", lambda inputs: loss_calls(_eager(), inputs), "torch, as it is"),
    Implementation("F.cross_entropy, compiled", "peer", _compiled(_eager), "`torch.compile`, compiled beforehand"),
    Implementation(
        "Liger",
        "peer",
        on_gpu_only(calls_of(LIGER, "liger_cross_entropy", "liger-kernel")),
        "`liger_cross_entropy`; its gradient overwrites the logits",
        overwrites=True,
    ),
    Implementation("quack", "peer", on_gpu_only(_quack), "`quack.cross_entropy`"),
    Implementation("copy", "limit", _copy, "`Tensor.copy_` of the logits"),
)
LINEAR = (
    Implementation(
        "xent.torch",
        "ours",
        calls_of("xent.torch", "linear_cross_entropy", "xent"),
        "`xent.torch.linear_cross_entropy`",
    ),
    Implementation(
        "F.cross_entropy", "peer", lambda inputs: loss_calls(_eager_linear, inputs), "of `F.linear`, as it is"
    ),
    Implementation("compiled", "peer", _compiled(lambda: _eager_linear), "the same under `torch.compile`"),
    Implementation(
        "Liger",
        "peer",
        on_gpu_only(calls_of(LIGER, "liger_fused_linear_cross_entropy", "liger-kernel")),
        "`liger_fused_linear_cross_entropy`",
    ),
    Implementation("CCE", "peer", on_gpu_only(_cce), "`cut_cross_entropy.linear_cross_entropy`"),
    Implementation("products", "limit", _products, "the three matrix products, each in one piece"),
)
"""In the order of the tables."""
