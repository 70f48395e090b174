"""The float64 definitions: plain, slow and as accurate as float64 allows. Every kernel is tested against them.

They take rows of logits that have been checked (checks.py) and return one loss per row, before any reduction
(reduction.py). docs/definitions.md has the equations, docs/accuracy.md the errors.
"""

from xent.reference.binary_cross_entropy import (
    binary_cross_entropy,
    binary_cross_entropy_gradient,
    ignored_targets,
)
from xent.reference.contrastive import contrastive_gradients, contrastive_loss
from xent.reference.cross_entropy import (
    cross_entropy,
    cross_entropy_gradient,
    negative_log_softmax,
    softcapped_logits,
)
from xent.reference.divergence import divergence, divergence_gradient
from xent.reference.linear_cross_entropy import (
    Gradients,
    linear_cross_entropy,
    linear_cross_entropy_gradients,
    linear_logits,
)
from xent.reference.squared_error import squared_error, squared_error_gradient

__all__ = [
    "Gradients",
    "binary_cross_entropy",
    "binary_cross_entropy_gradient",
    "contrastive_gradients",
    "contrastive_loss",
    "cross_entropy",
    "cross_entropy_gradient",
    "divergence",
    "divergence_gradient",
    "ignored_targets",
    "linear_cross_entropy",
    "linear_cross_entropy_gradients",
    "linear_logits",
    "negative_log_softmax",
    "softcapped_logits",
    "squared_error",
    "squared_error_gradient",
]
