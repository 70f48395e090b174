"""The plain loss of a few rows in NumPy, which compiles nothing: a kernel's first call takes seconds.

A call of a kernel takes 10 microseconds, one of these 20 to 30 as long as there are at most `MOST` logits. Everything
is computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.definitions import DefinitionsBackend, like_logits, wide_rows
from xent.objective import Objective

Array = NDArray[Any]

MOST = 2**12


class FewRows(DefinitionsBackend):
    """Losses of labels without options, and their gradients; labels are valid or ignored (`xent.backends.Backend`)."""

    def forward(self, logits: Array, target: Array, objective: Objective) -> tuple[Array, Array]:
        """Return the losses and log-sum-exps of the rows."""
        losses, lse, _, _ = self._visited(logits, target, objective)
        return losses, lse

    def forward_backward(
        self,
        logits: Array,
        target: Array,
        row_scale: Array | float,
        objective: Objective,
        *,
        out: Array | None = None,
    ) -> tuple[Array, Array, Array]:
        """Return losses, log-sum-exps and gradient."""
        losses, lse, q, labels = self._visited(logits, target, objective)
        with np.errstate(all="ignore"):
            q[np.arange(len(q)), labels] -= 1.0
            q *= np.reshape(row_scale, (-1, 1))
            q[target == objective.ignore_index] = 0.0
            gradient = like_logits(q, logits)
        if out is not None:
            out[...] = gradient
        return losses, lse, gradient if out is None else out

    def _visited(self, logits: Array, target: Array, objective: Objective) -> tuple[Array, Array, Array, Array]:
        """Losses, log-sum-exps, probabilities, and the labels with 0 in place of those that are ignored."""
        z = wide_rows(logits)
        known, rows = target != objective.ignore_index, np.arange(len(z))
        labels = np.where(known, target, 0)
        top = z.argmax(axis=1)
        highest = z[rows, top]
        with np.errstate(all="ignore"):
            z -= np.where(np.isfinite(highest), highest, np.nan)[:, None]
            label_z = z[rows, labels]
            np.exp(z, out=z)
            # The greatest term, which is 1, is set apart: the loss of a confident row is as small as the others say.
            z[rows, top] -= 1.0
            log_total = np.log1p(z.sum(axis=1))
            z[rows, top] += 1.0
            z /= z.sum(axis=1, keepdims=True)
            losses = np.where(known, log_total - label_z, 0.0)
            lse = np.where(known, highest + log_total, 0.0)
            return losses.astype(self.compute_dtype(logits.dtype)), lse, z, labels
