"""The losses of logits, and their gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import numpy as np
from numpy.typing import ArrayLike

from xent import reference
from xent.backends.cpu.tile import computing_dtype
from xent.checks import as_blocks, as_numpy, as_rows, from_rows, layout
from xent.errors import ObjectiveError, message
from xent.numpy.rows import Array, Rows, as_bits, as_target, checked, sparse_target
from xent.objective import Objective, Options
from xent.sparse import SparseTarget, dense, is_sparse


def cross_entropy(
    logits: ArrayLike,
    target: ArrayLike | SparseTarget,
    *,
    sample_weight: ArrayLike | None = None,
    **options: Unpack[Options],
) -> Array:
    """Softmax cross-entropy of logits: log loss, negative log-likelihood of the labels, `F.cross_entropy`.

    *Definition*: ``loss = lse(x) - x[label]`` for a label, ``sum(p * (lse(x) - x))`` for class probabilities p, with
    ``lse(x) = log(sum(exp(x)))``; `xent.Objective` has the equation with all options.

    Parameters
    ----------
    logits : array (C,), (N, C) or (N, C, d1, ...), real numbers; minus infinity masks a class.
    target : class indices of that shape without C, in [0, C) or equal to `ignore_index`; or class probabilities of
        exactly that shape; or a `SparseTarget`, which lists a few classes of each row.
    sample_weight : one weight for each loss, of its shape. A mean divides by the sum of the weights (times those of the
        labels' classes). A loss of weight 0 counts for nothing, also an infinite one.
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
    rows = _rows("cross_entropy", logits, target, options, sample_weight)
    losses, _ = rows.backends.rows.forward(rows.bits, rows.kernel_target, rows.of_rows)
    return rows.reduced(losses)


def cross_entropy_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike | SparseTarget,
    *,
    sample_weight: ArrayLike | None = None,
    **options: Unpack[Options],
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
    rows = _rows("cross_entropy_value_and_grad", logits, target, options, sample_weight)
    arrays = (rows.bits, rows.kernel_target)
    if rows.objective.focal_gamma:
        losses, saved = rows.backends.rows.forward(*arrays, rows.of_rows)
        gradient = rows.backends.rows.backward(*arrays, saved, rows.gradient_scale(losses), rows.of_rows)
    else:
        losses, _, gradient = rows.backends.rows.forward_backward(*arrays, rows.gradient_scale(), rows.objective)
    gradient = gradient.view(rows.logits.dtype)
    if is_sparse(rows.target):
        return rows.reduced(losses), from_rows(gradient, rows.layout)
    return rows.reduced(losses), gradient.reshape(rows.layout.logits_shape)


def squared_error(logits: ArrayLike, target: ArrayLike | SparseTarget, **options: Unpack[Options]) -> Array:
    """Squared error between softmax(logits) and the target: L2 loss, the Brier score of a row.

    *Definition*: ``loss = sum((softmax(x) - p)**2)``, p one-hot for a label. Between 0 and 2, without a unit.

    Parameters, returns and errors are those of `cross_entropy`, without `weight`, `z_loss` and `focal_gamma`.

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
    logits: ArrayLike, target: ArrayLike | SparseTarget, **options: Unpack[Options]
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
    gradient = reference.squared_error_gradient(*rows.wide(), rows.objective) * rows.gradient_scale()
    return rows.reduced(losses), from_rows(gradient.astype(rows.dtype), rows.layout)


@dataclass(frozen=True)
class _LogitRows(Rows):
    logits: Array
    """(N, C), or (N, C, S) with all positions on the last axis."""

    @property
    def bits(self) -> Array:
        """The logits as the kernels take them: bfloat16 as the integers of its bits."""
        return as_bits(self.logits)

    @property
    def kernel_target(self) -> Array:
        """Class indices, or class probabilities in the dtype that the kernels compute in."""
        is_whole = self.layout.soft and not is_sparse(self.target)
        return self.target.astype(computing_dtype(self.dtype), copy=False) if is_whole else self.target

    def wide(self) -> tuple[Array, Array]:
        """Logits (rows, C) and target in float64, as the reference takes them."""
        logits = as_rows(self.logits, 1).astype(np.float64)
        if is_sparse(self.target):
            return logits, dense(self.target, self.layout.classes, np.float64)
        return logits, as_rows(self.target, 1).astype(np.float64) if self.layout.soft else self.target


def _rows(
    call: str,
    logits: ArrayLike,
    target: ArrayLike | SparseTarget,
    options: Options,
    sample_weight: ArrayLike | None = None,
) -> _LogitRows:
    objective = Objective.of(call, options)
    x = as_numpy(call, "logits", logits)
    x = x.astype(np.float64) if x.dtype.kind in "iu" else x
    if isinstance(target, SparseTarget):
        rows, how = sparse_target(call, target, x.shape, 0 if x.ndim == 1 else 1)
        common = checked(call, rows, how, objective, x.dtype, None, sample_weight)
        return _LogitRows(*common, as_rows(x, how.class_axis))
    y = as_target(call, target, x.shape)
    how = layout(call, "logits", x.shape, y.shape, floating_target=y.dtype.kind not in "iu")
    common = checked(call, y, how, objective, x.dtype, as_blocks, sample_weight)
    return _LogitRows(*common, as_blocks(x, how.class_axis))


def _without_weights(call: str, options: Options) -> Options:
    """The squared error has neither class weights nor a z-loss."""
    for option in ("weight", "z_loss", "focal_gamma"):
        if option in options:
            remedy = "Leave it out; it is an option of the cross-entropy"
            raise ObjectiveError(message(call, option, "the squared error has no such option", remedy))
    return options
