"""The float64 definitions as a backend of NumPy arrays: what serves where nothing may be compiled (NUMBA_DISABLE_JIT).

Slow, and as accurate as the dtype allows: results are rounded once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from xent import reference
from xent.arrays import rounded, widened
from xent.backends.protocol import Statistics
from xent.divergence import Divergence
from xent.linear.contrast import Contrast
from xent.linear.divergence import Pair
from xent.linear.driver import Gradients, Layer, Wanted
from xent.objective import Objective
from xent.reduction import weighted_count
from xent.sparse import dense, is_sparse

Array = NDArray[Any]


NOTHING_IS_COMPILED = bool(getattr(numba.config, "DISABLE_JIT", 0))
"""Whether NUMBA_DISABLE_JIT is set, as Numba has read it."""

if NOTHING_IS_COMPILED:
    SAID = "xent: NUMBA_DISABLE_JIT is set, so that the float64 definitions serve in place of kernels, slowly"
    warnings.warn(SAID, RuntimeWarning, stacklevel=2)


@dataclass(frozen=True)
class DefinitionsBackend:
    """The definitions of `xent.reference` (`xent.backends.Backend`)."""

    reads_values = True
    one_visit = True
    has_second_derivatives = True

    def compute_dtype(self, dtype: Any) -> np.dtype[Any]:
        """The dtype of losses: float64 for float64, float32 for everything narrower."""
        return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)

    def forward(self, logits: Array, target: Array, objective: Objective) -> tuple[Array, Array]:
        """Return the losses and log-sum-exps of the rows."""
        with np.errstate(all="ignore"):
            losses, lse = reference.cross_entropy(wide_rows(logits), _target(target, logits.shape[1]), objective)
            return losses.astype(self.compute_dtype(dtype_of(logits))), lse

    def backward(
        self,
        logits: Array,
        target: Array,
        saved: Array,
        row_scale: Array | float,
        objective: Objective,
        *,
        out: Array | None = None,
    ) -> Array:
        """Return the gradient of sum(row_scale * loss)."""
        with np.errstate(all="ignore"):
            rows = reference.cross_entropy_gradient(wide_rows(logits), _target(target, logits.shape[1]), objective)
            gradient = like_logits(rows * np.reshape(row_scale, (-1, 1)), logits)
        if out is None:
            return gradient
        out[...] = gradient
        return out

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
        losses, saved = self.forward(logits, target, objective)
        return losses, saved, self.backward(logits, target, saved, row_scale, objective, out=out)

    def statistics(self, logits: Array, labels: Array, objective: Objective) -> Statistics:
        """Return log_prob, entropy, lse, argmax and rank of each row."""
        x = wide_rows(logits)
        known = (labels >= 0) & (labels < x.shape[1]) & (labels != objective.ignore_index)
        place, rows = np.where(known, labels, 0), np.arange(len(x))
        unknown = np.where(labels == objective.ignore_index, 0.0, np.nan)
        rank = np.where(known, (x > x[rows, place][:, None]).sum(axis=1), -1)
        dtype = self.compute_dtype(dtype_of(logits))
        with np.errstate(all="ignore"):
            minus_log_q, lse = reference.negative_log_softmax(reference.softcapped_logits(x, objective))
            entropy = (np.exp(-minus_log_q) * np.where(np.isposinf(minus_log_q), 0.0, minus_log_q)).sum(axis=1)
            log_prob = np.where(known, -minus_log_q[rows, place], unknown)
            return Statistics(log_prob.astype(dtype), entropy.astype(dtype), lse, x.argmax(axis=1), rank)

    def statistics_gradient(
        self,
        logits: Array,
        labels: Array,
        statistics: Statistics,
        upstream: tuple[Array, Array, Array],
        objective: Objective,
        *,
        out: Array | None = None,
    ) -> Array:
        """Only torch differentiates statistics, and has its own formulas."""
        raise NotImplementedError

    def count(
        self, labels: Array, weight: Array | None, ignore_index: int, sample_weight: Array | None = None
    ) -> float:
        """Return the weighted count of the labels that are not `ignore_index`."""
        return float(weighted_count(labels, weight, ignore_index, sample_weight))

    def total(self, losses: Array) -> float:
        """Return the sum of the losses."""
        return float(losses.sum(dtype=np.float64))


@dataclass(frozen=True)
class DefinitionsLinear:
    """The linear loss by the definitions, which hold the logits (`xent.linear.backend.LinearBackend`)."""

    rows: DefinitionsBackend

    def forward(self, layer: Layer, objective: Objective) -> tuple[Array, Array]:
        """Return losses and log-sum-exps of the rows."""
        return self.rows.forward(_logits(layer), layer.target, objective)

    def forward_backward(
        self, layer: Layer, row_scale: Any, objective: Objective, wanted: Wanted
    ) -> tuple[Array, Array, Gradients]:
        """Return losses, log-sum-exps, and the wanted gradients of sum(row_scale * loss)."""
        losses, saved, dlogits = self.rows.forward_backward(_logits(layer), layer.target, row_scale, objective)
        return losses, saved, _of_layer(layer, dlogits, wanted)

    def statistics(self, layer: Layer, objective: Objective) -> Statistics:
        """Return the statistics of each row."""
        return self.rows.statistics(_logits(layer), layer.target, objective)

    def contrast(self, layer: Layer, logit_scale: float, *, symmetric: bool) -> Contrast:
        """Return losses and log-sum-exps of a contrastive loss of input and weight."""
        z, options = _logits(layer), Objective(reduction="none", logit_scale=logit_scale)
        of_rows = reference.cross_entropy(z, layer.target, options)
        return Contrast(*of_rows, *(reference.cross_entropy(z.T, layer.target, options) if symmetric else of_rows))

    def contrast_with_gradients(
        self, layer: Layer, logit_scale: float, scale: float, wanted: Wanted
    ) -> tuple[Contrast, Gradients]:
        """Return the same, and the gradients of scale * sum(loss)."""
        a, b = layer.input.astype(np.float64), layer.weight.astype(np.float64)
        da, db = reference.contrastive_gradients(a, b, logit_scale, 2 * scale)
        of_weight = db.astype(layer.weight_gradient)
        return self.contrast(layer, logit_scale, symmetric=True), Gradients(
            like_logits(da, layer.input), of_weight, None
        )


class DefinitionsDivergence:
    """The divergences by the definitions (`xent.backends.divergence_protocol.DivergenceBackend`)."""

    def forward(self, student: Array, teacher: Array, labels: Array | None, options: Divergence) -> Array:
        """Return the loss of each row."""
        with np.errstate(all="ignore"):
            losses = reference.divergence(wide_rows(student), wide_rows(teacher), labels, options)
            return losses.astype(np.float64 if student.dtype == np.float64 else np.float32)

    def forward_backward(
        self,
        student: Array,
        teacher: Array,
        labels: Array | None,
        row_scale: Array | float,
        options: Divergence,
        *,
        out: Array | None = None,
        after: float = 1.0,
    ) -> tuple[Array, Array]:
        """Return losses, and the gradient of sum(row_scale * loss) by the student's logits, times `after`."""
        losses = self.forward(student, teacher, labels, options)
        with np.errstate(all="ignore"):
            rows = reference.divergence_gradient(wide_rows(student), wide_rows(teacher), labels, options)
            gradient = like_logits(rows * np.reshape(row_scale, (-1, 1)) * after, student)
        if out is None:
            return losses, gradient
        out[...] = gradient
        return losses, out


