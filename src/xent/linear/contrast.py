"""The contrastive loss of two batches of embeddings in bounded memory: the linear loss of each batch against the other.

With z = logit_scale * a @ b.T, whose diagonal holds the positives, a pair i has the losses

    row[i]    = lse(z[i, :]) - z[i, i]                    of its embedding in `a` among all of `b`
    column[i] = lse(z[:, i]) - z[i, i]                    of its embedding in `b` among all of `a`

The similarities z are made some rows at a time, as the logits of a layer with the input `a` and the weight `b`. A first
visit has the rows of a chunk whole, and of each column a part: the log-sum-exps of the parts are added up (`Sums`). A
second visit makes the gradient of both directions at once,

    dz = row_scale * (exp(z - row_lse) - one_hot) + column_scale * (exp(z - column_lse) - one_hot)

which needs the log-sum-exps of whole columns. So there are four matrix products, or fewer where the workspace keeps
chunks from the first visit to the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import array_api_compat

from xent.linear.driver import NOTHING, Array, Gradients, Layer, Wanted, run
from xent.linear.plan import GOOD_ROWS, PADDING, ROW_UNIT
from xent.objective import Objective

COLUMN_ROWS = 256
"""Rows whose columns are summed at once: what a second-level cache has room for beside the next rows."""
REST = 4
"""The chunks that are made twice get this share of a workspace, one part of so many; the rest of it keeps a chunk."""


class Contrast(NamedTuple):
    """Loss and log-sum-exp of each pair, in float64: of its row, and of its column."""

    row_loss: Array
    row_lse: Array
    column_loss: Array
    column_lse: Array


class Side(NamedTuple):
    """What a gradient needs of each row, or of each column: loss and log-sum-exp, and the factor of the loss."""

    loss: Array
    lse: Array
    scale: Array


class Sums:
    """Log-sum-exps of rows or columns that come in parts: of the part with the positive, and of all others.

    The loss of a part is accurate where the positive is nearly all of it. So is that of the whole, to which the other
    parts add `log1p` of their share: positive terms only.
    """

    def __init__(self, like: Array, count: int) -> None:
        self.xp = xp = array_api_compat.array_namespace(like)
        new = {"dtype": xp.float64, "device": array_api_compat.device(like)}
        self.loss, self.lse, self.others = (xp.full((count,), start, **new) for start in (0.0, -xp.inf, -xp.inf))

    def add(self, places: slice, loss: Array, lse: Array, *, has_positives: bool) -> None:
        """Add a part of the rows or columns in these places."""
        if has_positives:
            self.loss[places], self.lse[places] = loss, lse
        else:
            self.others[places] = self.xp.logaddexp(self.others[places], lse)

    def whole(self) -> tuple[Array, Array]:
        """Loss and log-sum-exp."""
        xp = self.xp
        return self.loss + xp.log1p(xp.exp(self.others - self.lse)), xp.logaddexp(self.others, self.lse)


@dataclass
class Measure:
    """The first visit to the similarities of some rows of `a` and a piece of `b`.

    `own` says whether the positives of these rows are in the piece, row i with column i. The rows of a driver are those
    from `offset`.
    """

    backend: Any
    """A `Backend` of rows that may have `column_lse`, log-sum-exps of columns without the positives, and has
    `contrast_gradient`, which makes of some rows of x = a @ b.T

        logit_scale * (row_scale * exp(z - row_lse) + column_scale * exp(z - column_lse)),  z = logit_scale * x

    and at the positives, where nothing may cancel, the same less both scales by the losses.
    """
    objective: Objective
    rows: Sums
    columns: Sums | None
    own: bool = True
    offset: int = 0

    def visit(self, logits: Array, target: Array, rows: slice) -> None:
        """Add the log-sum-exps of rows and columns."""
        start = rows.start + self.offset
        places = slice(start, rows.stop + self.offset)
        self.rows.add(places, *self.backend.forward(logits, target, self.objective), has_positives=self.own)
        if self.columns is None:
            return
        if hasattr(self.backend, "column_lse"):
            self._add_columns(logits, start)
            return
        count, classes = logits.shape
        for first in range(0, count, COLUMN_ROWS):
            last = min(first + COLUMN_ROWS, count)
            own = slice(start + first, start + last) if self.own else slice(0, 0)
            labels = self._labels(target, classes, own)
            loss, lse = self.backend.forward(logits[first:last][None], labels[None], self.objective)
            self.columns.add(own, loss[own], lse[own], has_positives=True)
            for others in (slice(0, own.start), slice(own.stop, classes)):
                self.columns.add(others, loss[others], lse[others], has_positives=False)

    def _add_columns(self, logits: Array, start: int) -> None:
        """The same by a kernel for columns: a part that is the positive alone has loss 0."""
        count, classes = logits.shape
        scale, columns = self.objective.logit_scale, self.columns
        lse = self.backend.column_lse(logits, start if self.own else None, scale)
        if columns is None:
            return
        columns.add(slice(0, classes), lse, lse, has_positives=False)
        if self.own:
            xp = array_api_compat.array_namespace(logits)
            positives = xp.astype(logits.diagonal(start)[:count], xp.float64) * scale
            columns.add(slice(start, start + count), 0.0, positives, has_positives=True)

    def visit_with_gradient(self, logits: Array, target: Array, rows: slice) -> None:
        """A gradient needs the sums of all visits."""
        raise NotImplementedError

    def measured(self) -> Contrast:
        """Losses and log-sum-exps after all visits; of columns as of rows where only rows count."""
        of_rows = self.rows.whole()
        return Contrast(*of_rows, *(of_rows if self.columns is None else self.columns.whole()))

    def _labels(self, like: Array, classes: int, own: slice) -> Array:
        """The row of each column's positive; any of a column whose positive is not among the rows."""
        xp, device = array_api_compat.array_namespace(like), array_api_compat.device(like)
        labels = xp.zeros((classes,), dtype=xp.int64, device=device)
        labels[own] = xp.arange(own.stop - own.start, dtype=xp.int64, device=device)
        return labels


