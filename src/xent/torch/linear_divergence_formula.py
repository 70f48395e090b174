"""The divergences of two linear layers as formulas of torch operations, which hold logits; see linear_formula.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xent.backends.divergence_formula import DIVERGENCE_FORMULA, divergence_gradient
from xent.divergence import Divergence
from xent.torch.linear_formula import of_layer, places
from xent.torch.rows import PairRows


def losses(rows: PairRows, options: Divergence) -> Tensor:
    """The loss of each row, some rows at a time: without a graph the logits of those are all that is held."""
    found = []
    for place in places(rows):
        labels = None if rows.labels is None else rows.labels[place]
        input, target_input = rows.input[place], rows.target_input[place]
        part = rows._replace(input=input, target_input=target_input, labels=labels)
        found.append(DIVERGENCE_FORMULA.forward(*_logits(part), labels, options))
    return torch.cat(found)


def explicit_gradients(
    rows: PairRows, row_scale: Tensor, options: Divergence, wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """The wanted gradients of sum(row_scale * loss) by the student's input, weight and bias; differentiable."""
    return of_layer(rows, divergence_gradient(*_logits(rows), rows.labels, row_scale, options), wanted)


def _logits(rows: PairRows) -> tuple[Tensor, Tensor]:
    return F.linear(*rows[:3]), F.linear(*rows[3:6])
