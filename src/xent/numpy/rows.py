"""From the arguments of a call to checked rows, and from the losses of rows to what the caller gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xent.arrays import is_numpy_bfloat16
from xent.backends.cpu.tile import computing_dtype
from xent.checks import (
    Layout,
    as_numpy,
    check_options_of_labels,
    check_sample_weight,
    check_target,
    class_weight,
)
from xent.focal import focal_loss, focal_slope
from xent.numpy.backends import Backends, backends_for
from xent.objective import Objective
from xent.reduction import gradient_scale, mean_denominator, reduce
from xent.sparse import SparseTarget, packed

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """The checked arguments of a call, and the way back to the caller's shapes and dtypes.

    The target is (rows,) for class indices; class probabilities lie as the logits do, in the dtype they came in. The
    class weights of the objective are float64.
    """

    target: Array
    objective: Objective
    layout: Layout
    dtype: np.dtype[Any]
    denominator: float
    sample_weight: Array | None
    """A factor of the loss of each row, in float64."""

    @property
    def backends(self) -> Backends:
        """What computes."""
        return backends_for(self.layout.rows * self.layout.classes)

    @property
    def of_rows(self) -> Objective:
        """The objective that kernels compute."""
        return self.objective.of_rows if self.objective.focal_gamma else self.objective

    def gradient_scale(self, losses: Array | None = None) -> Any:
        """d(result) / d(loss of a row): one number, or one for each row. A focal loss needs the losses of `of_rows`."""
        scale: Any = gradient_scale(self.denominator, self.objective)
        if losses is not None:
            scale = scale * focal_slope(losses.astype(np.float64), self.objective.focal_gamma, np)
        if self.sample_weight is not None:
            scale = scale * self.sample_weight
        return scale.astype(computing_dtype(self.dtype)) if isinstance(scale, np.ndarray) else scale

    def reduced(self, losses: Array) -> Array:
        """The losses of the rows, their sum or their mean, as the caller gets it; sums are made in float64."""
        dtype = computing_dtype(self.dtype)
        if self.objective.focal_gamma:
            losses = focal_loss(losses, self.objective.focal_gamma, np)
        if self.sample_weight is not None:
            uncounted = np.isinf(losses) & (self.sample_weight == 0)
            losses = (np.where(uncounted, 0.0, losses) * self.sample_weight).astype(losses.dtype)
        if self.objective.reduction == "none":
            return losses.reshape(self.layout.loss_shape).astype(dtype, copy=False)
        return np.asarray(reduce(self.backends.rows.total(losses), self.denominator, self.objective), dtype=dtype)[()]


def as_target(call: str, target: ArrayLike, logits_shape: tuple[int, ...]) -> Array:
    """The target as an array. Empty lists, of which NumPy makes floating point numbers, are no labels."""
    array = as_numpy(call, "target", target)
    is_without_dtype = array.size == 0 and not hasattr(target, "dtype")
    return array.astype(np.int64) if is_without_dtype and array.shape != logits_shape else array


def sparse_target(
    call: str, target: SparseTarget, logits_shape: tuple[int, ...], class_axis: int
) -> tuple[Array, Layout]:
    """A target that lists a few classes as rows, and how they lie."""
    ids, given = as_numpy(call, "target", target.ids), as_numpy(call, "target", target.given)
    given = given.astype(np.float32) if is_numpy_bfloat16(given.dtype) else given
    probs, log_probs = (given, None) if target.log_probs is None else (None, given)
    of_arrays = SparseTarget(ids, probs, log_probs, target.tail)
    how = of_arrays.layout(call, logits_shape, class_axis)
    rows: Array = packed(call, of_arrays, how, check=True)
    return rows, how


def checked(
    call: str,
    target: Array,
    how: Layout,
    objective: Objective,
    dtype: np.dtype[Any],
    arrange: Callable[[Array, int], Array] | None,
    sample_weight: ArrayLike | None = None,
) -> tuple[Array, Objective, Layout, np.dtype[Any], float, Array | None]:
    """Check the values of target and weight; return the fields that all kinds of rows share.

    `arrange` makes rows of class probabilities; None: the target is rows already, of a few classes each.
    """
    weight = class_weight(call, objective, how.classes)
    if arrange is None:
        check_options_of_labels(call, how, objective)
    else:
        check_target(call, target, how, objective)
    if arrange is None:
        rows = target
    elif how.soft:
        rows = arrange(target, how.class_axis)
    else:
        rows = np.ascontiguousarray(target.reshape(-1), dtype=np.int64)
    weights = None
    if sample_weight is not None:
        weights = sample_weights(call, sample_weight, how)
        if not how.soft:
            weights = np.where(rows == objective.ignore_index, 0.0, weights)
    if objective.focal_gamma and weight is not None:  # class weights are weights of rows, so that kernels need not know
        known = rows != objective.ignore_index
        weights = weight[rows * known] * known * (1.0 if weights is None else weights)
        weight = None
    labels = None if how.soft else rows
    count = backends_for(how.rows * how.classes).rows.count
    denominator = float(mean_denominator(labels, weight, how.rows, objective, count, weights))
    objective = objective if weight is objective.weight else replace(objective, weight=weight)
    return rows, objective, how, dtype, denominator, weights


def sample_weights(call: str, sample_weight: ArrayLike, how: Layout) -> Array:
    """The weights of rows in float64, of the shape of the losses before, (rows,) after."""
    weights = as_numpy(call, "sample_weight", sample_weight)
    check_sample_weight(call, weights.shape, how)
    return weights.astype(np.float64).reshape(-1)


def as_bits(array: Array) -> Array:
    """bfloat16, which is a "void" to NumPy, as the integers of its bits."""
    return array.view(np.uint16) if array.dtype.kind == "V" else array
