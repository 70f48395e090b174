"""The contrastive loss of two batches of embeddings, and its gradients, in float64.

    z          = logit_scale * a @ b.T
    loss[i]    = cross_entropy(z[i, :], i)
    symmetric    (cross_entropy(z[i, :], i) + cross_entropy(z[:, i], i)) / 2

The kernels never hold all of z; this definition does.
"""

from __future__ import annotations

import numpy as np

from xent.objective import Objective
from xent.reference.cross_entropy import Float64, cross_entropy, cross_entropy_gradient

ROWS = Objective(reduction="none")


def contrastive_loss(a: Float64, b: Float64, logit_scale: float, *, symmetric: bool = True) -> Float64:
    """Return the loss of each pair of `a` (pairs, features) and `b` (pairs, features)."""
    z, labels = logit_scale * a @ b.T, np.arange(len(a))
    loss, _ = cross_entropy(z, labels, ROWS)
    return (loss + cross_entropy(z.T, labels, ROWS)[0]) / 2 if symmetric else loss


def contrastive_gradients(
    a: Float64, b: Float64, logit_scale: float, row_scale: Float64 | float, *, symmetric: bool = True
) -> tuple[Float64, Float64]:
    """Return the gradients of sum(row_scale * loss) by `a` and `b`; `row_scale` is one number or one for each pair."""
    z, labels = logit_scale * a @ b.T, np.arange(len(a))
    dz = cross_entropy_gradient(z, labels, ROWS) * np.reshape(row_scale, (-1, 1))
    if symmetric:
        dz = (dz + cross_entropy_gradient(z.T, labels, ROWS).T * np.reshape(row_scale, (1, -1))) / 2
    return logit_scale * dz @ b, logit_scale * dz.T @ a
