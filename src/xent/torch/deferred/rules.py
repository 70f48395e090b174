"""The operations that leave deferred logits deferred, and the losses that do without them.

A rule gets a function of torch and its arguments, and returns `NotImplemented` if the logits have to be made for them.
Shapes, strides and dtypes are left to torch: each rule asks it what the operation makes of the empty twin.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_iter

from xent.torch._torch_private import legacy_reduction, share_memory
from xent.torch.deferred.formula import Formula, Lazy, Step
from xent.torch.deferred.tensor import RULES, DeferredLogits, Rule, attached, named
from xent.torch.functional import cross_entropy, layout_of, objective_of, statistics
from xent.torch.linear import linear_cross_entropy, linear_statistics


def _only(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Lazy | None:
    """The first argument, if it alone is deferred."""
    rest = tree_iter((args[1:], kwargs))
    if not args or not isinstance(args[0], DeferredLogits) or any(isinstance(leaf, DeferredLogits) for leaf in rest):
        return None
    return args[0].lazy


def _derived(lazy: Lazy, step: Step, formula: Formula, twin: Tensor) -> Tensor:
    """What a step makes of the logits: a view if the twins share memory, else a copy."""
    return attached((lazy.viewed if share_memory(twin, lazy.twin) else lazy.copied)(step, formula, twin))


def _rearranged(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Operations that keep the order of the numbers: rows stay rows if the last axis still has the classes."""
    lazy = _only(args, kwargs)
    if lazy is None:
        return NotImplemented
    twin = func(lazy.twin, *args[1:], **kwargs)
    if not isinstance(twin, Tensor) or twin.ndim == 0 or twin.dtype != lazy.twin.dtype:
        return NotImplemented
    if twin.shape[-1] != lazy.twin.shape[-1]:
        return NotImplemented
    formula = lazy.formula.of_rows(lambda x: x.reshape(*twin.shape[:-1], x.shape[-1]))
    return _derived(lazy, Step(func, args[1:], kwargs, torch.is_grad_enabled()), formula, twin)


def _indexed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``logits[index]`` where the index takes rows and leaves the last axis alone."""
    lazy = _only(args, kwargs)
    index = None if lazy is None else _row_index(args[1], lazy.twin.ndim)
    if lazy is None or index is None:
        return NotImplemented
    formula = lazy.formula.of_rows(lambda x: x[index])
    if any(isinstance(part, Tensor | list) for part in index):  # the twin has no numbers to look up
        shape = (*formula.products[0].input.shape[:-1], lazy.twin.shape[-1])
        twin = torch.empty(shape, dtype=lazy.twin.dtype, device="meta")
    else:
        twin = lazy.twin[index]
    return _derived(lazy, Step(operator.getitem, (index,), {}, torch.is_grad_enabled()), formula, twin)


def _row_index(index: Any, ndim: int) -> tuple[Any, ...] | None:
    """The index with every axis spelled out; None if it touches the last one, or is of an unusual kind."""
    parts = list(index) if isinstance(index, tuple) else [index]
    axes = 0
    for part in parts:
        if isinstance(part, Tensor):
            axes += part.ndim if part.dtype in (torch.bool, torch.uint8) else 1
        elif isinstance(part, slice) or (isinstance(part, int) and not isinstance(part, bool)) or _is_ints(part):
            axes += 1
        elif part is not None and part is not Ellipsis:
            return None
    dots = [position for position, part in enumerate(parts) if part is Ellipsis]
    if len(dots) > 1 or axes > ndim:
        return None
    where = dots[0] if dots else len(parts)
    parts[where : where + 1] = [slice(None)] * (ndim - axes)
    is_whole = isinstance(parts[-1], slice) and parts[-1] == slice(None) if parts else False
    return tuple(parts) if is_whole else None


def _is_ints(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in part)


def _taken(position: int, default: int | None = None) -> Rule:
    """Operations that take rows along the axis given by their argument `dim`, which is at this position."""

    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        lazy = _only(args, kwargs)
        dim = kwargs.get("dim", args[position] if len(args) > position else default)
        if lazy is None or not isinstance(dim, int) or not -lazy.twin.ndim <= dim < lazy.twin.ndim:
            return NotImplemented
        if dim % lazy.twin.ndim == lazy.twin.ndim - 1:
            return NotImplemented
        inputs = [_tuple(func(product.input, *args[1:], **kwargs)) for product in lazy.formula.products]
        made = func(lazy.twin, *args[1:], **kwargs)
        results = []
        for number, twin in enumerate(_tuple(made)):
            parts = iter(parts[number] for parts in inputs)
            formula = lazy.formula.of_rows(lambda _, parts=parts: next(parts))  # type: ignore[misc]
            pick = _picked(func, number) if isinstance(made, tuple | list) else func
            results.append(_derived(lazy, Step(pick, args[1:], kwargs, torch.is_grad_enabled()), formula, twin))
        return tuple(results) if isinstance(made, tuple | list) else results[0]

    return rule


def _tuple(result: Any) -> tuple[Tensor, ...]:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


def _picked(func: Any, number: int) -> Callable[..., Any]:
    return lambda *args, **kwargs: func(*args, **kwargs)[number]


def _cast(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Another floating dtype on the same device, and copies as they are."""
    lazy = _only(args, kwargs)
    rest = None if lazy is None else _without_device(args[1:], kwargs, lazy.device)
    if lazy is None or rest is None:
        return NotImplemented
    twin = func(lazy.twin, *rest[0], **rest[1]) if rest[0] or rest[1] or func not in TO else lazy.twin
    if twin is lazy.twin:
        return args[0]
    if not isinstance(twin, Tensor) or not twin.is_floating_point() or twin.device.type != "meta":
        return NotImplemented
    return _derived(lazy, Step(func, *rest, torch.is_grad_enabled()), lazy.formula, twin)


