"""A small language model, and the comparison of a training step with the same step without deferred logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xent.torch.deferred import DeferredLinear, DeferredLogits, defer_logits, restore_logits

VOCABULARY, WIDTH = 1000, 32


class LanguageModel(nn.Module):
    """An embedding, a layer, and an output layer."""

    def __init__(self, *, tied: bool = False, bias: bool = False, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.body = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=bias)
        if tied:
            self.head.weight = self.words.weight
        self.to(dtype)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.body(self.words(ids)).tanh()

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.hidden(ids))


def token_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def is_made(logits: Tensor) -> bool:
    assert type(logits) is DeferredLogits
    return logits.lazy.whole.is_made


Step = Callable[[Any], Tensor]
Result = dict[str, Tensor]


def trained(model: nn.Module, step: Step) -> Result:
    """The loss of a step and the gradient of every parameter that has one, in float64."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(2)
    loss = step(model)
    loss.backward()
    gradients = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach().double(), **gradients}


def exact(model: nn.Module, step: Step, head: nn.Module) -> Result:
    """The same with the logits in float64, the rest of the model as it is."""

    def double(layer: nn.Linear, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            bias = None if layer.bias is None else layer.bias.double()
            return F.linear(inputs[0].double(), layer.weight.double(), bias)

    handle = head.register_forward_hook(double)
    try:
        return trained(model, step)
    finally:
        handle.remove()


def assert_close(found: Result, plain: Result, wanted: Result, unit: float) -> None:
    """The error of loss and gradients is at most twice that of the untouched model, and two roundings more: the
    untouched one may be right by luck where another rounds the logits and the result.
    """
    assert found.keys() == plain.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].isfinite().all(), name
        error, usual = (found[name] - value).norm(), (plain[name] - value).norm()
        assert error <= 2 * usual + 2 * unit * value.norm(), f"{name}: {error:.2e}, usual {usual:.2e}"


def assert_same_step(
    model: nn.Module, step: Step, name: str | None = "head", unit: float | None = None, **options: Any
) -> None:
    """A training step with deferred logits is the one without, to rounding; the model comes back restored."""
    plain = trained(model, step)
    defer_logits(model, name, **options)
    layers = [module for module in model.modules() if isinstance(module, DeferredLinear)]
    found = trained(model, step)
    restore_logits(model)
    wanted = exact(model, step, layers[0])
    assert_close(found, plain, wanted, unit or torch.finfo(next(model.parameters()).dtype).eps)
