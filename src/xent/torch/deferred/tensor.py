"""The tensor that `defer_logits` makes an output layer return, and which operations leave it unmade.

torch hands every operation on it to `__torch_function__`. A rule (deferred_operations.py) answers for what keeps rows
of logits rows of logits (views, slices, casts, copies, scaling, softcap) and for the losses. Everything else makes the
logits, once, and goes on with them as an ordinary tensor. What reaches torch by another way (an autograd function takes
its arguments without asking) arrives at `__torch_dispatch__`, and its gradient at `_Attached`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

from xent.errors import ArgumentError, message
from xent.torch._torch_private import outside_of_graphs, without_torch_function, wrapper_subclass
from xent.torch.deferred.formula import Formula, Lazy, Product, Whole


class DeferredLogits(Tensor):
    """Logits ``input @ linear_weight.T + linear_bias`` that are made when something asks for their numbers.

    They have the shape, dtype and device of the logits and can be used wherever those can. Losses are computed from
    hidden state and weight without them: `torch.nn.functional.cross_entropy`, `torch.nn.CrossEntropyLoss`,
    `xent.torch.cross_entropy` and `xent.torch.statistics`. They stay deferred under views and slices of rows, casts,
    copies, multiplication and division by a number, and one tanh (a softcap); every other operation makes them.
    """

    lazy: Lazy

    @staticmethod
    def __new__(cls, lazy: Lazy) -> DeferredLogits:
        logits: DeferredLogits = wrapper_subclass(cls, lazy.twin, lazy.device)
        logits.lazy = lazy
        return logits

    def materialize(self) -> Tensor:
        """Make the logits, once, and return them as an ordinary tensor; from then on this one is a name for it."""
        return self.lazy.make()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if torch.compiler.is_compiling():
            return _break_graph_at_deferred_logits(func, args, kwargs or {})
        return _answer(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable:
            found = f"{func} would write to logits that were not made"
            raise ArgumentError(message("DeferredLogits", "", found, "Call logits.materialize() first"))
        args, kwargs = tree_map_only(DeferredLogits, _values, (args, kwargs or {}))
        return func(*args, **kwargs)


def defer(
    input: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, workspace: int | str, *gradient: Any
) -> Tensor:
    """The logits of a linear layer, deferred. `gradient`: how that of a loss is made, and its threshold."""
    product = Product.of(input, weight, bias, dtype)
    graph = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in product.tensors)
    twin = torch.empty(*input.shape[:-1], len(weight), dtype=dtype, device="meta")
    return attached(
        Lazy(Whole(product, (), None, graph), (), Formula((product,), workspace, None, *gradient), twin, graph)
    )


class _Attached(torch.autograd.Function):
    """Puts deferred logits into the graph, for operations that `__torch_function__` does not see.

    Of (lazy, the tensors of its products). Losses computed without the logits do not come by here. Nothing is saved for
    backward: hooks on saved tensors (a checkpoint counts them) would see what depends on whether the logits were made.
    """

    @staticmethod
    def forward(ctx: Any, lazy: Lazy, *tensors: Tensor) -> Tensor:
        ctx.lazy = lazy
        return DeferredLogits(lazy)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        lazy, wanted = ctx.lazy, ctx.needs_input_grad[1:]
        lazy.whole.check_unwatched()
        tensors = [tensor for product in lazy.whole.products() for tensor in product.tensors]
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            # Apart from each other: where one was made from another (tied weights), no derivative contains the other's.
            apart = [tensor.view_as(tensor) if again else tensor.detach() for tensor in tensors]
            apart = [place if again else place.requires_grad_(want) for place, want in zip(apart, wanted, strict=True)]
            remaining = iter(apart)
            logits = lazy.computed(lambda product: product.make([next(remaining) for _ in product.tensors]))
        leaves = [place for place, want in zip(apart, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(logits, leaves, upstream, allow_unused=True, create_graph=again))
        return None, *(next(found) if want else None for want in wanted)


def attached(lazy: Lazy) -> Tensor:
    """The deferred tensor, in the graph if a gradient may be asked for."""
    tensors = [tensor for product in lazy.whole.products() for tensor in product.tensors] if lazy.graph else []
    if any(tensor.requires_grad for tensor in tensors):
        logits: Tensor = _Attached.apply(lazy, *tensors)  # type: ignore[no-untyped-call]
        return logits
    return DeferredLogits(lazy)


@outside_of_graphs
def _break_graph_at_deferred_logits(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compiled code breaks its graph where it meets deferred logits."""
    return _answer(func, args, kwargs)


def _answer(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """An operation of deferred logits: by its rule if there is one, else with the logits made."""
    found = _deferred((args, kwargs))
    if any(_has_foreign_gradient(logits) for logits in found):
        with without_torch_function():
            return func(*args, **kwargs)
    if not any(logits.lazy.whole.is_ordinary for logits in found):
        if func in METADATA:
            with without_torch_function():
                return func(*args, **kwargs)
        result = RULES[func](func, args, kwargs) if func in RULES else NotImplemented
        if result is not NotImplemented:
            return result
    if func in GRADIENT_QUERIES:
        asked = found if func is not torch.autograd.grad else _deferred((args[1:2], kwargs.get("inputs")))
        for logits in asked:
            logits.lazy.whole.watch(later=func is not torch.autograd.grad)
    if _writes(func, kwargs):
        for logits in found:
            logits.lazy.whole.write()
    args, kwargs = tree_map_only(DeferredLogits, DeferredLogits.materialize, (args, kwargs))
    return func(*args, **kwargs)


def _deferred(tree: Any) -> list[DeferredLogits]:
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, DeferredLogits)]


def _has_foreign_gradient(logits: DeferredLogits) -> bool:
    """Whether an autograd function returned these logits: their gradient is its business, and hidden from ours."""
    if logits.lazy.graph:
        return False
    with without_torch_function():
        return logits.requires_grad


def _values(logits: DeferredLogits) -> Tensor:
    """The numbers, where torch keeps the graph itself."""
    lazy = logits.lazy
    if lazy.whole.made is not None or not lazy.whole.graph:
        return lazy.make().detach()
    return lazy.computed(lambda product: product.make()).detach()


def _writes(func: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operation writes to its arguments, told by its name in torch."""
    name = getattr(func, "__name__", "")
    is_in_place = name.endswith("_") and not name.endswith("__")
    return is_in_place or name.startswith(("__i", "__set")) or kwargs.get("out") is not None


def named(names: str, *, places: Sequence[Any] = (Tensor, torch)) -> list[Any]:
    """The functions of these names, as torch hands them over: methods and functions of the module are not the same."""
    found = [getattr(place, name, None) for name in names.split() for place in places]
    return [function for function in found if function is not None]


def _properties(names: str) -> list[Any]:
    return [getattr(Tensor, name).__get__ for name in names.split()]


METADATA = {
    *named("size dim ndimension numel nelement stride storage_offset is_contiguous __len__ element_size get_device"),
    *named("is_floating_point is_complex is_inference"),
    *_properties("shape ndim dtype device layout requires_grad grad_fn is_leaf itemsize nbytes is_cuda is_cpu is_meta"),
    *_properties("is_sparse is_quantized is_mps is_xpu is_nested is_mkldnn _version output_nr"),
}
"""What is known without the numbers."""

GRADIENT_QUERIES = {*named("register_hook retain_grad", places=(Tensor,)), torch.autograd.grad}

Rule = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
RULES: dict[Any, Rule] = {}
"""What stays deferred, by the function of torch that is called; deferred_operations.py fills it."""
