"""Targets that list a few classes of each row: the top k of a teacher, as offline distillation stores them.

A `SparseTarget` is what callers pass. `packed` makes rows of it that travel as one array, float64 (rows, 1, 2 or 3, k):
the class indices, which float64 holds up to 2^53, their probabilities, and, only where classes outside of the list have
any, the probability of each of those. Four axes are what tells such rows from class indices and from class
probabilities, which have fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import array_api_compat
import array_api_compat.numpy
import numpy as np

from xent.arrays import Array, first_wrong, sum_tolerance
from xent.checks import Layout
from xent.errors import DistributionError, DTypeError, LabelError, ObjectiveError, ShapeError, message

__all__ = ["SparseTarget"]

Tail = Literal["drop", "renormalise", "uniform"]
AXES = 4


@dataclass(frozen=True, eq=False)
class SparseTarget:
    """Class probabilities of which a few are known in each row: a target for the losses.

    With the classes `ids` of a row and their probabilities p, of C classes in all, a class j has

        drop          t[j] = p[j]              and 0 outside of the list: a row counts for sum(p), not for 1
        renormalise   t[j] = p[j] / sum(p)     and 0 outside of the list
        uniform       t[j] = p[j]              and (1 - sum(p)) / (C - k) outside of the list

    and the loss is that of class probabilities t.

    Parameters
    ----------
    ids : integers (k,), (N, k) or (N, k, d1, ...): class indices, in the place that logits have their classes; (..., k)
        for a linear layer. In a row each class may occur once.
    probs, log_probs : their probabilities, or the logarithms of those, of the shape of `ids`. One of the two. They may
        require a gradient.
    tail : what becomes of the probability that is not listed.

    Raises
    ------
    ObjectiveError
        Neither probabilities nor their logarithms are given, or both; there is no such `tail`. Shapes and numbers are
        checked by the loss.

    Notes
    -----
    *Memory*: 16 bytes for each class that is listed. Nothing of the logits' size is made, but for a few rows at a time
    with `uniform`, label smoothing and a z-loss.

    Examples
    --------
    >>> import numpy as np, xent
    >>> target = SparseTarget(ids=np.array([[2, 0]]), probs=np.array([[0.6, 0.3]]), tail="renormalise")
    >>> float(xent.numpy.cross_entropy([[1.0, 0.0, 2.0]], target).round(4))
    0.7409

    References
    ----------
    Hinton, Vinyals and Dean (2015), Distilling the Knowledge in a Neural Network
    """

    ids: Any
    probs: Any = None
    log_probs: Any = None
    tail: Tail = "drop"

    def __post_init__(self) -> None:
        if (self.probs is None) == (self.log_probs is None):
            found = "found both" if self.probs is not None else "found neither probs nor log_probs"
            raise ObjectiveError(message("SparseTarget", "probs", found, "Pass one of probs and log_probs"))
        if self.tail not in get_args(Tail):
            found = f"found {self.tail!r}, expected {', '.join(map(repr, get_args(Tail)))}"
            raise ObjectiveError(message("SparseTarget", "tail", found, "See help(xent.torch.SparseTarget)"))

    @property
    def given(self) -> Any:
        """The probabilities, or their logarithms."""
        return self.probs if self.log_probs is None else self.log_probs

    @property
    def tensors(self) -> tuple[Any, Any]:
        """Class indices, and what is given of their probabilities."""
        return self.ids, self.given

    def layout(self, call: str, logits_shape: tuple[int, ...], class_axis: int) -> Layout:
        """How logits of this shape and the target lie as rows; ShapeError or DTypeError if they do not fit."""
        how, shape = Layout(logits_shape, class_axis, soft=True), tuple(self.ids.shape)
        listed = shape[class_axis] if len(shape) == len(logits_shape) else 0
        wanted = (*logits_shape[:class_axis], listed or "k", *logits_shape[class_axis + 1 :])
        if shape != wanted:
            found = f"found ids of shape {shape} for logits of shape {logits_shape}"
            raise ShapeError(message(call, "target", found, f"List one class or more: {wanted}".replace("'", "")))
        if tuple(self.given.shape) != shape:
            found = f"found probabilities of shape {tuple(self.given.shape)} for ids of shape {shape}"
            raise ShapeError(message(call, "target", found, "Pass one probability for each class that is listed"))
        xp = namespace(self.ids)
        if not xp.isdtype(self.ids.dtype, "integral"):
            found = f"found ids of dtype {self.ids.dtype}"
            raise DTypeError(message(call, "target", found, "Pass integers"))
        if not xp.isdtype(self.given.dtype, "real floating"):
            found = f"found probabilities of dtype {self.given.dtype}"
            raise DTypeError(message(call, "target", found, "Pass floating point numbers"))
        return how


def namespace(array: Array) -> Any:
    """The functions of NumPy or of torch, without array_api_compat's search, which torch's compiler cannot trace."""
    if isinstance(array, np.ndarray):
        return array_api_compat.numpy
    import array_api_compat.torch as functions  # loads torch

    return functions


def is_sparse(target: Array) -> bool:
    """Whether rows of a target are packed ones."""
    return bool(target.ndim == AXES)


def packed(call: str, target: SparseTarget, layout: Layout, *, check: bool) -> Array:
    """The target as rows, (rows, 1, 2 or 3, k). With `check` its numbers are looked at, else a wrong row is NaN."""
    xp = namespace(target.ids)
    shape = (layout.rows, target.ids.shape[layout.class_axis])
    # Not moveaxis, for which torch.func has no batching rule.
    axes = (*(axis for axis in range(target.ids.ndim) if axis != layout.class_axis), layout.class_axis)
    ids, given = (xp.reshape(xp.permute_dims(array, axes), shape) for array in target.tensors)
    p = xp.astype(given, xp.float64)
    p = p if target.log_probs is None else xp.exp(p)
    if check:
        _check_ids(call, ids, layout.classes)
        _check_probabilities(call, p, float(xp.finfo(given.dtype).eps), target)
    known = (ids >= 0) & (ids < layout.classes)
    valid = xp.astype(xp.all(known, axis=1, keepdims=True), xp.float64)
    p = p * valid / valid  # 0 / 0 is NaN; tensors of several devices take no constants
    if target.tail == "renormalise":
        p = p / xp.sum(p, axis=1, keepdims=True)
    rows = [xp.astype(xp.where(known, ids, 0), xp.float64), p]  # not clip, which asks a symbolic size whether it is NaN
    if target.tail == "uniform" and layout.classes > shape[1]:
        rest = 1.0 - xp.sum(p, axis=1, keepdims=True)
        rows.append(xp.broadcast_to(xp.where(rest < 0, 0.0, rest) / (layout.classes - shape[1]), shape))
    return xp.stack(rows, axis=1)[:, None]


def unpacked(target: Array) -> tuple[Array, Array, Array | None]:
    """Class indices (rows, k), their probabilities, and (rows, 1) that of each other class, or None."""
    xp = namespace(target)
    ids = xp.astype(target[:, 0, 0], xp.int64)
    return ids, target[:, 0, 1], target[:, 0, 2, :1] if target.shape[2] > 2 else None


def dense(target: Array, classes: int, dtype: Any) -> Array:
    """Packed rows as class probabilities (rows, classes)."""
    xp = namespace(target)
    ids, p, rest = unpacked(target)
    shape, p = (target.shape[0], classes), xp.astype(p, dtype)
    if not isinstance(target, np.ndarray):
        start = p.new_zeros(shape) if rest is None else xp.astype(rest, dtype).expand(shape)
        return start.scatter(1, ids, p)
    whole = np.zeros(shape, dtype)
    if rest is not None:
        whole += rest.astype(dtype)
    np.put_along_axis(whole, ids, p, axis=1)
    return whole


def entropies(target: Array, classes: int) -> Array:
    """sum(-t * log t) of packed rows: what the KL divergence from a target is less than the cross-entropy to it."""
    xp = namespace(target)
    _, p, rest = unpacked(target)
    found = xp.sum(_surprise(xp, p), axis=1)
    if rest is not None:
        found = found + (classes - p.shape[1]) * _surprise(xp, rest)[:, 0]
    return found


def _surprise(xp: Any, p: Array) -> Array:
    return -p * xp.log(xp.where(p == 0, 1.0, p))


def packed_gradient(gradient: Array, target: Array) -> Array:
    """The gradient by packed rows of a torch tensor, from that by class probabilities."""
    ids, _, rest = unpacked(target)
    of_listed = gradient.gather(1, ids).to(target.dtype)
    nothing = of_listed.new_zeros(of_listed.shape)
    parts = [nothing, of_listed]
    if rest is not None:
        of_rest = gradient.sum(1, keepdim=True).to(target.dtype) - of_listed.sum(1, keepdim=True)
        # The probability of an unlisted class stands k times in its row; the first of them is what counts.
        parts.append(namespace(target).cat([of_rest, nothing[:, 1:]], 1))
    return namespace(target).stack(parts, axis=1)[:, None]


def _check_ids(call: str, ids: Array, classes: int) -> None:
    xp = namespace(ids)
    wrong = (ids < 0) | (ids >= classes)
    if xp.any(wrong):
        where, found = first_wrong(wrong, ids)
        problem = f"class index {found} at {where} is outside [0, {classes})"
        raise LabelError(
            message(call, "target", problem, "List classes; leave out what pads a list, with probability 0")
        )
    ordered = xp.sort(ids, axis=1)
    again = ordered[:, 1:] == ordered[:, :-1]
    if xp.any(again):
        where, found = first_wrong(again, ordered[:, 1:])
        problem = f"class {found} occurs twice in row {where.strip('(').split(',')[0]}"
        raise LabelError(message(call, "target", problem, "List each class once, with the sum of its probabilities"))


def _check_probabilities(call: str, p: Array, eps: float, target: SparseTarget) -> None:
    xp = namespace(p)
    tolerance, name = sum_tolerance(eps), "probs" if target.log_probs is None else "log_probs"
    wrong = ~((p >= 0) & (p <= 1 + tolerance))
    if xp.any(wrong):
        where, found = first_wrong(wrong, p)
        problem = f"{name}: {found:.6g} at {where} is not a probability"
        remedy = "Pass probabilities as probs, or their logarithms as log_probs; for logits subtract their log-sum-exp"
        raise DistributionError(message(call, "target", problem, remedy))
    totals = xp.sum(p, axis=1)
    too_much = totals > 1 + tolerance
    if xp.any(too_much):
        where, found = first_wrong(too_much, totals)
        problem = f"the probabilities that row {where} lists sum to {found:.9g}, which is more than 1"
        raise DistributionError(message(call, "target", problem, "Pass probabilities among all classes"))
    if target.tail == "renormalise" and xp.any(totals == 0):
        where, _ = first_wrong(totals == 0, totals)
        problem = f"the probabilities that row {where} lists sum to 0"
        raise DistributionError(message(call, "target", problem, "There is nothing to renormalise; use tail='drop'"))
