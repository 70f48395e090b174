"""The losses for NumPy arrays, and their gradients. Arguments are logits; for probabilities see `xent.information`.

Every loss has a twin that ends in `_value_and_grad`. The options are those of `xent.Objective`, which documents them:
weight, ignore_index, label_smoothing, z_loss, softcap, logit_scale, reduction and denominator.

Shapes follow torch: logits (C,), (N, C) or (N, C, d1, ...), with class indices of that shape without the axis C, or
class probabilities of exactly that shape. The loss of float16 logits is float32; otherwise it has the logits' dtype.
Gradients have the dtype of what they are the gradient of. With `reduction="none"` a gradient is that of the sum of the
losses. Integers and lists are read as float64. The caller's arrays are never written to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xent import reference
from xent.cpu import cross_entropy as cpu
from xent.errors import ObjectiveError, message
from xent.objective import Objective, Options
from xent.reduction import gradient_scale, mean_denominator, reduce
from xent.reference import Gradients
from xent.targets import (
    Layout,
    as_blocks,
    as_numpy,
    as_rows,
    check_linear_shapes,
    check_target,
    checked_layout,
    class_weight,
    from_rows,
    layout,
)

__all__ = [
    "Gradients",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "linear_cross_entropy",
    "linear_cross_entropy_value_and_grad",
    "squared_error",
    "squared_error_value_and_grad",
]

Array = NDArray[Any]


def cross_entropy(logits: ArrayLike, target: ArrayLike, **options: Unpack[Options]) -> Array:
    """Softmax cross-entropy of logits: log loss, negative log-likelihood of the labels, `F.cross_entropy`.

    *Definition*: ``loss = lse(x) - x[label]`` for a label, ``sum(p * (lse(x) - x))`` for class probabilities p, with
    ``lse(x) = log(sum(exp(x)))``; `xent.Objective` has the equation with all options.

    Parameters
    ----------
    logits : array (C,), (N, C) or (N, C, d1, ...), real numbers; minus infinity masks a class.
    target : class indices of that shape without C, in [0, C) or equal to `ignore_index`; or class probabilities of
        exactly that shape.
    **options : see `xent.Objective`.

    Returns
    -------
    scalar in nats, or with `reduction="none"` an array of the logits' shape without C. +inf if a label is masked. A
    mean over nothing but ignored rows is NaN (0 with `denominator`). A row with NaN or +inf is NaN.

    Raises
    ------
    LabelError, DistributionError
        A label is out of range; class probabilities are not distributions.
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: float32 for 16-bit and float32 logits, with sums over blocks in float64; float64 throughout for float64.
    docs/accuracy.md has bounds and measured errors. *Memory*: a few numbers per row beside the logits and the gradient.

    Examples
    --------
    >>> float(cross_entropy([[2.0, 1.0, 0.1], [0.5, 2.5, 0.0]], [0, 1]).round(4))
    0.3069

    References
    ----------
    Bridle (1990), Probabilistic Interpretation of Feedforward Classification Network Outputs
    """
    rows = _rows("cross_entropy", logits, target, options)
    losses, _ = cpu.forward(rows.bits, rows.target, rows.objective)
    return rows.reduced(losses)


def cross_entropy_value_and_grad(
    logits: ArrayLike, target: ArrayLike, **options: Unpack[Options]
) -> tuple[Array, Array]:
    """`cross_entropy`, and its gradient with respect to the logits: softmax minus target, ``q - p``.

    Returns
    -------
    loss as `cross_entropy` gives it, and the gradient in the logits' shape and dtype. Ignored rows have gradient 0.

    Examples
    --------
    >>> loss, gradient = cross_entropy_value_and_grad([0.0, 0.0], 0)
    >>> gradient
    array([-0.5,  0.5])
    """
    rows = _rows("cross_entropy_value_and_grad", logits, target, options)
    losses, _, gradient = cpu.forward_backward(rows.bits, rows.target, rows.gradient_scale, rows.objective)
    return rows.reduced(losses), gradient.view(rows.logits.dtype).reshape(rows.layout.logits_shape)


def squared_error(logits: ArrayLike, target: ArrayLike, **options: Unpack[Options]) -> Array:
    """Squared error between softmax(logits) and the target: L2 loss, the Brier score of a row.

    *Definition*: ``loss = sum((softmax(x) - p)**2)``, p one-hot for a label. Between 0 and 2, without a unit.

    Parameters, returns and errors are those of `cross_entropy`, except that there is no `weight` and no `z_loss`.

    Notes
    -----
    *Numerics*: made in float64 whatever the dtype of the logits, and rounded once.

    Examples
    --------
    >>> float(squared_error([0.0, 0.0], 0))
    0.5

    References
    ----------
    Brier (1950), Verification of forecasts expressed in terms of probability
    """
    rows = _rows("squared_error", logits, target, _without_weights("squared_error", options))
    return rows.reduced(reference.squared_error(*rows.wide(), rows.objective))


def squared_error_value_and_grad(
    logits: ArrayLike, target: ArrayLike, **options: Unpack[Options]
) -> tuple[Array, Array]:
    """`squared_error`, and its gradient with respect to the logits, ``2 q ((q - p) - sum(q (q - p)))``.

    Parameters and errors (raises) are those of `squared_error`: logits, target, and the options without weights.

    Returns
    -------
    loss as `squared_error` gives it, and the gradient in the logits' shape and dtype.

    Examples
    --------
    >>> loss, gradient = squared_error_value_and_grad([0.0, 0.0], 0)
    >>> gradient
    array([-0.5,  0.5])
    """
    call = "squared_error_value_and_grad"
    rows = _rows(call, logits, target, _without_weights(call, options))
    losses = reference.squared_error(*rows.wide(), rows.objective)
    gradient = reference.squared_error_gradient(*rows.wide(), rows.objective) * rows.gradient_scale
    return rows.reduced(losses), from_rows(gradient.astype(rows.dtype), rows.layout)


def linear_cross_entropy(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    **options: Unpack[Options],
) -> Array:
    """Softmax cross-entropy of a linear layer: the output layer and the loss in one, `F.linear_cross_entropy`.

    *Definition*: ``cross_entropy(input @ linear_weight.T + linear_bias, target)``.

    Parameters
    ----------
    input : array (..., features)
    linear_weight : array (C, features)
    target : class indices of shape (...), or class probabilities of shape (..., C)
    linear_bias : array (C,), optional
    **options : see `xent.Objective`.

    Returns
    -------
    as `cross_entropy`, in the dtype that `input` and `linear_weight` have together (float32 for float16).

    Raises
    ------
    LabelError, DistributionError, ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: made in float64 and rounded once. *Memory*: the logits, in float64.

    Examples
    --------
    >>> float(linear_cross_entropy([[1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [0]).round(4))
    0.6931
    """
    rows = _linear_rows("linear_cross_entropy", input, linear_weight, linear_bias, target, options)
    losses, _ = reference.linear_cross_entropy(rows.input, rows.weight, rows.bias, rows.target, rows.objective)
    return rows.reduced(losses)


def linear_cross_entropy_value_and_grad(
    input: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    linear_bias: ArrayLike | None = None,
    **options: Unpack[Options],
) -> tuple[Array, Gradients]:
    """`linear_cross_entropy`, and its gradients with respect to input, weight and bias.

    Returns
    -------
    loss as `linear_cross_entropy` gives it, and `Gradients(input, linear_weight, linear_bias)` in the shapes and dtypes
    of the arguments; `linear_bias` is None without a bias.

    Examples
    --------
    >>> loss, gradients = linear_cross_entropy_value_and_grad([[1.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [0])
    >>> gradients.linear_weight
    array([[-0.5,  0. ],
           [ 0.5,  0. ]])
    """
    call = "linear_cross_entropy_value_and_grad"
    rows = _linear_rows(call, input, linear_weight, linear_bias, target, options)
    arguments = (rows.input, rows.weight, rows.bias, rows.target)
    losses, _ = reference.linear_cross_entropy(*arguments, rows.objective)
    gradients = reference.linear_cross_entropy_gradients(*arguments, rows.gradient_scale, rows.objective)
    return rows.reduced(losses), rows.gradients(gradients)


# -------------------------------------------------------------------------------------- from arguments to rows and back


@dataclass(frozen=True)
class _Rows:
    """The checked arguments of a call, and the way back to the caller's shapes and dtypes.

    The target is (rows,) for class indices; class probabilities lie as the logits do, in the computing dtype, and so do
    the class weights of the objective.
    """

    target: Array
    objective: Objective
    layout: Layout
    dtype: np.dtype[Any]
    denominator: float

    @property
    def gradient_scale(self) -> float:
        return gradient_scale(self.denominator, self.objective)

    def reduced(self, losses: Array) -> Array:
        """The losses of the rows, their sum or their mean, as the caller gets it; sums are made in float64."""
        dtype = _computing_dtype(self.dtype)
        if self.objective.reduction == "none":
            return losses.reshape(self.layout.loss_shape).astype(dtype, copy=False)
        total = float(losses.sum(dtype=np.float64))
        return np.asarray(reduce(total, self.denominator, self.objective), dtype=dtype)[()]


@dataclass(frozen=True)
class _LogitRows(_Rows):
    logits: Array
    """(N, C), or (N, C, S) with all positions on the last axis."""

    @property
    def bits(self) -> Array:
        """The logits as the kernels take them: bfloat16 as the integers of its bits."""
        return self.logits.view(np.uint16) if self.dtype.kind == "V" else self.logits

    def wide(self) -> tuple[Array, Array]:
        """Logits (rows, C) and target in float64, as the reference takes them."""
        logits = as_rows(self.logits, 1).astype(np.float64)
        return logits, as_rows(self.target, 1).astype(np.float64) if self.layout.soft else self.target


@dataclass(frozen=True)
class _LinearRows(_Rows):
    input: Array
    weight: Array
    bias: Array | None
    input_shape: tuple[int, ...]
    dtypes: tuple[np.dtype[Any], np.dtype[Any], np.dtype[Any]]

    def gradients(self, gradients: Gradients) -> Gradients:
        dinput, dweight, dbias = gradients
        input_dtype, weight_dtype, bias_dtype = self.dtypes
        return Gradients(
            dinput.reshape(self.input_shape).astype(input_dtype),
            dweight.astype(weight_dtype),
            None if dbias is None else dbias.astype(bias_dtype),
        )


def _rows(call: str, logits: ArrayLike, target: ArrayLike, options: Options) -> _LogitRows:
    objective = Objective.of(call, options)
    x, y = as_numpy(call, "logits", logits), as_numpy(call, "target", target)
    x = x.astype(np.float64) if x.dtype.kind in "iu" else x
    how = layout(call, "logits", x.shape, y.shape, floating_target=y.dtype.kind not in "iu")
    common = _checked(call, y, how, objective, x.dtype, as_blocks)
    return _LogitRows(*common, as_blocks(x, how.class_axis))


def _linear_rows(
    call: str,
    input: ArrayLike,
    linear_weight: ArrayLike,
    linear_bias: ArrayLike | None,
    target: ArrayLike,
    options: Options,
) -> _LinearRows:
    objective = Objective.of(call, options)
    x, w = as_numpy(call, "input", input), as_numpy(call, "linear_weight", linear_weight)
    b = None if linear_bias is None else as_numpy(call, "linear_bias", linear_bias)
    y = as_numpy(call, "target", target)
    check_linear_shapes(call, x.shape, w.shape, None if b is None else b.shape)
    logits_shape = (*x.shape[:-1], w.shape[0])
    how = Layout(logits_shape, class_axis=len(logits_shape) - 1, soft=y.shape == logits_shape)
    checked_layout(call, "linear_weight", how, y.shape, floating_target=y.dtype.kind not in "iu")
    dtypes = (_floating(x.dtype), _floating(w.dtype), _floating((w if b is None else b).dtype))
    common = _checked(call, y, how, objective, np.result_type(*dtypes[:2]), as_rows)
    wide_bias = None if b is None else b.astype(np.float64)
    flat = x.reshape(-1, x.shape[-1]).astype(np.float64)
    return _LinearRows(*common, flat, w.astype(np.float64), wide_bias, x.shape, dtypes)


def _checked(
    call: str,
    target: Array,
    how: Layout,
    objective: Objective,
    dtype: np.dtype[Any],
    arrange: Callable[[Array, int], Array],
) -> tuple[Array, Objective, Layout, np.dtype[Any], float]:
    """Check the values of target and weight; return the fields that all kinds of rows share."""
    check_target(call, target, how, objective)
    weight = class_weight(call, objective, how.classes)
    computing = _computing_dtype(dtype)
    if how.soft:
        rows = arrange(target.astype(computing, copy=False), how.class_axis)
    else:
        rows = np.ascontiguousarray(target.reshape(-1), dtype=np.int64)
    denominator = float(mean_denominator(rows, weight, how.soft, how.rows, objective))
    objective = replace(objective, weight=None if weight is None else weight.astype(computing))
    return rows, objective, how, dtype, denominator


def _computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of losses, and of the arithmetic of the kernels: float64 for float64, float32 for anything narrower."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _without_weights(call: str, options: Options) -> Options:
    """The squared error has neither class weights nor a z-loss."""
    for option in ("weight", "z_loss"):
        if option in options:
            remedy = "Leave it out; it is an option of the cross-entropy"
            raise ObjectiveError(message(call, option, "the squared error has no such option", remedy))
    return options


def _floating(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype if dtype.kind == "f" else np.dtype(np.float64)
