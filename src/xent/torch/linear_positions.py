"""The loss of a linear layer over several positions: torch's K-dimensional loss, one position after another.

    logits[n, c, d] = linear_weight[c, d, :] @ input[n] + linear_bias[c, d],    d = (d_1, ..., d_K)

A position is a linear layer of its own over the same input, so that its losses need no logits of the others. All losses
are reduced together. A position makes its gradients in backward, from logits that are made once more: if they were made
with the loss, a gradient of the input would be kept for each position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xent.backends.formula import compute_dtype
from xent.checks import Layout, check_labels, checked_layout
from xent.errors import ObjectiveError, ShapeError, message
from xent.objective import TEXT, Objective
from xent.torch.functional import may_look_at
from xent.torch.reduced import reduced_by_formula
from xent.torch.rows import check_tensors, int64, is_soft, sample_weights

CHUNKING = ("batch_chunk_size", "chunking_method", "acc_policy", "acc_dtype")
"""What torch's options have beside `allow_retain_graph`, which is always so here."""


def over_positions(
    call: str,
    loss: Callable[..., Tensor],
    objective: Objective,
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    *,
    workspace: int | str,
    check: bool,
) -> Tensor:
    """The loss of input (N, features) and weight (C, d_1, ..., d_K, features); `loss` is that of one position."""
    how = layout_of(call, input, linear_weight, target, linear_bias)
    classes, features = how.classes, linear_weight.shape[-1]
    sizes = how.logits_shape[2:]
    positions = math.prod(sizes)
    if how.soft:
        y = target.reshape(len(input), classes, positions)
    else:
        y = int64(target.reshape(len(input), positions))
        if may_look_at(y):  # by a position's own check the error would name the row alone
            check_labels(call, y.reshape(target.shape), classes, objective.ignore_index)
    weights, class_weight = sample_weights(call, sample_weight, weight, y, how, objective)
    w = linear_weight.reshape(classes, positions, features)
    b = [None] * positions if linear_bias is None else linear_bias.reshape(classes, positions).unbind(1)
    plain = objective.of_rows
    options = {name: getattr(plain, name) for name in TEXT} | {"workspace": workspace, "check": check}
    options["weight"] = class_weight
    # unbind puts the gradients together once; the gradient of an index is a whole weight of zeros for each position.
    parts = zip(w.unbind(1), y.unbind(-1), b, strict=True)
    losses = [loss(input, w_d, y_d, linear_bias=b_d, **options) for w_d, y_d, b_d in parts]
    together = torch.stack(losses, dim=1) if losses else _nothing(input, w, linear_bias, weight, target)
    found = reduced_by_formula(together, y, class_weight, objective, weights)
    return found.reshape(len(input), *sizes) if objective.reduction == "none" else found


def _nothing(input: Tensor, linear_weight: Tensor, *others: Tensor | None) -> Tensor:
    """The losses (N, 0) of no positions, such that all gradients are zeros."""
    nothing = F.linear(input, linear_weight.flatten(0, 1)).to(compute_dtype(input.dtype))
    for tensor in others:
        if tensor is not None and tensor.is_floating_point():
            nothing = nothing + tensor.sum().to(nothing.dtype)
    return nothing


def layout_of(call: str, input: Tensor, linear_weight: Tensor, target: Tensor, linear_bias: Tensor | None) -> Layout:
    """Check types and shapes; return how the logits (N, C, d_1, ..., d_K) and the target lie."""
    check_tensors(call, input=input, linear_weight=linear_weight, linear_bias=linear_bias, target=target)
    shape = tuple(linear_weight.shape)
    if input.ndim != 2:
        found = f"found shape {tuple(input.shape)} for a linear_weight of shape {shape}"
        remedy = "Pass (N, features); of more axes flatten all but the last, with those of the target"
        raise ShapeError(message(call, "input", found, remedy))
    if input.shape[1] != shape[-1]:
        found = f"found shape {shape} for an input of shape {tuple(input.shape)}"
        remedy = "Pass input (N, features) and weight (classes, d_1, ..., d_K, features)"
        raise ShapeError(message(call, "linear_weight", found, remedy))
    if linear_bias is not None and tuple(linear_bias.shape) != shape[:-1]:
        found = f"found shape {tuple(linear_bias.shape)}, expected {shape[:-1]}"
        raise ShapeError(message(call, "linear_bias", found, "Pass one number for each class and position"))
    logits_shape = (len(input), *shape[:-1])
    how = Layout(logits_shape, 1, soft=tuple(target.shape) == logits_shape)
    return checked_layout(call, "linear_weight", how, tuple(target.shape), floating_target=is_soft(call, target))


def ignored_label(ignore_index: int | None) -> int:
    """The label of ignored rows; None, torch's default for a linear loss, is the usual one."""
    return Objective.ignore_index if ignore_index is None else ignore_index


def check_chunking(call: str, options: Any) -> None:
    """Raise ObjectiveError unless torch's `LinearCrossEntropyOptions` leave chunks and dtypes to the implementation.

    That is what their defaults ask for, and what happens here in any case.
    """
    if options is None:
        return
    kind = getattr(nn, "LinearCrossEntropyOptions", None)  # missing in the oldest torch that we support
    if kind is not None and isinstance(options, kind):
        default = kind()
        if all(getattr(options, name) == getattr(default, name) for name in CHUNKING):
            return
    found = f"found {options!r}, of which chunks and dtypes of torch's implementation have no meaning here"
    remedy = "Leave them out, and pass workspace=... bytes: it decides how many rows are computed at a time"
    raise ObjectiveError(message(call, "options", found, remedy))
