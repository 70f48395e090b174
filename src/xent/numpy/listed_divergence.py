"""The KL divergence from a target that lists a few classes: its cross-entropy, less the target's entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from xent.checks import as_numpy, check_labels_shape
from xent.divergence import Divergence
from xent.errors import ObjectiveError, message
from xent.numpy.rows import Array, sparse_target
from xent.sparse import SparseTarget, entropies


def kl_divergence_from_list(
    call: str,
    cross_entropy: Callable[..., tuple[Array, Any]],
    target: SparseTarget,
    logits_shape: tuple[int, ...],
    class_axis: int,
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
    options: Mapping[str, Any],
) -> tuple[Array, Any, float]:
    """The divergence for `cross_entropy`, a function of target and options that returns a loss and gradients.

    Returns the divergence, the gradients of the cross-entropy, and their factor.
    """
    if options.get("direction", "forward") != "forward":
        found = "a target that lists classes has no reverse divergence: it is infinite outside of the list"
        raise ObjectiveError(message(call, "direction", found, "Use direction='forward', or pass the teacher's logits"))
    divergence = Divergence.of_loss(call, "kl_divergence", options)
    rows, how = sparse_target(call, target, logits_shape, class_axis)
    weights = None if sample_weight is None else as_numpy(call, "sample_weight", sample_weight).astype(np.float64)
    if labels is not None:
        given = as_numpy(call, "labels", labels)
        check_labels_shape(call, given.shape, how)
        kept = (given != divergence.ignore_index).astype(np.float64)
        weights = kept if weights is None else kept * weights
    loss, gradients = cross_entropy(
        target,
        sample_weight=weights,
        softcap=divergence.softcap,
        logit_scale=divergence.logit_scale,
        z_loss=divergence.z_loss / divergence.factor,
        reduction=divergence.reduction,
        denominator=divergence.denominator,
    )
    entropy = entropies(rows, how.classes).reshape(how.loss_shape) * (1.0 if weights is None else weights)
    reduction: str = divergence.reduction
    if reduction != "none":
        entropy = entropy.sum()
    if reduction == "mean":
        count = how.rows if weights is None else weights.sum()
        with np.errstate(invalid="ignore"):  # of no rows
            entropy = np.float64(entropy) / (count if divergence.denominator is None else divergence.denominator)
    found = divergence.factor * (np.asarray(loss, np.float64) - entropy)
    least = -np.inf if target.tail == "drop" else 0.0  # rounding may leave less than 0 of a divergence of 0
    return np.maximum(found, least).astype(loss.dtype)[()], gradients, divergence.factor
