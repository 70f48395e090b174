"""The divergences of two rows of logits, and their gradients by the first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike

from xent.checks import Layout, as_numpy, as_rows, check_labels_shape, check_teacher_shape, from_rows
from xent.divergence import Direction, Divergence, DivergenceOptions
from xent.errors import DTypeError, ShapeError, message
from xent.numpy.backends import backends_for
from xent.numpy.listed_divergence import kl_divergence_from_list
from xent.numpy.logits import cross_entropy_value_and_grad
from xent.numpy.rows import Array, Rows, as_bits, sample_weights
from xent.reduction import mean_denominator
from xent.sparse import SparseTarget


def kl_divergence(
    logits: ArrayLike,
    target: ArrayLike | SparseTarget,
    *,
    direction: Direction = "forward",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    **options: Unpack[DivergenceOptions],
) -> Array:
    """KL divergence of two rows of logits, of a student (`logits`) from its teacher (`target`): distillation.

    *Definition*: with p_s = softmax(z of logits), p_t = softmax(z of target) and z = x * logit_scale / temperature, or
    softcapped as in `xent.Objective`, ``KL(p_t || p_s) = sum(p_t * (log p_t - log p_s))``, the order of `F.kl_div`;
    `direction="reverse"` is ``KL(p_s || p_t)``. For probabilities see `xent.information.kl_divergence`.

    Parameters
    ----------
    logits : array (C,), (N, C) or (N, C, d1, ...): the student's, real numbers; minus infinity masks a class.
    target : the teacher's logits, of the same shape; or a `SparseTarget`, its top k, for the forward direction.
    direction : "forward" or "reverse".
    labels : integers of the shape without C, optional: a row labelled `ignore_index` counts for nothing, and no other
        label means anything.
    sample_weight : one weight for each row; see `cross_entropy`.
    **options : temperature, temperature_squared, softcap, logit_scale, z_loss, ignore_index, reduction and denominator;
        see `xent.torch.kl_divergence`.

    Returns
    -------
    scalar in nats, or with `reduction="none"` an array of the logits' shape without C. Never negative, and 0 of equal
    logits; +inf where a class is possible in the first distribution and masked in the second. A mean is over the rows
    that count.

    Raises
    ------
    ShapeError, DTypeError, ObjectiveError

    Notes
    -----
    *Numerics*: each term is p_t * (d - 1 + exp(-d)) with d = log p_t - log p_s, which is 0 or more, by a series for
    small d. float32 for 16-bit and float32 logits, with sums over blocks in float64; float64 throughout for float64.

    Examples
    --------
    >>> float(kl_divergence([0.0, 0.0], [2.0, 0.0]).round(4))
    0.3278

    References
    ----------
    Kullback, Leibler (1951), On Information and Sufficiency
    """
    given: dict[str, Any] = {"direction": direction, **options}
    if isinstance(target, SparseTarget):
        return _from_list("kl_divergence", logits, target, labels, sample_weight, given)[0]
    return _rows("kl_divergence", "kl_divergence", logits, target, labels, sample_weight, given).value()


def kl_divergence_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike | SparseTarget,
    *,
    direction: Direction = "forward",
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    **options: Unpack[DivergenceOptions],
) -> tuple[Array, Array]:
    """`kl_divergence`, and its gradient with respect to the student's logits: of "forward" ``p_s - p_t``.

    Returns
    -------
    loss as `kl_divergence` gives it, and the gradient in the logits' shape and dtype. The teacher's gradient is that of
    the call with both exchanged and the other direction.

    Examples
    --------
    >>> loss, gradient = kl_divergence_value_and_grad([0.0, 0.0], [2.0, 0.0])
    >>> gradient.round(4)
    array([-0.3808,  0.3808])
    """
    given: dict[str, Any] = {"direction": direction, **options}
    call = "kl_divergence_value_and_grad"
    if isinstance(target, SparseTarget):
        return _from_list(call, logits, target, labels, sample_weight, given)
    return _rows(call, "kl_divergence", logits, target, labels, sample_weight, given).value_and_gradient()


def _from_list(
    call: str,
    logits: ArrayLike,
    target: SparseTarget,
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
    options: Mapping[str, Any],
) -> tuple[Array, Array]:
    x = as_numpy(call, "logits", logits)
    axis, loss = 0 if x.ndim == 1 else 1, partial(cross_entropy_value_and_grad, x)
    found, gradient, factor = kl_divergence_from_list(call, loss, target, x.shape, axis, labels, sample_weight, options)
    return found, gradient if factor == 1.0 else (factor * gradient).astype(gradient.dtype, copy=False)


def js_divergence(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    beta: float = 0.5,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    **options: Unpack[DivergenceOptions],
) -> Array:
    """Generalised Jensen-Shannon divergence of two rows of logits: between forward and reverse `kl_divergence`.

    *Definition*: ``beta * KL(p_t || m) + (1 - beta) * KL(p_s || m)`` with ``m = beta * p_t + (1 - beta) * p_s``.

    Parameters
    ----------
    logits, target, labels, sample_weight, **options : see `kl_divergence`.
    beta : the teacher's share of the mixture, between 0 and 1 and neither of them.

    Returns
    -------
    as `kl_divergence`; never infinite, and for beta = 1/2 at most log 2.

    Raises
    ------
    ShapeError, DTypeError, ObjectiveError

    Examples
    --------
    >>> float(js_divergence([0.0, -np.inf], [-np.inf, 0.0]).round(4))
    0.6931

    References
    ----------
    Lin (1991), Divergence Measures Based on the Shannon Entropy; Agarwal et al. (2024), arXiv:2306.13649
    """
    given: dict[str, Any] = {"beta": beta, **options}
    return _rows("js_divergence", "js_divergence", logits, target, labels, sample_weight, given).value()


def js_divergence_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    *,
    beta: float = 0.5,
    labels: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    **options: Unpack[DivergenceOptions],
) -> tuple[Array, Array]:
    """`js_divergence`, and its gradient with respect to the student's logits.

    Returns
    -------
    loss as `js_divergence` gives it, and the gradient in the logits' shape and dtype. The teacher's gradient is that of
    the call with both exchanged and 1 - beta.

    Examples
    --------
    >>> loss, gradient = js_divergence_value_and_grad([0.0, 0.0], [2.0, 0.0])
    >>> gradient.round(4)
    array([-0.1002,  0.1002])
    """
    given: dict[str, Any] = {"beta": beta, **options}
    call = "js_divergence_value_and_grad"
    return _rows(call, "js_divergence", logits, target, labels, sample_weight, given).value_and_gradient()


@dataclass(frozen=True)
class _Pair(Rows):
    student: Array
    """(rows, C), as `teacher`."""
    teacher: Array
    labels: Array | None
    options: Divergence
    given_dtype: np.dtype[Any]
    """Of the student."""

    def value(self) -> Array:
        """The loss."""
        arrays = (as_bits(self.student), as_bits(self.teacher), self.labels)
        return self.reduced(self.backends.divergences.forward(*arrays, self.options))

    def value_and_gradient(self) -> tuple[Array, Array]:
        """The loss and the gradient by the student."""
        arrays = (as_bits(self.student), as_bits(self.teacher), self.labels)
        losses, gradient = self.backends.divergences.forward_backward(*arrays, self.gradient_scale(), self.options)
        rows = gradient.view(self.student.dtype).astype(self.given_dtype, copy=False)
        return self.reduced(losses), from_rows(rows, self.layout)


def _rows(
    call: str,
    loss: str,
    logits: ArrayLike,
    target: ArrayLike,
    labels: ArrayLike | None,
    sample_weight: ArrayLike | None,
    options: dict[str, Any],
) -> _Pair:
    divergence = Divergence.of_loss(call, loss, options)
    s, t = floating(as_numpy(call, "logits", logits)), floating(as_numpy(call, "target", target))
    if not s.ndim:
        raise ShapeError(message(call, "logits", "found a single number", "Pass logits of shape (classes,) at least"))
    how = Layout(s.shape, 0 if s.ndim == 1 else 1, soft=True)
    check_teacher_shape(call, how, t.shape)
    kept, weights, denominator = of_rows(call, labels, sample_weight, how, divergence)
    given, dtype = s.dtype, common_dtype(s.dtype, t.dtype)
    s, t = (as_rows(array.astype(dtype, copy=False), how.class_axis) for array in (s, t))
    return _Pair(t, divergence, how, dtype, denominator, weights, s, t, kept, divergence, given)


def of_rows(
    call: str, labels: ArrayLike | None, sample_weight: ArrayLike | None, how: Layout, divergence: Divergence
) -> tuple[Array | None, Array | None, float]:
    """Labels and weights of the rows, and what a mean divides by."""
    kept = weights = None
    if labels is not None:
        kept = as_numpy(call, "labels", labels)
        if kept.dtype.kind not in "iu" and kept.size:
            remedy = "Labels only say which rows are ignored; for a mask, pass np.where(mask, 0, ignore_index)"
            raise DTypeError(message(call, "labels", f"found dtype {kept.dtype}, expected integers", remedy))
        check_labels_shape(call, kept.shape, how)
        kept = np.ascontiguousarray(kept.reshape(-1), dtype=np.int64)
    if sample_weight is not None:
        weights = sample_weights(call, sample_weight, how)
        weights = weights if kept is None else np.where(kept == divergence.ignore_index, 0.0, weights)
    count = backends_for(how.rows * how.classes).rows.count
    return kept, weights, float(mean_denominator(kept, None, how.rows, divergence, count, weights))


def floating(array: Array) -> Array:
    """Integers as float64."""
    return array.astype(np.float64) if array.dtype.kind in "iu" else array


def common_dtype(first: np.dtype[Any], second: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that holds the numbers of both; NumPy does not know it of bfloat16."""
    if first == second:
        return first
    known = (np.dtype(np.float32) if dtype.kind == "V" else dtype for dtype in (first, second))
    return np.result_type(*known)
