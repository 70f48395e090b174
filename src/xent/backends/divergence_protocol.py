"""`DivergenceBackend`: what a kind of device offers for divergences of two rows of logits.

    forward            losses of the rows
    forward_backward   losses, and the gradient by the first logits

A gradient is that by the student. The teacher's is the student's of the same divergence with the roles exchanged
(`Divergence.of_teacher`), so that nothing here knows whether a teacher learns. Nothing is saved for a gradient: both
rows are visited again, since the log-sum-exps of float64 rows would lose digits.
"""

from __future__ import annotations

from typing import Protocol

from xent.backends.protocol import Array
from xent.divergence import Divergence


class DivergenceBackend(Protocol):
    """Losses and gradients of logits (rows, classes), or (outer, classes, inner) for torch, both of one dtype.

    `labels` has one integer for each row, or is None: a row labelled `ignore_index` has loss and gradient 0, whatever
    its logits. Losses have the computing dtype. A class of probability 0 in both rows adds 0; one that the divergence
    makes impossible makes the loss +inf, with a finite gradient. NaN or +inf among the logits make that row NaN, and so
    do logits that are all -inf.
    """

    def forward(self, student: Array, teacher: Array, labels: Array | None, options: Divergence) -> Array:
        """Return the loss of each row."""

    def forward_backward(
        self,
        student: Array,
        teacher: Array,
        labels: Array | None,
        row_scale: Array | float,
        options: Divergence,
        *,
        out: Array | None = None,
    ) -> tuple[Array, Array]:
        """Return the losses and the gradient of sum(row_scale * loss) by the student's logits.

        `row_scale` is one number, or one for each row. `out` may be the student's logits themselves.
        """
