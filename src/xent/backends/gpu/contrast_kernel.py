"""The kernels of a contrastive loss, on some rows of similarities x (xent/linear/contrast.py): columns, and gradient.

    column   log(sum(exp(z))) of each column over these rows, without the positive
    dx       logit_scale * (row_scale * exp(z - row_lse) + column_scale * exp(z - column_lse)),    z = logit_scale * x

and at a positive logit_scale * (row_scale * expm1(-row_loss) + column_scale * expm1(-column_loss)), in which nothing
cancels. A log-sum-exp in float64 is split into what `z` is compared with and a factor near 1.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from xent.backends.gpu.primitives import exp

NONE = -(2**30)
"""The first column of positives where there are none."""
PART = 256
"""Rows that one program sums."""
COLUMNS = 128
BLOCK = 2048


def column_lse(logits: Tensor, first: int | None, logit_scale: float) -> Tensor:
    """The log-sum-exps of columns over similarities (rows, classes), in float64, without the positives.

    Row r has its positive in column `first` + r, if any.
    """
    rows, classes = logits.shape
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    parts = -(-rows // PART)
    highest = torch.empty((parts, classes), dtype=wide, device=logits.device)
    total = torch.empty_like(highest)
    columns[(-(-classes // COLUMNS), parts)](
        logits,
        rows,
        classes,
        NONE if first is None else first,
        logit_scale,
        highest,
        total,
        WIDE=tl.float64 if wide == torch.float64 else tl.float32,
        ROWS=PART,
        BLOCK=COLUMNS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return torch.logsumexp(highest.double() + total.double().log(), dim=0)


def contrast_gradient(logits: Tensor, first: int | None, rows: Any, columns: Any, logit_scale: float) -> None:
    """Replace similarities (rows, classes) by their gradient. Row r has its positive in column `first` + r, if any."""
    wide, (count, classes) = torch.float64 if logits.dtype == torch.float64 else torch.float32, logits.shape
    row_reference, row_factor = _split(rows, logit_scale, wide)
    column_reference, column_factor = (None, None) if columns is None else _split(columns, logit_scale, wide)
    of_positives = _of_positives(rows, slice(None), logit_scale)
    if first is not None and columns is not None:
        of_positives = of_positives + _of_positives(columns, slice(first, first + count), logit_scale)
    gradient[(count, -(-classes // BLOCK))](
        logits,
        classes,
        NONE if first is None else first,
        logit_scale,
        row_reference,
        row_factor,
        column_reference,
        column_factor,
        of_positives.to(wide),
        WIDE=tl.float64 if wide == torch.float64 else tl.float32,
        BLOCK=BLOCK,
        num_warps=4,
        enable_fp_fusion=True,
    )


def _split(side: Any, logit_scale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Reference and factor, so that factor * exp(z - reference) = logit_scale * scale * exp(z - lse)."""
    reference = side.lse.to(dtype)
    return reference, (side.scale * logit_scale * (reference.double() - side.lse).exp()).to(dtype)


def _of_positives(side: Any, places: slice, logit_scale: float) -> Tensor:
    found: Tensor = logit_scale * side.scale[places] * torch.expm1(-side.loss[places])
    return found


@triton.jit
def columns(
    logits, rows, classes, first, scale, highest, total,
    WIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of some columns and rows, the maxima and the sums of exponentials relative to them."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = tl.program_id(1) * ROWS
    inside = column < classes
    most = tl.full((BLOCK,), float("-inf"), WIDE)
    sums = tl.zeros((BLOCK,), WIDE)
    place = logits + tl.program_id(1).to(tl.int64) * ROWS * classes + column
    for r in range(start, min(start + ROWS, rows)):
        counts = inside & (column != first + r)
        z = tl.load(place, mask=counts, other=0.0).to(WIDE) * scale
        z = tl.where(counts, z, float("-inf"))
        raised = tl.where(z > most, z, most)
        # Before the first number there is nothing to rescale, and infinity less infinity would be NaN.
        down = tl.where(most == float("-inf"), 0.0, exp(most - raised))
        sums = sums * down + tl.where(z == float("-inf"), 0.0, exp(z - raised))
        most = raised
        place += classes
    place = tl.program_id(1).to(tl.int64) * classes + column
    tl.store(highest + place, most, mask=inside)
    tl.store(total + place, sums, mask=inside)


@triton.jit
def gradient(
    logits, classes, first, scale, row_reference, row_factor, column_reference, column_factor, of_positives,
    WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The gradient of a piece of a row, in the place of its similarities."""
    r = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < classes
    place = logits + r.to(tl.int64) * classes + column
    z = tl.load(place, mask=inside, other=0.0).to(WIDE) * scale
    found = tl.load(row_factor + r) * exp(z - tl.load(row_reference + r))
    if column_factor is not None:
        reference = tl.load(column_reference + column, mask=inside, other=0.0)
        found += tl.load(column_factor + column, mask=inside, other=0.0) * exp(z - reference)
    found = tl.where(column == first + r, tl.load(of_positives + r), found)
    tl.store(place, found.to(logits.dtype.element_ty), mask=inside)
