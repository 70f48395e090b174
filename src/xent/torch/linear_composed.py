"""The linear loss and its statistics as formulas of torch operations, which hold the logits.

For devices without a kernel, for `torch.func`, and for second derivatives: torch sees through all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xent.objective import Objective
from xent.torch import composed


def cross_entropy_rows(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, class_weight: Tensor | None, objective: Objective
) -> Tensor:
    """The loss of each row of input (rows, features)."""
    return composed.cross_entropy_rows(F.linear(input, weight, bias), target, class_weight, objective)


def statistics_rows(
    input: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, objective: Objective
) -> tuple[Tensor, ...]:
    """(log_prob, entropy, lse, argmax, rank) of each row."""
    return composed.statistics_rows(F.linear(input, weight, bias), labels, objective)


def gradients(
    make: Sequence[Tensor],
    arguments: Sequence[Tensor | None],
    upstream: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of sum(upstream * make) by the wanted arguments, such that they can be differentiated again."""
    pairs = [(made, above) for made, above in zip(make, upstream, strict=True) if above is not None]
    chosen = [argument for argument, want in zip(arguments, wanted, strict=True) if want and argument is not None]
    if not chosen or not pairs:
        return [None] * len(wanted)
    total = torch.stack([(made * above).sum() for made, above in pairs]).sum()
    found = iter(torch.autograd.grad(total, chosen, create_graph=True, allow_unused=True))
    return [
        next(found) if want and argument is not None else None
        for argument, want in zip(arguments, wanted, strict=True)
    ]


def apart(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same tensors at places of their own in the graph.

    Where one argument was made from another (a head that is tied to the embedding), the derivative by the one must not
    contain what the other contributes through it.
    """
    return [tensor.view_as(tensor) if tensor is not None and tensor.is_floating_point() else tensor for tensor in tensors]


def target_gradient(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    row_scale: Tensor,
    objective: Objective,
    dtype: torch.dtype,
    chunk_rows: int = 256,
) -> Tensor:
    """The gradient by class probabilities (rows, classes), some rows at a time."""
    out = torch.empty(input.shape[0], weight.shape[0], dtype=dtype)
    for first in range(0, input.shape[0], chunk_rows):
        rows = slice(first, first + chunk_rows)
        logits = F.linear(input[rows], weight, bias)
        out[rows] = composed.target_gradient(logits, class_weight, row_scale[rows], objective, dtype)
    return out
