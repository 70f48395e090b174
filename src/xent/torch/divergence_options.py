"""The options of a call of a divergence, and the labels that say which rows it leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xent.checks import Layout, check_labels_shape
from xent.divergence import Divergence
from xent.errors import DTypeError, message
from xent.torch.functional import Learned, learned_of
from xent.torch.rows import check_tensors


def divergence_of(name: str, loss: str, options: dict[str, Any]) -> tuple[Divergence, Learned]:
    """The options of a call, and those of them that are tensors torch has to see."""
    learned = learned_of(name, options["logit_scale"], options["denominator"])
    numbers = dict(options)
    if learned.scale is not None:
        numbers["logit_scale"] = 1.0
    if learned.denominator is not None:
        numbers["denominator"] = 1.0
    divergence = Divergence.of_loss(name, loss, numbers)
    if learned.denominator is not None:
        divergence = replace(divergence, reduction="sum", denominator=None)
    return divergence, learned


def check_row_labels(name: str, labels: Tensor | None, how: Layout, place: torch.device) -> None:
    """Check that labels are integers, one for each row."""
    if labels is None:
        return
    check_tensors(name, place=place, labels=labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype is torch.bool:
        found = f"found dtype {labels.dtype}, expected integers"
        remedy = "Labels only say which rows are ignored; for a mask, pass torch.where(mask, 0, ignore_index)"
        raise DTypeError(message(name, "labels", found, remedy))
    check_labels_shape(name, tuple(labels.shape), how)
