"""The contrastive loss of pairs as an operator (dispatch.py), its gradient, and the formula that torch sees through.

The operators return one loss for each pair, and torch's own operations reduce them. `saved` holds the four numbers of
`xent.linear.contrast.Contrast` for each pair. The formula holds the similarities, for second derivatives and tangents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from xent.backends.choice import choose_linear
from xent.backends.formula import FORMULA, compute_dtype
from xent.errors import ShapeError, message
from xent.linear.contrast import Contrast, sides
from xent.linear.driver import Layer, Wanted
from xent.objective import Objective
from xent.torch.dispatch import Operator
from xent.torch.rows import LinearRows, check_tensors

Two = tuple[Tensor, Tensor]
ROWS = Objective(reduction="none")
NAME = "contrastive_loss"


def check_pairs(a: Tensor, b: Tensor) -> None:
    """Raise ShapeError unless both are matrices of one shape, DTypeError unless they are tensors."""
    check_tensors(NAME, a=a, b=b)
    if a.ndim != 2 or a.shape != b.shape:
        found = f"found shapes {tuple(a.shape)} and {tuple(b.shape)}"
        raise ShapeError(message(NAME, "b", found, "Pass two tensors (pairs, features), row i of both being a pair"))


def contrastive_pairs(a: Tensor, b: Tensor, logit_scale: float, workspace: int, dtype: torch.dtype) -> Tensor:
    """The loss of each pair, in both directions."""
    loss: Tensor = LOSS(a, b, logit_scale, workspace, dtype)[0]
    return loss


def contrastive_gradients(
    upstream: Tensor, tensors: Sequence[Tensor], parts: tuple[float, int, torch.dtype], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The wanted gradients of sum(upstream * loss) by `a` and `b`, which torch can differentiate and batch.

    `tensors` are `a`, `b` and `saved`, `parts` logit_scale, workspace and dtype.
    """
    made = LOSS_BACKWARD(upstream, *tensors, *parts, list(wanted))
    return [gradient if want else None for gradient, want in zip(made, wanted, strict=True)]


def layer_of(a: Tensor, b: Tensor, workspace: int, dtype: torch.dtype) -> Layer:
    """The pairs as a layer with the input `a` and the weight `b`, whose labels are the positives.

    The gradient by `b` is a sum over rows in float32 at least.
    """
    labels = torch.arange(len(a), device=a.device)
    own = LinearRows(a.detach(), b.detach(), None, labels, None).to(dtype)
    return Layer(NAME, own.input, own.weight, None, labels, compute_dtype(dtype), workspace)


def losses_of(contrast: Contrast, dtype: torch.dtype) -> Tensor:
    """The loss of each pair: half of each direction."""
    loss: Tensor = (contrast.row_loss + contrast.column_loss) / 2
    return loss.to(compute_dtype(dtype))


def formula(a: Tensor, b: Tensor, logit_scale: Any, dtype: torch.dtype) -> Tensor:
    """The loss of each pair by operations of torch, which hold the similarities."""
    z, labels = _similarities(a, b, logit_scale, dtype)
    loss: Tensor = (FORMULA.forward(z, labels, ROWS)[0] + FORMULA.forward(z.T, labels, ROWS)[0]) / 2
    return loss


def explicit_gradients(a: Tensor, b: Tensor, upstream: Tensor, logit_scale: float, dtype: torch.dtype) -> Two:
    """The gradients of sum(upstream * loss), to be differentiated again."""
    z, labels = _similarities(a, b, logit_scale, dtype)
    scale = upstream * (logit_scale / 2)
    dz = FORMULA.backward(z, labels, None, scale, ROWS) + FORMULA.backward(z.T, labels, None, scale, ROWS).T
    return (dz @ b.to(dz.dtype)).to(a.dtype), (dz.T @ a.to(dz.dtype)).to(b.dtype)


def _similarities(a: Tensor, b: Tensor, logit_scale: Any, dtype: torch.dtype) -> Two:
    z = F.linear(a.to(dtype), b.to(dtype))
    return z.to(compute_dtype(dtype)) * logit_scale, torch.arange(a.shape[0], device=a.device)


def _loss(a: Tensor, b: Tensor, logit_scale: float, workspace: int, dtype: torch.dtype) -> Two:
    contrast = choose_linear(a.device).contrast(layer_of(a, b, workspace, dtype), logit_scale, symmetric=True)
    return losses_of(contrast, dtype), torch.stack(contrast)


def _fake_loss(a: Tensor, b: Tensor, logit_scale: float, workspace: int, dtype: torch.dtype) -> Two:
    rows = a.new_empty(a.shape[:1], dtype=compute_dtype(dtype))
    return rows, a.new_empty((4, a.shape[0]), dtype=torch.float64)


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: Two) -> None:
    a, b, *ctx.parts = inputs
    ctx.save_for_backward(a, b, output[1])
    ctx.mark_non_differentiable(output[1])


def _differentiate_loss(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
    wanted = [bool(want) for want in ctx.needs_input_grad[:2]]
    return *contrastive_gradients(upstream, ctx.saved_tensors, tuple(ctx.parts), wanted), None, None, None


def _loss_backward(
    upstream: Tensor, a: Tensor, b: Tensor, saved: Tensor,
    logit_scale: float, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Two:  # fmt: skip
    both = sides(Contrast(*saved), upstream.detach().double() / 2)
    layer, wants = layer_of(a, b, workspace, dtype), Wanted(wanted[0], wanted[1], bias=False)
    found = choose_linear(a.device).contrast_gradients(layer, logit_scale, *both, wants)
    empty = a.new_empty(0)
    da, db = (empty if made is None else made.to(like.dtype) for made, like in zip(found[:2], (a, b), strict=True))
    return da, db


def _fake_loss_backward(
    upstream: Tensor, a: Tensor, b: Tensor, saved: Tensor,
    logit_scale: float, workspace: int, dtype: torch.dtype, wanted: Sequence[bool],
) -> Two:  # fmt: skip
    form = torch.contiguous_format
    made = [torch.empty_like(t, memory_format=form) if want else a.new_empty(0) for t, want in zip((a, b), wanted)]  # noqa: B905
    return made[0], made[1]


def _save_loss_backward(ctx: Any, inputs: tuple[Any, ...], output: Two) -> None:
    upstream, a, b, _, ctx.scale, _, ctx.dtype, ctx.wanted = inputs
    ctx.save_for_backward(upstream, a, b)


def _differentiate_loss_backward(ctx: Any, *above: Tensor) -> tuple[Any, ...]:
    """By the formula, which holds the similarities."""
    upstream, a, b = ctx.saved_tensors

    def gradients(upstream: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        found = explicit_gradients(a, b, upstream, ctx.scale, ctx.dtype)
        return tuple(gradient for gradient, want in zip(found, ctx.wanted, strict=True) if want)

    differentiate = torch.func.vjp(gradients, upstream, a, b)[1]
    found = differentiate(tuple(t for t, want in zip(above, ctx.wanted, strict=True) if want))
    return *found, *[None] * 5


def _flops(products: int, a: Tensor) -> int:
    return 2 * products * a.numel() * len(a)


LOSS = Operator(
    "contrastive_loss", _loss, _fake_loss, _save_loss, _differentiate_loss, products=lambda *a: _flops(1, a[0])
)
LOSS_BACKWARD = Operator(
    "contrastive_loss_backward",
    _loss_backward,
    _fake_loss_backward,
    _save_loss_backward,
    _differentiate_loss_backward,
    products=lambda *a: _flops(1 + sum(a[7]), a[1]),
)
