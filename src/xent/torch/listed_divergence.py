"""The KL divergence from a target that lists a few classes: its cross-entropy, less the target's entropy.

    KL(t || p_s) = sum(t * (log t - log p_s)) = cross_entropy(t, p_s) - entropy(t)

The entropy is one number for each row, which the student cannot change: gradients are those of the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xent.checks import Layout
from xent.errors import ObjectiveError, message
from xent.sparse import SparseTarget, entropies
from xent.torch.divergence_options import check_row_labels, divergence_of
from xent.torch.rows import sparse_as_rows


def kl_divergence_from_list(
    call: str,
    cross_entropy: Callable[..., Tensor],
    target: SparseTarget,
    how: Layout,
    labels: Tensor | None,
    sample_weight: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    """The divergence for `cross_entropy`, a function of the target and options; `how` says how its logits lie."""
    if options.get("direction", "forward") != "forward":
        found = "a target that lists classes has no reverse divergence: it is infinite outside of the list"
        raise ObjectiveError(message(call, "direction", found, "Use direction='forward', or pass the teacher's logits"))
    divergence, learned = divergence_of(call, "kl_divergence", options)
    check_row_labels(call, labels, how, target.ids.device)
    weights = sample_weight
    if labels is not None:
        kept = (labels != divergence.ignore_index).to(torch.float32 if weights is None else weights.dtype)
        weights = kept if weights is None else kept * weights
    scale, factor = divergence.logit_scale, divergence.factor
    loss = cross_entropy(
        target,
        sample_weight=weights,
        softcap=divergence.softcap,
        logit_scale=scale if learned.scale is None else learned.scale * scale,
        z_loss=divergence.z_loss / factor,
        reduction=divergence.reduction,
        denominator=divergence.denominator,
    )
    rows = entropies(sparse_as_rows(call, target, how, check=False), how.classes).reshape(how.loss_shape)
    entropy = rows if weights is None else rows * weights.double()
    reduction: str = divergence.reduction
    if reduction != "none":
        entropy = entropy.sum()
    if reduction == "mean":
        count: Any = how.rows if weights is None else weights.double().sum()
        entropy = entropy / (count if divergence.denominator is None else divergence.denominator)
    value = (factor * (loss.double() - entropy)).to(loss.dtype)
    if target.tail != "drop":  # rounding may leave less than 0 of a divergence of 0; its gradient stays
        value = torch.where(value < 0, value - value.detach(), value)
    return value if reduction == "none" else learned.divided(value)