@dataclass
class Differentiate:
    """The second visit: the similarities become the gradient of a @ b.T."""

    backend: Any
    logit_scale: float
    rows: Side
    columns: Side | None
    own: bool = True
    offset: int = 0

    def visit(self, logits: Array, target: Array, rows: slice) -> None:
        """What is visited for no gradient is for `Measure`."""
        raise NotImplementedError

    def visit_with_gradient(self, logits: Array, target: Array, rows: slice) -> None:
        """Replace the similarities of these rows."""
        start = rows.start + self.offset
        of_rows = Side(*(numbers[start : rows.stop + self.offset] for numbers in self.rows))
        self.backend.contrast_gradient(logits, start if self.own else None, of_rows, self.columns, self.logit_scale)


def measure(backend: Any, layer: Layer, logit_scale: float, *, symmetric: bool, own: bool = True) -> Contrast:
    """Return losses and log-sum-exps of all pairs; `backend` is a `LinearBackend`. Columns count if `symmetric`.

    Of a piece of `b` without the positives of these rows (not `own`) the log-sum-exps alone mean something.
    """
    visit = _first_visit(backend, layer, logit_scale, symmetric=symmetric, own=own)
    backend.run(layer, visit, NOTHING)
    return visit.measured()


def gradients(
    backend: Any,
    layer: Layer,
    logit_scale: float,
    rows: Side,
    columns: Side | None,
    wanted: Wanted,
    *,
    own: bool = True,
) -> Gradients:
    """Return the wanted gradients of sum(scale * loss) over rows and columns; the similarities are made anew."""
    visit = Differentiate(backend.rows, logit_scale, rows, columns, own)
    found: Gradients = backend.run(layer, visit, wanted).gradients()
    return found


def measure_with_gradients(
    backend: Any, layer: Layer, logit_scale: float, scale: float, wanted: Wanted
) -> tuple[Contrast, Gradients]:
    """Both, in both directions, with `scale` for the loss of every row and column.

    As many similarities as the workspace has room for are kept from the first visit to the second.
    """
    kept = _kept(backend, layer, wanted)
    if kept is None:
        contrast = measure(backend, layer, logit_scale, symmetric=True)
        return contrast, gradients(backend, layer, logit_scale, *sides(contrast, scale), wanted)
    first, visit = kept.plan.chunk_rows, _first_visit(backend, layer, logit_scale, symmetric=True)
    rest = None if first == layer.rows else _rows_of(layer, first, layer.rows, layer.workspace // REST)
    logits = kept.make_logits(0, first)
    visit.visit(logits, kept.target(0, first), slice(0, first))
    if rest is not None:
        run(backend.steps(rest, NOTHING), replace(visit, offset=first), NOTHING)
    contrast = visit.measured()
    second = Differentiate(backend.rows, logit_scale, *sides(contrast, scale))
    second.visit_with_gradient(logits, None, slice(0, first))
    if wanted.input:
        kept.input_gradient(0, first)
    if wanted.weight:
        kept.weight_gradient(0, first, (0, layer.classes))
    found = kept.gradients()
    if rest is not None:
        steps = backend.steps(rest, wanted)
        run(steps, replace(second, offset=first), wanted)
        found = _together(found, steps.gradients())
    return contrast, found


def sides(contrast: Contrast, scale: Array | float) -> tuple[Side, Side]:
    """What the gradient of sum(scale * (row_loss + column_loss)) needs; one scale, or one for each pair."""
    scales = array_api_compat.array_namespace(contrast.row_loss).zeros_like(contrast.row_loss) + scale
    return Side(*contrast[:2], scales), Side(*contrast[2:], scales)


def _first_visit(backend: Any, layer: Layer, logit_scale: float, *, symmetric: bool, own: bool = True) -> Measure:
    columns = Sums(layer.target, layer.classes) if symmetric else None
    objective = Objective(reduction="none", logit_scale=logit_scale)
    return Measure(backend.rows, objective, Sums(layer.target, layer.rows), columns, own)


def _kept(backend: Any, layer: Layer, wanted: Wanted) -> Any:
    """The steps of the first rows, as many as one chunk of the workspace holds; None if that is not worth it.

    Gradients of the weight from two layers are added, which would round 16-bit ones twice.
    """
    if not layer.rows:
        return None
    row_bytes = layer.classes * layer.input.dtype.itemsize
    if layer.rows * row_bytes + PADDING <= layer.workspace:
        room, rows = layer.workspace, layer.rows
    elif layer.weight_gradient.itemsize < 4:
        return None
    else:
        room = layer.workspace - layer.workspace // REST
        rows = (room - PADDING) // row_bytes // ROW_UNIT * ROW_UNIT
    if rows < min(GOOD_ROWS, layer.rows):
        return None
    steps = backend.steps(_rows_of(layer, 0, rows, room), wanted)
    return steps if len(steps.plan.chunks) == 1 else None


def _rows_of(layer: Layer, first: int, last: int, workspace: int) -> Layer:
    return replace(layer, input=layer.input[first:last], target=layer.target[first:last], workspace=workspace)


def _together(first: Gradients, second: Gradients) -> Gradients:
    """The gradients of two layers that have different rows and the same weight."""
    input, weight = first.input, first.weight
    if input is not None:
        input = array_api_compat.array_namespace(input).concat([input, second.input], axis=0)
    if weight is not None:
        weight += second.weight
    return Gradients(input, weight, None)