def _without_device(
    args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments of a cast without the device; None if it names another one."""
    kwargs = dict(kwargs)
    other = kwargs.pop("other", None)
    args = args if other is None else (other, *args)
    named = [kwargs.pop("device", None)]
    if args and isinstance(args[0], Tensor):
        named.append(args[0].device)
        args = (args[0].dtype, *args[1:])
    elif args and isinstance(args[0], str | torch.device):
        named.append(args[0])
        args = args[1:]
    if any(isinstance(name, int) or (name is not None and torch.device(name) != device) for name in named):
        return None
    is_usual = all(isinstance(argument, torch.dtype) for argument in args[:1]) and kwargs.get("memory_format") is None
    return (args, kwargs) if is_usual else None


def _detached(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lazy = _only(args, kwargs)
    if lazy is None:
        return NotImplemented
    return attached(lazy.viewed(Step(func, (), {}, False), lazy.formula, lazy.twin.detach()))


def _scaled(is_division: bool) -> Rule:
    def rule(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        numbers = [
            argument for argument in args if isinstance(argument, int | float) and not isinstance(argument, bool)
        ]
        if kwargs or len(args) != 2 or len(numbers) != 1 or (is_division and args[0] is numbers[0]):
            return NotImplemented
        (logits,) = (argument for argument in args if argument is not numbers[0])
        factor = float(numbers[0])
        formula = logits.lazy.formula.scaled((1.0 / factor if factor else 0.0) if is_division else factor)
        return NotImplemented if formula is None else _pointwise(func, logits.lazy, (numbers[0],), formula)

    return rule


def _softcapped(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lazy = _only(args, kwargs)
    formula = None if lazy is None or kwargs else lazy.formula.softcapped()
    return NotImplemented if lazy is None or formula is None else _pointwise(func, lazy, (), formula)


def _pointwise(func: Any, lazy: Lazy, rest: tuple[Any, ...], formula: Formula) -> Tensor:
    twin = torch.empty(lazy.twin.shape, dtype=lazy.twin.dtype, device="meta")
    return attached(lazy.copied(Step(func, rest, {}, torch.is_grad_enabled()), formula, twin))


def _sum(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The sum of two deferred logits: an adapter's and its layer's."""
    if kwargs or len(args) != 2 or not all(isinstance(argument, DeferredLogits) for argument in args):
        return NotImplemented
    first, second = (argument.lazy for argument in args)
    formula = first.formula.plus(second.formula)
    if formula is None or first.twin.shape != second.twin.shape or first.device != second.device:
        return NotImplemented
    twin = first.twin + second.twin
    return attached(first.copied(Step(func, (), {}, torch.is_grad_enabled()), formula, twin, second))


# ---------------------------------------------------------------------------------------------------------- the losses


def _fused(lazy: Lazy, function: Callable[..., Any], target: Tensor, options: dict[str, Any]) -> Any:
    """A loss of the linear layer; NotImplemented where it would not be the loss of these logits."""
    formula = lazy.formula
    is_capped_twice = formula.softcap is not None and options.get("softcap") is not None
    is_learned = formula.softcap is not None and isinstance(options.get("logit_scale"), Tensor)
    is_narrow = lazy.twin.dtype == torch.float64 and formula.dtype != torch.float64
    if lazy.twin.ndim > 2 or is_capped_twice or is_learned or is_narrow or isinstance(target, DeferredLogits):
        return NotImplemented
    if lazy.graph and torch.is_grad_enabled():
        lazy.whole.note_loss()
    formula = formula if lazy.graph else formula.detached()
    if function is linear_cross_entropy:
        options = {**options, "gradient": formula.gradient, "threshold": formula.threshold}
    if options.get("reduction") == "sum" and formula.products[0].input.element_size() == 2:
        # A sum is about to be divided, mostly by a number of tokens. 16-bit gradients that are made with the loss would
        # be made anew for that; losses of rows make theirs when the divisor is known.
        losses = formula.call(function, target, {**options, "reduction": "none"})
        return losses.sum(dtype=torch.float64).to(losses.dtype)
    return formula.call(function, target, options)


def _torch_cross_entropy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.nn.functional.cross_entropy`; its loss has the dtype of the logits, but float32 under autocast."""

    def rule(
        input: Any, target: Any, weight: Tensor | None = None, size_average: bool | None = None,
        ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
    ) -> Any:  # fmt: skip
        if not isinstance(input, DeferredLogits) or size_average is not None or reduce is not None:
            return NotImplemented
        options: dict[str, Any] = {"weight": weight, "ignore_index": ignore_index, "reduction": reduction}
        options["label_smoothing"] = label_smoothing
        lazy = input.lazy
        loss = _fused(lazy, linear_cross_entropy, target, options)
        is_wide = lazy.twin.dtype == torch.float64 or torch.is_autocast_enabled(lazy.device.type)
        return loss if loss is NotImplemented or is_wide else loss.to(lazy.twin.dtype)

    return rule(*args, **kwargs)


def _cross_entropy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`xent.torch.cross_entropy`."""

    def rule(
        input: Any, target: Any, weight: Tensor | None, *,
        check: bool, size_average: bool | None, reduce: bool | None, sample_weight: Tensor | None, **options: Any,
    ) -> Any:  # fmt: skip
        if not isinstance(input, DeferredLogits):
            return NotImplemented
        if size_average is not None or reduce is not None:
            options["reduction"] = legacy_reduction(size_average, reduce)
        objective, _ = objective_of("cross_entropy", **options)
        place = input.lazy.device
        layout_of("cross_entropy", input.lazy.twin, target, weight, objective, check=check, place=place)
        options |= {"weight": weight, "sample_weight": sample_weight}
        return _fused(input.lazy, linear_cross_entropy, target, options)

    return rule(*args, **kwargs)


def _statistics(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`xent.torch.statistics`."""

    def rule(input: Any, target: Any, *, check: bool, **options: Any) -> Any:
        if not isinstance(input, DeferredLogits):
            return NotImplemented
        objective, _ = objective_of("statistics", reduction="none", **options)
        layout_of("statistics", input.lazy.twin, target, None, objective, check=check, place=input.lazy.device)
        return _fused(input.lazy, linear_statistics, target, options)

    return rule(*args, **kwargs)


# ----------------------------------------------------------------------------------------------------------- the table

TO = {Tensor.to}

RULES |= {
    **dict.fromkeys(named("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as"), _rearranged),
    Tensor.__getitem__: _indexed,
    **dict.fromkeys(named("select narrow index_select"), _taken(1)),
    **dict.fromkeys(named("unbind"), _taken(1, 0)),
    **dict.fromkeys(named("split chunk"), _taken(2, 0)),
    **dict.fromkeys(named("to float half bfloat16 double contiguous clone", places=(Tensor,)), _cast),
    torch.clone: _cast,
    **dict.fromkeys(named("detach"), _detached),
    **dict.fromkeys(named("mul multiply __mul__ __rmul__"), _scaled(is_division=False)),
    **dict.fromkeys(named("div divide true_divide __truediv__ __div__"), _scaled(is_division=True)),
    **dict.fromkeys(named("tanh"), _softcapped),
    **dict.fromkeys(named("add __add__ __radd__"), _sum),
    F.cross_entropy: _torch_cross_entropy,
    cross_entropy: _cross_entropy,
    statistics: _statistics,
}
