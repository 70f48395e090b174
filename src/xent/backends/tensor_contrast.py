"""The gradient of a contrastive loss by its similarities as operations of torch, for all devices but the CPU.

backends/cpu/contrast.py has the equations. A few rows at a time, so that what lies beside the similarities stays small.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS = 512


def contrast_gradient(logits: Tensor, first: int | None, rows: Any, columns: Any, logit_scale: float) -> None:
    """Replace similarities (rows, classes) by their gradient. Row r has its positive in column `first` + r, if any."""
    compute = torch.float64 if logits.dtype == torch.float64 else torch.float32
    row_reference, row_factor = _split(rows, logit_scale, compute)
    of_positives = _of_positives(rows, slice(None), logit_scale)
    if columns is not None:
        column_reference, column_factor = _split(columns, logit_scale, compute)
        if first is not None:
            of_positives += _of_positives(columns, slice(first, first + len(logits)), logit_scale)
    for start in range(0, len(logits), ROWS):
        part = slice(start, start + ROWS)
        z = logits[part].to(compute) * logit_scale
        gradient = (z - row_reference[part, None]).exp_().mul_(row_factor[part, None])
        if columns is not None:
            gradient += (z - column_reference).exp_().mul_(column_factor)
        if first is not None:
            gradient.diagonal(first + start).copy_(of_positives[part])
        logits[part] = gradient


def _split(side: Any, logit_scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Reference and factor, so that factor * exp(z - reference) = logit_scale * scale * exp(z - lse)."""
    reference = side.lse.to(dtype)
    return reference, (side.scale * logit_scale * (reference.double() - side.lse).exp()).to(dtype)


def _of_positives(side: Any, places: slice, logit_scale: float) -> Tensor:
    found: Tensor = logit_scale * side.scale[places] * torch.expm1(-side.loss[places])
    return found
