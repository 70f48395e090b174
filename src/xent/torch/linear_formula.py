"""The linear loss and its statistics as formulas of torch operations, which hold the logits.

For devices without kernels, for `torch.func`, and for second derivatives: torch sees through all of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xent.backends.formula import FORMULA, target_gradient
from xent.backends.protocol import Statistics
from xent.objective import Objective
from xent.torch.rows import LinearRows

CHUNK_ROWS = 256


def losses(rows: LinearRows, objective: Objective) -> Tensor:
    """The loss of each row."""
    return FORMULA.forward(_logits(rows), rows.target, objective.weighted(rows.class_weight))[0]


def statistics(rows: LinearRows, objective: Objective) -> Statistics:
    """The statistics of each row."""
    return FORMULA.statistics(_logits(rows), rows.target, objective)


def gradients(
    values: Sequence[Tensor], arguments: LinearRows, upstream: Sequence[Tensor | None], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of sum(upstream * values) by the wanted arguments, such that they can be differentiated again."""
    pairs = [(value, above) for value, above in zip(values, upstream, strict=True) if above is not None]
    chosen = {i: tensor for i, tensor in enumerate(arguments[: len(wanted)]) if tensor is not None and wanted[i]}
    if not chosen or not pairs:
        return [None] * len(wanted)
    total = torch.stack([(value * above).sum() for value, above in pairs]).sum()
    found = torch.autograd.grad(total, list(chosen.values()), create_graph=True, allow_unused=True)
    by_place = dict(zip(chosen, found, strict=True))
    return [by_place.get(i) for i in range(len(wanted))]


def apart(rows: LinearRows) -> LinearRows:
    """The same tensors at places of their own in the graph.

    Where one argument was made from another (a head that is tied to the embedding), the derivative by the one must not
    contain what the other contributes through it.
    """
    views = [t.view_as(t) if t is not None and t.is_floating_point() else t for t in rows]
    return LinearRows._make(views)


def gradient_of_target(
    rows: LinearRows, row_scale: Tensor, objective: Objective, dtype: torch.dtype, lse: Tensor | None
) -> Tensor:
    """The gradient by class probabilities (rows, classes), some rows at a time; `lse` is that of all shards."""
    weighted = objective.weighted(rows.class_weight)
    out = torch.empty(len(rows.input), len(rows.weight), dtype=dtype, device=rows.input.device)
    for first in range(0, len(rows.input), CHUNK_ROWS):
        part = slice(first, first + CHUNK_ROWS)
        logits = _logits(rows._replace(input=rows.input[part]))
        of_part = None if lse is None else lse[part]
        out[part] = target_gradient(logits, row_scale[part], weighted, dtype, of_part)
    return out


def _logits(rows: LinearRows) -> Tensor:
    return F.linear(rows.input, rows.weight, rows.bias)
