"""The float64 definitions: plain, slow and as accurate as float64 allows. Every kernel is tested against them.

They take rows of logits that have been checked (checks.py) and return one loss per row, before any reduction
(reduction.py). docs/definitions.md has the equations, docs/accuracy.md the errors.
"""

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
    "cross_entropy",
    "cross_entropy_gradient",
    "divergence",
    "divergence_gradient",
    "linear_cross_entropy",
    "linear_cross_entropy_gradients",
    "linear_logits",
    "negative_log_softmax",
    "softcapped_logits",
    "squared_error",
    "squared_error_gradient",
]
