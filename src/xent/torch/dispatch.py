"""`Operator`: a computation of ours as torch sees it where it looks through a call.

For `torch.compile`, export, fake tensors, tensor subclasses and dispatch modes an operator of the namespace `xent`
appears in the graph. `torch.func` and batched gradients want an autograd function with a batching rule: `Transformed`
is that function, for every operator. Forward mode has formulas (xent/backends/formula.py), since no kernel makes
tangents.

An operator takes tensors, numbers and texts only, so the options travel as `Objective.to_text`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from xent.torch._torch_private import count_flops, is_transformed, is_watched

Output = Tensor | tuple[Tensor, ...]


class Operator:
    """A custom operator with its fake implementation, its gradient and its batching rule.

    Parameters
    ----------
    name : within the namespace `xent`.
    run : what computes, on ordinary tensors; its annotations are the operator's schema.
    fake : the same on tensors without numbers.
    save, differentiate : `setup_context` and `backward`, as of an autograd function.
    by_rows : which arguments have the rows on their first axis, as the results have: a batch of problems is then one
        problem with more rows. Where another argument is batched, or without any, problems are computed one by one.
    products : the floating point operations of the matrix products, given the arguments, for `FlopCounterMode`.
    """

    def __init__(
        self,
        name: str,
        run: Callable[..., Any],
        fake: Callable[..., Any],
        save: Callable[..., None],
        differentiate: Callable[..., Any],
        by_rows: Sequence[int] = (),
        products: Callable[..., int] | None = None,
    ) -> None:
        self.operator = torch.library.custom_op(f"xent::{name}", run, mutates_args=())
        self.operator.register_fake(fake)
        self.operator.register_autograd(differentiate, setup_context=save)
        self.run, self.save, self.differentiate, self.by_rows = run, save, differentiate, frozenset(by_rows)
        self.products = products

    @property
    def overload(self) -> Any:
        """What torch has in its graphs."""
        return self.operator._opoverload

    def __call__(self, *arguments: Any) -> Any:
        """Compute."""
        if is_transformed():
            return Transformed.apply(self, *arguments)  # type: ignore[no-untyped-call]
        if self.products is not None and not torch.compiler.is_compiling():
            count_flops(self.overload.overloadpacket, self.products)
        return self.operator(*arguments)

    def differentiable(self, *arguments: Any) -> Any:
        """Compute, of ordinary tensors, what can be differentiated: without the detours of torch's own operators."""
        return Transformed.apply(self, *arguments)  # type: ignore[no-untyped-call]

    def batched(self, size: int, axes: Sequence[Any], arguments: Sequence[Any]) -> Output:
        """The results of `size` problems, along a new first axis. `axes` says where the batch is; None: nowhere."""
        where = [axis if isinstance(value, Tensor) else None for axis, value in zip(axes, arguments, strict=True)]
        if all(i in self.by_rows for i, axis in enumerate(where) if axis is not None):
            rows = [_with_rows(v, where[i], size) if i in self.by_rows else v for i, v in enumerate(arguments)]
            return _each(self(*rows), lambda result: result.reshape(size, len(result) // size, *result.shape[1:]))
        found = [
            self(*(v if axis is None else v.select(axis, i) for v, axis in zip(arguments, where, strict=True)))
            for i in range(size)
        ]
        if isinstance(found[0], Tensor):
            return torch.stack(found)
        return tuple(torch.stack(results) for results in zip(*found, strict=True))


class Transformed(torch.autograd.Function):
    """An operator under `torch.func`. Of (operator, its arguments)."""

    @staticmethod
    def forward(operator: Operator, *arguments: Any) -> Any:
        tensors = (value for value in arguments if isinstance(value, Tensor))
        return operator(*arguments) if is_watched(*tensors) else operator.run(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.operator = inputs[0]
        ctx.operator.save(_Shifted(ctx), inputs[1:], output)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> tuple[Any, ...]:
        found = ctx.operator.differentiate(_Shifted(ctx), *upstream)
        return (None, *found) if isinstance(found, tuple) else (None, found)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], operator: Operator, *arguments: Any) -> tuple[Any, Any]:
        found = operator.batched(info.batch_size, in_dims[1:], arguments)
        return found, 0 if isinstance(found, Tensor) else (0,) * len(found)


class _Shifted:
    """The context of `Transformed` as an operator's own: without the operator among the arguments."""

    def __init__(self, ctx: Any) -> None:
        object.__setattr__(self, "_ctx", ctx)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._ctx, name)
        return value[1:] if name == "needs_input_grad" else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._ctx, name, value)


def _with_rows(value: Any, axis: int | None, size: int) -> Any:
    """The rows of all problems on one axis; a tensor that is the same in all of them is repeated."""
    if not isinstance(value, Tensor):
        return value
    return (value.expand(size, *value.shape) if axis is None else value.movedim(axis, 0)).flatten(0, 1)


def _each(output: Any, change: Callable[[Tensor], Tensor]) -> Output:
    return change(output) if isinstance(output, Tensor) else tuple(change(tensor) for tensor in output)
