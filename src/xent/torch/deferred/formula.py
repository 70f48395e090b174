"""What deferred logits are made of, and the losses that need no logits.

A `Formula` says what the logits are in terms of rows: ``softcap * tanh(scale * (x @ w.T + b))``, or without the tanh,
and with a sum of products where an adapter adds its own to that of the layer. A `Whole` is one tensor of logits that
was not made yet; a `Lazy` is a view of it, as torch's tensors are views of a storage. Made once, a whole serves all its
views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from xent.errors import ArgumentError, message
from xent.linear.sampling import GradientOption
from xent.torch._torch_private import has_saved_tensors_hooks, is_transformed, version_of


class Step(NamedTuple):
    """An operation to repeat on the real tensor, and whether it was recorded for gradients."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    graph: bool

    def __call__(self, *tensors: Tensor) -> Any:
        with torch.set_grad_enabled(self.graph):
            return self.function(*tensors, *self.args, **self.kwargs)


class Product(NamedTuple):
    """``scale * (input @ weight.T + bias)``, multiplied in `dtype`."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    scale: float
    versions: tuple[int, ...]

    @classmethod
    def of(cls, input: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Product:
        """The product of a linear layer."""
        return cls(input, weight, bias, dtype, 1.0, _versions(input, weight, bias))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Input, weight, and the bias if there is one."""
        return (self.input, self.weight) if self.bias is None else (self.input, self.weight, self.bias)

    def check(self) -> None:
        """Raise if what the logits depend on is no longer what it was."""
        if self.versions != _versions(*self.tensors):
            found = "the hidden state or the weight was changed in place after these logits were deferred"
            remedy = "Ask for their numbers before optimizer.step(), or keep logits.materialize() from before it"
            raise ArgumentError(message("DeferredLogits", "", found, remedy))
        if any(tensor.untyped_storage().size() == 0 < tensor.numel() for tensor in self.tensors):
            found = "the memory of the hidden state or the weight has been given back (a sharded head does that)"
            raise ArgumentError(
                message("DeferredLogits", "", found, "Compute the loss inside the module that owns both")
            )

    def of_rows(self, take: Callable[[Tensor], Tensor]) -> Product:
        """The product of some of the rows; they may be a copy, whose writes torch counts anew."""
        self.check()
        taken = take(self.input)
        rest = [tensor for tensor in (self.weight, self.bias) if tensor is not None]
        return self._replace(input=taken, versions=_versions(taken, *rest))

    def make(self, tensors: Sequence[Tensor] | None = None) -> Tensor:
        """The logits of the layer, as it makes them itself; of other tensors if given."""
        self.check()
        x, w, *b = (tensor.to(self.dtype) for tensor in tensors or self.tensors)
        return F.linear(x, w, b[0] if b else None)


def _versions(*tensors: Tensor | None) -> tuple[int, ...]:
    """How often each was written to."""
    return tuple(version_of(tensor) for tensor in tensors if tensor is not None)


