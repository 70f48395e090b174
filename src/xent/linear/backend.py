"""The losses, gradients and statistics of a linear layer: the driver over the steps and the row kernels of a device.

`LinearBackend` has the functions of a `Backend` (xent/backends/protocol.py) with a `Layer` in the place of logits and
target, and `Gradients` in the place of a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xent.linear.contrast import Contrast, Side, measure, measure_with_gradients
from xent.linear.contrast import gradients as gradients_of_contrast
from xent.linear.driver import NOTHING, Array, Gradients, Layer, Steps, Visit, Wanted, run
from xent.linear.sampling import scales_of
from xent.objective import Objective


@dataclass(frozen=True)
class LinearBackend:
    """`xent.backends.Backend` for a layer whose logits are never held."""

    rows: Any
    """A `Backend` for the logits of a chunk."""
    steps: Callable[[Layer, Wanted], Steps]

    def forward(self, layer: Layer, objective: Objective) -> tuple[Array, Array]:
        """Return the losses of the rows, and what a later gradient needs of them."""
        visit = Losses(self.rows, objective)
        return visit.results(self.run(layer, visit, NOTHING))

    def forward_backward(
        self, layer: Layer, row_scale: Any, objective: Objective, wanted: Wanted
    ) -> tuple[Array, Array, Gradients]:
        """Return losses, saved numbers, and the wanted gradients of sum(row_scale * loss)."""
        visit = Losses(self.rows, objective, row_scale)
        steps = self.run(layer, visit, wanted)
        return *visit.results(steps), steps.gradients()

    def backward(self, layer: Layer, saved: Array, row_scale: Any, objective: Objective, wanted: Wanted) -> Gradients:
        """Return the wanted gradients of sum(row_scale * loss); the logits are made once more."""
        return self.run(layer, Losses(self.rows, objective, row_scale, saved), wanted).gradients()

    def statistics(self, layer: Layer, objective: Objective) -> Any:
        """Return the statistics of each row."""
        visit = RowStatistics(self.rows, objective)
        return visit.results(self.run(layer, visit, NOTHING))

    def statistics_gradient(
        self, layer: Layer, statistics: Any, upstream: tuple[Array, Array, Array], objective: Objective, wanted: Wanted
    ) -> Gradients:
        """Return the wanted gradients of sum(d_log_prob * log_prob + d_entropy * entropy + d_lse * lse)."""
        return self.run(layer, RowStatistics(self.rows, objective, statistics, upstream), wanted).gradients()

    def contrast(self, layer: Layer, logit_scale: float, *, symmetric: bool, own: bool = True) -> Contrast:
        """Return losses and log-sum-exps of a contrastive loss of input and weight (contrast.py)."""
        return measure(self, layer, logit_scale, symmetric=symmetric, own=own)

    def contrast_with_gradients(
        self, layer: Layer, logit_scale: float, scale: float, wanted: Wanted
    ) -> tuple[Contrast, Gradients]:
        """Return the same, and the wanted gradients of scale * sum(loss)."""
        return measure_with_gradients(self, layer, logit_scale, scale, wanted)

    def contrast_gradients(
        self,
        layer: Layer,
        logit_scale: float,
        rows: Side,
        columns: Side | None,
        wanted: Wanted,
        *,
        own: bool = True,
    ) -> Gradients:
        """Return the wanted gradients of sum(scale * loss); the similarities are made once more."""
        return gradients_of_contrast(self, layer, logit_scale, rows, columns, wanted, own=own)

    def run(self, layer: Layer, visit: Visit, wanted: Wanted) -> Steps:
        """Run the driver."""
        wanted = wanted._replace(bias=wanted.bias and layer.bias is not None)
        steps = self.steps(layer, wanted)
        run(steps, visit, wanted)
        return steps


class Losses:
    """Losses and their gradient. With `saved`, the losses are known and only the gradient is made."""

    numbers = 1
    """Of the first message about a row, where classes are sharded over processes."""

    def __init__(self, rows: Any, objective: Objective, row_scale: Any = 1.0, saved: Array | None = None) -> None:
        self.rows, self.objective, self.row_scale, self.known = rows, objective, row_scale, saved
        self.losses: list[Array] = []
        self.saved: list[Array] = []
        self.visited = 0
        """The rows whose losses have been computed; they are visited again for each further part of the weight."""

    def visit(self, logits: Array, target: Array, rows: slice) -> None:
        """Compute the losses of these rows."""
        self._keep(rows, *self.rows.forward(logits, target, self.objective))

    def visit_with_gradient(self, logits: Array, target: Array, rows: slice) -> None:
        """Compute the losses; the logits become their gradient."""
        scale = self._scale_of(rows)
        was_visited = bool(self.losses) and rows.stop <= self.visited
        if not self.rows.one_visit and (self.known is not None or was_visited):
            saved = self.known[..., rows] if self.known is not None else self._saved_of(rows)
            self.rows.backward(logits, target, saved, scale, self.objective, out=logits)
            return
        loss, saved, _ = self.rows.forward_backward(logits, target, scale, self.objective, out=logits)
        self._keep(rows, loss, saved)

    def scales(self, target: Array, rows: slice) -> Array:
        """The scale of the gradient of each row, or of all."""
        return scales_of(self.objective, self._scale_of(rows), target)

    def results(self, steps: Steps) -> tuple[Array, Array]:
        """Return losses and saved numbers of all rows."""
        return steps.joined(self.losses), steps.joined(self.saved)

    def _scale_of(self, rows: slice) -> Any:
        return self.row_scale[rows] if getattr(self.row_scale, "ndim", 0) else self.row_scale

    def _keep(self, rows: slice, loss: Array, saved: Array) -> None:
        if rows.stop > self.visited or not self.losses:
            self.losses.append(loss)
            self.saved.append(saved)
            self.visited = rows.stop

    def _saved_of(self, rows: slice) -> Array:
        start = 0
        for saved in self.saved:
            if start == rows.start:
                return saved
            start += saved.shape[-1]
        raise AssertionError("chunks are the same for every part")


class RowStatistics:
    """Statistics and, with those of all rows and their upstream gradients, the gradient of the logits."""

    numbers = 3

    def __init__(self, rows: Any, objective: Objective, statistics: Any = None, upstream: Any = ()) -> None:
        self.rows, self.objective, self.known, self.upstream = rows, objective, statistics, upstream
        self.chunks: list[Any] = []
        self.visited = 0

    def visit(self, logits: Array, target: Array, rows: slice) -> None:
        """Compute the statistics of these rows."""
        self.chunks.append(self.rows.statistics(logits, target, self.objective))
        self.visited = rows.stop

    def visit_with_gradient(self, logits: Array, target: Array, rows: slice) -> None:
        """The logits become the gradient of their statistics."""
        statistics = self.known._replace(lse=self.known.lse[rows], entropy=self.known.entropy[rows])
        upstream = tuple(numbers[rows] for numbers in self.upstream)
        self.rows.statistics_gradient(logits, target, statistics, upstream, self.objective, out=logits)

    def results(self, steps: Steps) -> Any:
        """Return the statistics of all rows."""
        kind = type(self.chunks[0])
        return kind(*(steps.joined(list(chunks)) for chunks in zip(*self.chunks, strict=True)))
