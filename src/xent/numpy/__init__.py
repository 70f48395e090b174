"""The losses for NumPy arrays, and their gradients. Arguments are logits; for probabilities see `xent.information`.

Every loss has a twin that ends in `_value_and_grad`. The options are those of `xent.Objective`, which documents them:
weight, ignore_index, label_smoothing, z_loss, softcap, logit_scale, reduction and denominator.

Shapes follow torch: logits (C,), (N, C) or (N, C, d1, ...), with class indices of that shape without the axis C, or
class probabilities of exactly that shape. The loss of float16 logits is float32; otherwise it has the logits' dtype.
Gradients have the dtype of what they are the gradient of. With `reduction="none"` a gradient is that of the sum of the
losses. Integers and lists are read as float64. The caller's arrays are never written to.

Arrays may have any strides and byte order; losses and gradients have the machine's. The dtypes are float64, float32,
float16, the bfloat16 of ml_dtypes, and integers; anything else raises `DTypeError` with the conversion to make, and so
do sparse matrices and masked arrays with masked entries, whose mask has no one meaning here.
"""

from xent.backends.protocol import Statistics
from xent.linear.sampling import GradientReport
from xent.numpy.binary import (
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_value_and_grad,
)
from xent.numpy.contrastive import PairGradients, contrastive_loss, contrastive_loss_value_and_grad
from xent.numpy.divergences import (
    js_divergence,
    js_divergence_value_and_grad,
    kl_divergence,
    kl_divergence_value_and_grad,
)
from xent.numpy.linear import linear_cross_entropy, linear_cross_entropy_value_and_grad, linear_statistics
from xent.numpy.linear_divergences import (
    linear_js_divergence,
    linear_js_divergence_value_and_grad,
    linear_kl_divergence,
    linear_kl_divergence_value_and_grad,
)
from xent.numpy.logits import (
    cross_entropy,
    cross_entropy_value_and_grad,
    squared_error,
    squared_error_value_and_grad,
)
from xent.reference import Gradients
from xent.sparse import SparseTarget

__all__ = [
    "GradientReport",
    "Gradients",
    "PairGradients",
    "SparseTarget",
    "Statistics",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_value_and_grad",
    "contrastive_loss",
    "contrastive_loss_value_and_grad",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "js_divergence",
    "js_divergence_value_and_grad",
    "kl_divergence",
    "kl_divergence_value_and_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_value_and_grad",
    "linear_js_divergence",
    "linear_js_divergence_value_and_grad",
    "linear_kl_divergence",
    "linear_kl_divergence_value_and_grad",
    "linear_statistics",
    "squared_error",
    "squared_error_value_and_grad",
]
