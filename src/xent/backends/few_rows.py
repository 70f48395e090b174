"""A few rows in NumPy, which compiles nothing: a kernel's first call takes seconds.

A later call takes longer than that of a kernel, plain labels a few times as long and options, for which the definitions
compute, several: so only up to `MOST` logits. Everything is computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.backends.definitions import DefinitionsBackend, like_logits, wide_rows
from xent.objective import Objective

Array = NDArray[Any]

MOST = 2**12
CONFIDENT = 1e-6
"""Of the sum of a row's exponentials without the greatest: below it their own digits count."""


def are_few(logits: int) -> bool:
    """Whether so many logits are few enough."""
    return logits <= MOST


class FewRows(DefinitionsBackend):
    """The definitions, and a shorter way for labels without options; labels are valid or ignored."""

    def forward(self, logits: Array, target: Array, objective: Objective) -> tuple[Array, Array]:
        """Return the losses and log-sum-exps of the rows."""
        if not _is_plain(target, objective):
            return super().forward(logits, target, objective)
        ignored = target == objective.ignore_index
        with np.errstate(all="ignore"):
            return self._visited(logits, target, ignored)[:2]

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
        if not _is_plain(target, objective):
            return super().forward_backward(logits, target, row_scale, objective, out=out)
        ignored = target == objective.ignore_index
        with np.errstate(all="ignore"):
            losses, lse, q, total, of_labels = self._visited(logits, target, ignored)
            q /= total[:, None]
            q[of_labels] -= 1.0
            q *= np.reshape(row_scale, (-1, 1))
            q[ignored] = 0.0
            gradient = like_logits(q, logits)
        if out is not None:
            out[...] = gradient
        return losses, lse, gradient if out is None else out

    def _visited(self, logits: Array, target: Array, ignored: Array) -> tuple[Array, Array, Array, Array, Any]:
        """Losses, log-sum-exps, exponentials relative to the greatest, their sums, and the places of the labels."""
        z = wide_rows(logits)
        rows = np.arange(len(z))
        of_labels = rows, np.where(ignored, 0, target)
        highest = z.max(axis=1)
        z -= (highest + 0.0 * highest)[:, None]  # NaN for an infinite one
        label_z = z[of_labels]
        exponentials = np.exp(z, out=z)
        total = exponentials.sum(axis=1)
        # The greatest term is 1: a confident loss is as small as the sum of the others, which is made without rounding.
        others = total - 1.0
        confident = others < CONFIDENT
        if confident.any():
            others[confident] = np.sort(exponentials[confident], axis=1)[:, :-1].sum(axis=1)
        log_total = np.log1p(others)
        losses, lse = log_total - label_z, highest + log_total
        losses[ignored] = lse[ignored] = 0.0
        return losses.astype(self.compute_dtype(logits.dtype)), lse, exponentials, total, of_labels


def _is_plain(target: Array, objective: Objective) -> bool:
    """Whether targets are labels and there is no option that changes the loss of a row."""
    return target.ndim == 1 and objective.is_plain