@dataclass(frozen=True, eq=False)
class Formula:
    """``softcap * tanh(sum of products)``, or the sum of products alone where softcap is None, row by row."""

    products: tuple[Product, ...]
    workspace: int | str
    softcap: float | None = None
    gradient: GradientOption = "exact"
    """Of a loss, by the layer; and its threshold."""
    threshold: float | None = None

    def of_rows(self, take: Callable[[Tensor], Tensor]) -> Formula:
        """The formula of some of the rows, or of rows in another arrangement."""
        return replace(self, products=tuple(product.of_rows(take) for product in self.products))

    def scaled(self, factor: float) -> Formula | None:
        """The formula of logits times a number above 0; None for others, which no option stands for."""
        if not 0.0 < factor < math.inf:
            return None
        if self.softcap is not None:
            return replace(self, softcap=self.softcap * factor)
        return replace(self, products=tuple(p._replace(scale=p.scale * factor) for p in self.products))

    def softcapped(self) -> Formula | None:
        """The formula of tanh(logits). Not twice; nor with a bias, whose -inf a loss keeps and tanh does not."""
        if self.softcap is not None or any(product.bias is not None for product in self.products):
            return None
        return replace(self, softcap=1.0)

    def plus(self, other: Formula) -> Formula | None:
        """The formula of the sum of two tensors of logits."""
        if self.softcap is not None or other.softcap is not None:
            return None
        return replace(self, products=self.products + other.products)

    @property
    def dtype(self) -> torch.dtype:
        """In which the products are multiplied: the widest, where there are several."""
        dtype = self.products[0].dtype
        for product in self.products[1:]:
            dtype = torch.promote_types(dtype, product.dtype)
        return dtype

    def detached(self) -> Formula:
        """The same without gradients."""
        return replace(
            self,
            products=tuple(
                p._replace(
                    input=p.input.detach(), weight=p.weight.detach(), bias=None if p.bias is None else p.bias.detach()
                )
                for p in self.products
            ),
        )

    def call(self, function: Callable[..., Any], target: Tensor, options: dict[str, Any]) -> Any:
        """Call a loss of a linear layer: `linear_cross_entropy` or `linear_statistics`."""
        for product in self.products:
            product.check()
        x, w, b, scale = self._layer()
        options = {**options, "linear_bias": b, "workspace": self.workspace}
        given = options.pop("logit_scale", 1.0)  # or a tensor, which gets a gradient
        if self.softcap is not None:
            options["softcap"] = self.softcap * given
            scale *= self.softcap
        is_autocast = x.dtype != self.dtype or w.dtype != self.dtype  # in the layer, whatever its state is by now
        with torch.autocast(x.device.type, dtype=self.dtype if is_autocast else None, enabled=is_autocast):
            return function(x, w, target, logit_scale=scale * given, **options)

    def _layer(self) -> tuple[Tensor, Tensor, Tensor | None, float]:
        """One linear layer with the same logits, and their scale: a sum of products is a product of longer rows."""
        if len(self.products) == 1:
            only = self.products[0]
            return only.input, only.weight, only.bias, only.scale
        dtype = self.dtype
        x = torch.cat([product.input.to(dtype) * product.scale for product in self.products], dim=-1)
        w = torch.cat([product.weight.to(dtype) for product in self.products], dim=1)
        biases = [product.bias.to(dtype) * product.scale for product in self.products if product.bias is not None]
        return x, w, torch.stack(biases).sum(0) if biases else None, 1.0


class Whole:
    """Logits that have not been made: a product, or what a step makes of other deferred logits."""

    def __init__(self, product: Product | None, sources: tuple[Lazy, ...], step: Step | None, graph: bool) -> None:
        self.product, self.sources, self.step, self.graph = product, sources, step, graph
        self.made: Tensor | None = None
        self.writes = 0
        """How often the logits were written to; a copy made before is not concerned by that."""
        self.source_writes = tuple(source.whole.writes for source in sources)
        self.has_loss = False
        """Whether a loss was computed without these logits, so that they will see no gradient of it."""
        self.is_watched = False
        """Whether a hook waits for the gradient of these logits: it is on the logits that were made."""

    @property
    def is_made(self) -> bool:
        """Whether the logits, or those that they come from, are there."""
        return self.made is not None or any(source.whole.is_made for source, _ in self._unwritten())

    @property
    def is_ordinary(self) -> bool:
        """Whether operations go on with the logits that were made.

        Not where a loss did without them before: a checkpoint that repeats the loss has to find the same operations,
        also when somebody has looked at the logits in the meantime.
        """
        return self.is_made and (self.writes > 0 or not self._had_loss())

    def make(self) -> Tensor:
        """The logits, made when first asked for; inside of a transform, whose tensors end with it, each time."""
        made = self.made
        if made is None:
            has_hooks = self.graph and not is_transformed() and has_saved_tensors_hooks()
            with saved_tensors_hooks(_packed, _unpacked) if has_hooks else nullcontext():
                made = self.computed(lambda product: product.make(), cached=True)
            self.made = None if is_transformed() else made
        return made

    def write(self) -> None:
        """Somebody is about to write to the logits."""
        if is_transformed() and self.made is None:
            found = "logits that torch.func transforms see for the first time are written to"
            raise ArgumentError(message("DeferredLogits", "", found, "Call logits.materialize() before the transform"))
        self.writes += 1

    def watch(self, *, later: bool) -> None:
        """Somebody asks for the gradient of the logits, from now on or in `later` backward passes."""
        if self.has_loss:
            found = "a loss was computed without these logits, so that they have no gradient of it"
            raise ArgumentError(message("DeferredLogits", "", found, "Call logits.materialize() before the loss"))
        self.is_watched |= later

    def check_unwatched(self) -> None:
        """Raise if a gradient passes by a hook."""
        if self.is_watched:
            found = "an autograd function took logits with a gradient hook (or retain_grad), which would not be called"
            raise ArgumentError(message("DeferredLogits", "", found, "Give the function logits.materialize()"))
        for source in self.sources:
            source.whole.check_unwatched()

    def computed(self, make: Callable[[Product], Tensor], *, cached: bool) -> Tensor:
        """The logits as this function makes products; with `cached` from those that are or will be kept."""
        if self.product is not None:
            with torch.set_grad_enabled(self.graph):
                return make(self.product)
        assert self.step is not None
        kept = {id(source) for source, _ in self._unwritten()} if cached else set()
        tensors = [source.make() if id(source) in kept else source.computed(make) for source in self.sources]
        made: Tensor = self.step(*tensors)
        return made

    def products(self) -> list[Product]:
        """Of all layers that these logits come from."""
        if self.product is not None:
            return [self.product]
        return [product for source in self.sources for product in source.whole.products()]

    def note_loss(self) -> None:
        """Remember, here and in the sources, that a loss was computed without the logits."""
        self.has_loss = True
        for source in self.sources:
            source.whole.note_loss()

    def _had_loss(self) -> bool:
        return self.has_loss or any(source.whole._had_loss() for source, _ in self._unwritten())

    def _unwritten(self) -> list[tuple[Lazy, int]]:
        """The sources that are still what they were when this copy was made of them."""
        pairs = zip(self.sources, self.source_writes, strict=False)
        return [(source, writes) for source, writes in pairs if source.whole.writes == writes]


