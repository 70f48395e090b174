"""The divergences of two linear layers whose logits are never held: student and teacher, chunk by chunk.

The driver is that of the cross-entropy (driver.py); its target is the teacher's logits of the chunk, a fourth product:

    for each chunk of rows
        logits  = input @ weight.T + bias                    into the workspace
        target  = target_input @ target_weight.T + bias      beside them
        loss, dlogits                                        in one visit, dlogits in the place of the logits
        dinput, dweight, dbias                               as far as they are wanted

The gradient by the teacher is that by the student of the divergence with the roles exchanged: a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from xent.divergence import Divergence
from xent.linear.driver import NOTHING, Array, Gradients, Layer, Steps, Wanted, run


class Pair(NamedTuple):
    """Two layers of one dtype, of as many classes and rows; their widths may differ.

    `labels` has one integer for each row, or is None: a row labelled `ignore_index` counts for nothing. The targets of
    the layers themselves are not used.
    """

    student: Layer
    teacher: Layer
    labels: Array | None


@dataclass(frozen=True)
class LinearDivergence:
    """The functions of `xent.linear.backend.LinearBackend` for a pair of layers; nothing is saved for a gradient."""

    rows: Any
    """A `DivergenceBackend` for the logits of a chunk."""
    steps: Callable[[Pair, Wanted], Steps]

    def forward(self, pair: Pair, options: Divergence) -> tuple[Array, None]:
        """Return the losses of the rows."""
        visit = DivergenceVisit(self.rows, options, pair.labels)
        return visit.results(self.run(pair, visit, NOTHING)), None

    def forward_backward(
        self, pair: Pair, row_scale: Any, options: Divergence, wanted: Wanted
    ) -> tuple[Array, None, Gradients]:
        """Return the losses, and the wanted gradients of sum(row_scale * loss) by the student's layer."""
        visit = DivergenceVisit(self.rows, options, pair.labels, row_scale)
        steps = self.run(pair, visit, wanted)
        return visit.results(steps), None, steps.gradients()

    def backward(self, pair: Pair, saved: None, row_scale: Any, options: Divergence, wanted: Wanted) -> Gradients:
        """Return the wanted gradients of sum(row_scale * loss); all logits are made once more."""
        return self.forward_backward(pair, row_scale, options, wanted)[2]

    def run(self, pair: Pair, visit: DivergenceVisit, wanted: Wanted) -> Steps:
        """Run the driver."""
        wanted = wanted._replace(bias=wanted.bias and pair.student.bias is not None)
        steps = self.steps(pair, wanted)
        run(steps, visit, wanted)
        return steps


class DivergenceVisit:
    """Losses and their gradient from the logits of both, of a chunk of rows."""

    def __init__(self, rows: Any, options: Divergence, labels: Array | None, row_scale: Any = 1.0) -> None:
        self.rows, self.options, self.labels, self.row_scale = rows, options, labels, row_scale
        self.losses: list[Array] = []
        self.visited = 0
        """The rows whose losses are kept; they are visited again for each further part of the weight."""

    def visit(self, logits: Array, target: Array, rows: slice) -> None:
        """Compute the losses of these rows."""
        self._keep(rows, self.rows.forward(logits, target, self._labels(rows), self.options))

    def visit_with_gradient(self, logits: Array, target: Array, rows: slice) -> None:
        """Compute the losses; the logits become their gradient."""
        scale = self.row_scale[rows] if getattr(self.row_scale, "ndim", 0) else self.row_scale
        found = self.rows.forward_backward(logits, target, self._labels(rows), scale, self.options, out=logits)
        self._keep(rows, found[0])

    def results(self, steps: Steps) -> Array:
        """Return the losses of all rows."""
        return steps.joined(self.losses)

    def _labels(self, rows: slice) -> Array | None:
        return None if self.labels is None else self.labels[rows]

    def _keep(self, rows: slice, losses: Array) -> None:
        if rows.stop > self.visited or not self.losses:
            self.losses.append(losses)
            self.visited = rows.stop


class PairSteps:
    """The steps of a student's layer, with the teacher's logits as the target (`xent.linear.driver.Steps`)."""

    def __init__(self, student: Steps, teacher: Steps) -> None:
        self.student, self.teacher, self.plan, self.layer = student, teacher, student.plan, student.layer
        self.make_logits, self.target = student.make_logits, teacher.make_logits
        self.input_gradient, self.bias_gradient = student.input_gradient, student.bias_gradient
        self.weight_gradient, self.finish_weight = student.weight_gradient, student.finish_weight
        self.gradients, self.joined = student.gradients, student.joined
