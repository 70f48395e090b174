"""Who is measured on a GPU. Everyone gets the same tensors, makes the mean loss, and its gradients in new memory.

Who writes its gradient over the logits (`overwrites`) gets a copy of them beforehand, and works on what it left there
in later rounds: its times do not depend on the numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from xent.benchmark.peers import NotAvailableError

if TYPE_CHECKING:
    from torch import Tensor

ON_CHIP = "xent.torch, logits on chip"

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
        """The same numbers in other memory."""
        return Inputs(self.x.detach().clone().requires_grad_(), self.weight, self.target)


@dataclass(frozen=True)
class Contestant:
    name: str
    role: Literal["ours", "peer", "limit"]
    prepare: Callable[[Inputs], Calls]
    note: str
    overwrites: bool = False

    def described(self) -> dict[str, str]:
        return {"name": self.name, "role": self.role, "note": self.note}


def loss_calls(loss: Loss, inputs: Inputs) -> Calls:
    """Forward alone, and forward with backward, of a loss that takes the variables and the labels."""
    import torch

    def forward() -> Tensor:
        with torch.no_grad():
            return loss(*inputs.variables, inputs.target)

    def forward_backward() -> tuple[Tensor, ...]:
        value = loss(*inputs.variables, inputs.target)
        return value.detach(), *torch.autograd.grad(value, inputs.variables)

    return {"forward": forward, "forward_backward": forward_backward}


def function(module: str, name: str, package: str) -> Loss:
    """A function of a package that may be missing."""
    try:
        found: Loss = getattr(import_module(module), name)
    except ImportError:
        raise NotAvailableError(f"{package} is not installed") from None
    except AttributeError:
        raise NotAvailableError(f"{module} has no {name}") from None
    return found


def calls_of(module: str, name: str, package: str) -> Callable[[Inputs], Calls]:
    """Prepare a loss of a package."""
    return lambda inputs: loss_calls(function(module, name, package), inputs)


def on_gpu_only(prepare: Callable[[Inputs], Calls]) -> Callable[[Inputs], Calls]:
    """For whom the interpreter is no place."""

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
    """Logits, gradient of the input, gradient of the weight: as large at once as they are."""
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


def _on_chip(inputs: Inputs) -> Calls:
    """The forward alone."""
    from xent.backends.gpu import on_chip
    from xent.torch import linear_cross_entropy

    def loss(*arguments: Tensor) -> Tensor:
        with on_chip.chosen():
            return linear_cross_entropy(*arguments)

    return {"forward": loss_calls(loss, inputs)["forward"]}


def _cce(inputs: Inputs) -> Calls:
    loss = function("cut_cross_entropy", "linear_cross_entropy", "cut-cross-entropy")
    return loss_calls(loss, inputs)


def _quack(inputs: Inputs) -> Calls:
    loss = function("quack.cross_entropy", "cross_entropy", "quack-kernels")
    return loss_calls(lambda x, target: loss(x, target, reduction="mean"), inputs)


LIGER = "liger_kernel.transformers.functional"

LOGITS = (
    Contestant("xent.torch", "ours", calls_of("xent.torch", "cross_entropy", "xent"), "`xent.torch.cross_entropy`"),
    Contestant("F.cross_entropy", "peer", lambda inputs: loss_calls(_eager(), inputs), "torch, as it is"),
    Contestant("F.cross_entropy, compiled", "peer", _compiled(_eager), "`torch.compile`, compiled beforehand"),
    Contestant(
        "Liger",
        "peer",
        on_gpu_only(calls_of(LIGER, "liger_cross_entropy", "liger-kernel")),
        "`liger_cross_entropy`; its gradient overwrites the logits",
        overwrites=True,
    ),
    Contestant("quack", "peer", on_gpu_only(_quack), "`quack.cross_entropy`"),
    Contestant("copy", "limit", _copy, "`Tensor.copy_` of the logits"),
)
LINEAR = (
    Contestant(
        "xent.torch",
        "ours",
        calls_of("xent.torch", "linear_cross_entropy", "xent"),
        "`xent.torch.linear_cross_entropy`",
    ),
    Contestant(ON_CHIP, "ours", _on_chip, "the same with `XENT_GPU_ON_CHIP=1`; forward only"),
    Contestant("F.cross_entropy", "peer", lambda inputs: loss_calls(_eager_linear, inputs), "of `F.linear`, as it is"),
    Contestant("compiled", "peer", _compiled(lambda: _eager_linear), "the same under `torch.compile`"),
    Contestant(
        "Liger",
        "peer",
        on_gpu_only(calls_of(LIGER, "liger_fused_linear_cross_entropy", "liger-kernel")),
        "`liger_fused_linear_cross_entropy`",
    ),
    Contestant("CCE", "peer", on_gpu_only(_cce), "`cut_cross_entropy.linear_cross_entropy`"),
    Contestant("products", "limit", _products, "the three matrix products, whole"),
)
"""In the order of the tables."""
