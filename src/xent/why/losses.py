"""Both losses of rows of logits and their gradients, from the definitions in `xent.reference`.

A kernel takes a fraction of the time for a call, and ten seconds and more to compile where nothing is cached yet. The
experiment and its page make thousands of calls with hundreds of rows, for which the definitions take less than that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xent.numpy
from xent import reference
from xent.objective import Objective
from xent.why.record import LOSSES, Loss

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

KERNELS_FROM = 1 << 12
"""Logits of one batch of one training from which the kernel of the cross-entropy is worth waiting for its compiler.

50 trainings of 1,000 steps, at 54 ns for a logit by the definitions, then take 11 seconds, as the compiler does.
"""

_NO_OPTIONS = Objective(reduction="none")
_VALUE: dict[Loss, Callable[[Array, Labels], Array]] = {
    "cross-entropy": lambda logits, labels: reference.cross_entropy(logits, labels, _NO_OPTIONS)[0],
    "squared error": lambda logits, labels: reference.squared_error(logits, labels, _NO_OPTIONS),
}
_GRADIENT: dict[Loss, Callable[[Array, Labels], Array]] = {
    "cross-entropy": lambda logits, labels: reference.cross_entropy_gradient(logits, labels, _NO_OPTIONS),
    "squared error": lambda logits, labels: reference.squared_error_gradient(logits, labels, _NO_OPTIONS),
}


def losses_of_rows(loss: Loss, logits: Array, labels: Labels) -> Array:
    """Return the loss of each row."""
    return _VALUE[loss](logits, labels)


def gradients_of_rows(loss: Loss, logits: Array, labels: Labels) -> Array:
    """Return the gradient of each row's loss by its logits."""
    return _GRADIENT[loss](logits, labels)


def mean_loss(loss: Loss, logits: Array, labels: Labels) -> float:
    """Return the mean loss of the rows."""
    return float(losses_of_rows(loss, logits, labels).mean())


def gradient_lengths(logits: Array, labels: Any) -> list[Array]:
    """Return the Euclidean length of each loss's gradient by the logits, for each row."""
    return [np.linalg.norm(gradients_of_rows(loss, logits, labels), axis=1) for loss in LOSSES]


def gradients_of_means(losses: Sequence[Loss], logits: Array, labels: Labels) -> Array:
    """Return the gradient of each training's mean loss by its logits.

    The logits are (trainings, rows, classes), the labels (trainings, rows), or (1, rows) for the same in each training.
    """
    _, rows, classes = logits.shape
    labels = np.broadcast_to(labels, logits.shape[:2])
    result = np.empty_like(logits)
    for loss in LOSSES:
        chosen = [which for which, other in enumerate(losses) if other == loss]
        if chosen:
            flat, flat_labels = logits[chosen].reshape(-1, classes), labels[chosen].reshape(-1)
            if loss == "cross-entropy" and rows * classes >= KERNELS_FROM:
                _, found = xent.numpy.cross_entropy_value_and_grad(flat, flat_labels, reduction="none")
            else:
                found = gradients_of_rows(loss, flat, flat_labels)
            result[chosen] = (found * (1.0 / rows)).reshape(-1, rows, classes)
    return result