class DefinitionsLinearDivergence:
    """The divergences of two layers by the definitions, which hold the logits."""

    def forward(self, pair: Pair, options: Divergence) -> tuple[Array, None]:
        """Return the losses of the rows."""
        rows = DefinitionsDivergence()
        losses = rows.forward(_logits(pair.student), _logits(pair.teacher), pair.labels, options)
        return losses.astype(_loss_dtype(pair)), None

    def forward_backward(
        self, pair: Pair, row_scale: Any, options: Divergence, wanted: Wanted
    ) -> tuple[Array, None, Gradients]:
        """Return the losses, and the wanted gradients of sum(row_scale * loss) by the student's layer."""
        arrays = (_logits(pair.student), _logits(pair.teacher), pair.labels)
        losses, dlogits = DefinitionsDivergence().forward_backward(*arrays, row_scale, options)
        return losses.astype(_loss_dtype(pair)), None, _of_layer(pair.student, dlogits, wanted)


def _loss_dtype(pair: Pair) -> Any:
    return np.float64 if pair.student.input.dtype == np.float64 else np.float32


def _of_layer(layer: Layer, dlogits: Array, wanted: Wanted) -> Gradients:
    """The wanted gradients of a layer, from that by its logits."""
    x, w, dtype = layer.input.astype(np.float64), layer.weight.astype(np.float64), layer.input.dtype
    return Gradients(
        (dlogits @ w).astype(dtype) if wanted.input else None,
        (dlogits.T @ x).astype(layer.weight_gradient) if wanted.weight else None,
        dlogits.sum(axis=0).astype(dtype) if wanted.bias and layer.bias is not None else None,
    )


def _logits(layer: Layer) -> Array:
    bias = None if layer.bias is None else layer.bias.astype(np.float64)
    return reference.linear_logits(layer.input.astype(np.float64), layer.weight.astype(np.float64), bias)


def dtype_of(logits: Array) -> Any:
    """The dtype of logits, of which bfloat16 comes as bits."""
    return np.float32 if logits.dtype == np.uint16 else logits.dtype


def wide_rows(logits: Array) -> Array:
    """Logits (rows, classes) or (outer, classes, inner), also the bits of bfloat16, as float64 (rows, classes).

    Rows lie side by side whatever the order of the logits is, so that sums are made in one order.
    """
    logits = widened(logits)
    rows = logits if logits.ndim == 2 else np.moveaxis(logits, 1, 2).reshape(-1, logits.shape[1])
    return rows.astype(np.float64, order="C")


def _target(target: Array, classes: int) -> Array:
    if is_sparse(target):
        whole: Array = dense(target, classes, np.float64)
        return whole
    return wide_rows(target) if target.dtype.kind == "f" else target


def like_logits(rows: Array, logits: Array) -> Array:
    """Gradients of rows in the shape and dtype of the logits."""
    if logits.ndim == 3:
        outer, classes, inner = logits.shape
        rows = np.moveaxis(rows.reshape(outer, inner, classes), 2, 1)
    return rounded(rows, logits.dtype)