def _packed(tensor: Tensor) -> tuple[Tensor, int]:
    """What an operation that makes logits saves for its gradient: as if it had been done where they were deferred.

    Hooks that are in force by now, such as those of a checkpoint, are not to see it: they would miss it next time.
    """
    return tensor.detach(), version_of(tensor)


def _unpacked(saved: tuple[Tensor, int]) -> Tensor:
    tensor, version = saved
    if version_of(tensor) != version:
        found = "the hidden state or the weight was changed in place after these logits were made"
        raise ArgumentError(message("DeferredLogits", "", found, "Call backward before optimizer.step()"))
    return tensor


class Lazy:
    """A view of a whole: how to take it, its formula, and an empty twin with its shape, strides and dtype."""

    def __init__(self, whole: Whole, views: tuple[Step, ...], formula: Formula, twin: Tensor, graph: bool) -> None:
        self.whole, self.views, self.formula, self.twin, self.graph = whole, views, formula, twin, graph
        self._real: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the logits will be."""
        return self.formula.products[0].input.device

    def make(self) -> Tensor:
        """The real tensor, the same at every call, except inside of transforms."""
        real = self._real
        if real is None:
            with torch.autocast(self.device.type, enabled=False):
                real = self._viewed(self.whole.make())
            self._real = None if is_transformed() else real
        return real

    def computed(self, make: Callable[[Product], Tensor]) -> Tensor:
        """The logits without those that are kept: what they were before anybody wrote to them."""
        with torch.autocast(self.device.type, enabled=False):
            return self._viewed(self.whole.computed(make, cached=False))

    def _viewed(self, tensor: Tensor) -> Tensor:
        for view in self.views:
            tensor = view(tensor)
        return tensor

    def viewed(self, step: Step, formula: Formula, twin: Tensor) -> Lazy:
        """A view of this view."""
        return Lazy(self.whole, (*self.views, step), formula, twin, self.graph and step.graph)

    def copied(self, step: Step, formula: Formula, twin: Tensor, *others: Lazy) -> Lazy:
        """A tensor of its own, which the step makes of this one (and others)."""
        sources = (self, *others)
        graph = step.graph and any(source.graph for source in sources)
        return Lazy(Whole(None, sources, step._replace(graph=graph), graph), (), formula, twin, graph)
