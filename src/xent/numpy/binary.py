"""The binary cross-entropy of logits, elementwise, and its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xent.backends.binary_protocol import Elements, Visited, reduced_visit
from xent.checks import as_numpy, binary_options, check_binary_shapes, check_binary_target, check_weights
from xent.numpy.backends import backends_for
from xent.numpy.rows import as_bits
from xent.objective import BinaryOptions, Objective
from xent.reduction import reduce
from xent.reference import ignored_targets

Array = NDArray[Any]


def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    **options: Unpack[BinaryOptions],
) -> Array:
    """Binary cross-entropy of logits: logistic loss, multi-label loss, `F.binary_cross_entropy_with_logits`.

    *Definition*: ``loss = y * softplus(-x) + (1 - y) * softplus(x)`` of each logit and its target y, with
    ``softplus(x) = log(1 + exp(x))``: the cross-entropy between y and ``sigmoid(x)``. docs/definitions.md has the
    equation with all options.

    Parameters
    ----------
    logits : array of any shape, real numbers. Minus infinity is certainly 0, plus infinity certainly 1.
    target : array of that shape: probabilities of 1, in [0, 1], as floating point numbers, integers or booleans; or
        `ignore_index`.
    weight : array that broadcasts to that shape, 0 or more: a factor of the losses.
    pos_weight : array that broadcasts to that shape, 0 or more: a factor of the part of the target 1.
    sample_weight : one weight for each row, of the logits' shape without the last axis (one axis: of its shape). A mean
        divides by their sum over the elements that count. A loss of weight 0 counts for nothing, also an infinite one.
    **options : ignore_index, label_smoothing, softcap, logit_scale, focal_gamma, reduction and denominator of
        `xent.Objective`; label smoothing is towards 1/2, and a focal loss wants targets of 0 and 1.

    Returns
    -------
    scalar in nats, or with `reduction="none"` an array of the logits' shape; float32 for 16 bits, else of their dtype.
    A mean over no elements that count is NaN (0 with `denominator`).

    Raises
    ------
    LabelError
        A target is outside [0, 1].
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: float32 for 16-bit and float32 logits, sums in float64; float64 throughout for float64. Losses of
    confident right predictions keep their digits, and none is negative. *Memory*: the gradient alone.

    Examples
    --------
    >>> float(binary_cross_entropy_with_logits([[2.0, -1.0], [0.5, 0.0]], [[1, 0], [1, 0]]).round(4))
    0.4019

    References
    ----------
    Cox (1958), The Regression Analysis of Binary Sequences
    """
    call = "binary_cross_entropy_with_logits"
    return _elements(call, logits, target, weight, pos_weight, sample_weight, options).visited(gradient=False)[0]


def binary_cross_entropy_with_logits_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    **options: Unpack[BinaryOptions],
) -> tuple[Array, Array]:
    """`binary_cross_entropy_with_logits`, and its gradient with respect to the logits: ``sigmoid(x) - y``.

    Returns
    -------
    loss as `binary_cross_entropy_with_logits` gives it, and the gradient in the logits' shape and dtype; 0 for ignored
    elements.

    Examples
    --------
    >>> loss, gradient = binary_cross_entropy_with_logits_value_and_grad([0.0, 0.0], [1, 0], reduction="sum")
    >>> gradient
    array([-0.5,  0.5])
    """
    call = "binary_cross_entropy_with_logits_value_and_grad"
    return _elements(call, logits, target, weight, pos_weight, sample_weight, options).visited(gradient=True)


@dataclass(frozen=True)
class _Checked:
    """The checked arguments of a call."""

    call: str
    target: Array
    arrays: Elements
    dtype: np.dtype[Any]

    def visited(self, *, gradient: bool) -> tuple[Array, Any]:
        """The losses, their sum or their mean, and the gradient; an error if a target is why there is a NaN."""
        arrays, objective = self.arrays, self.arrays.objective
        backend = backends_for(arrays.logits.size).elements

        def visit(scale: float | None, out: Array | None) -> Visited:
            visited: Visited = backend.visit(arrays, scale, losses=objective.reduction == "none", out=out)
            return visited

        found, denominator = reduced_visit(backend, arrays, visit, gradient=gradient)
        if found.total != found.total:
            y = self.target.astype(np.float32) if self.target.dtype.kind == "V" else self.target
            check_binary_target(self.call, y, ignored_targets(y, objective), objective)
        made = found.gradient.view(self.dtype) if gradient else None
        if objective.reduction == "none":
            return found.losses, made
        dtype = np.float64 if self.dtype == np.float64 else np.float32
        return np.asarray(reduce(found.total, denominator, objective), dtype=dtype)[()], made


def _elements(
    call: str,
    logits: ArrayLike,
    target: ArrayLike,
    weight: ArrayLike | None,
    pos_weight: ArrayLike | None,
    sample_weight: ArrayLike | None,
    options: BinaryOptions,
) -> _Checked:
    binary_options(call, {name: value for name, value in options.items() if name not in BinaryOptions.__annotations__})
    objective = Objective.of(call, options)  # type: ignore[arg-type]
    x = as_numpy(call, "logits", logits)
    x = x.astype(np.float64) if x.dtype.kind in "iu" else x
    y = _target(call, target)
    given = {"weight": weight, "pos_weight": pos_weight, "sample_weight": sample_weight}
    weights = {name: None if value is None else as_numpy(call, name, value) for name, value in given.items()}
    shapes = {name: None if value is None else value.shape for name, value in weights.items()}
    check_binary_shapes(call, "logits", x.shape, target=y.shape, **shapes)
    weights = {name: None if value is None else value.astype(np.float64) for name, value in weights.items()}
    for name in ("weight", "pos_weight"):
        if weights[name] is not None:
            check_weights(call, weights[name], name)
    of_rows = weights["sample_weight"]
    if of_rows is not None and x.ndim > 1:
        weights["sample_weight"] = of_rows[..., np.newaxis]
    arrays = Elements(as_bits(x), as_bits(y), objective, **weights)
    return _Checked(call, y, arrays, x.dtype)


def _target(call: str, target: ArrayLike) -> Array:
    """The target in a dtype that kernels take: floating point numbers of any kind, uint8 or int64."""
    array = np.asarray(target)
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    array = as_numpy(call, "target", target)
    if array.dtype == np.uint64:  # what is beyond int64 is out of range, too
        array = np.minimum(array, np.uint64(np.iinfo(np.int64).max))
    return array.astype(np.int64) if array.dtype.kind in "iu" and array.dtype != np.uint8 else array
