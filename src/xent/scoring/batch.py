"""A batch of rows, checked, and the score of each of its rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

import numpy as np

from xent.arrays import is_numpy_bfloat16, sum_tolerance
from xent.backends.cpu.backend import CpuBackend
from xent.errors import ArgumentError, DTypeError, LabelError, ShapeError, message
from xent.objective import Objective
from xent.scoring import loops
from xent.scoring.rows import hard_rows, soft_rows
from xent.scoring.sums import Array, zeros

CALL = "ScoreState.from_batch"
MOST_WEIGHT = 1e100
"""Squares of larger weights, which an interval is made of, would be infinite."""
EMPTY, NO_INDEX, NO_MATRIX = np.empty(0), np.empty(0, np.int64), np.empty((0, 0))


@dataclass
class Rows:
    """The score of each row of a batch. What does not apply is an empty array."""

    loss: Array
    status: Array
    label: Array = field(default_factory=lambda: NO_INDEX)
    weight: Array = field(default_factory=lambda: EMPTY)
    entropy: Array = field(default_factory=lambda: EMPTY)
    p: Array = field(default_factory=lambda: NO_MATRIX)
    target: Array = field(default_factory=lambda: NO_MATRIX)
    brier: Array = field(default_factory=lambda: EMPTY)
    confidence: Array = field(default_factory=lambda: EMPTY)
    predicted: Array = field(default_factory=lambda: NO_INDEX)
    correct: Array = field(default_factory=lambda: EMPTY)
    one_vs_rest: Array = field(default_factory=lambda: EMPTY)
    """The histogram of all rows, valid or not, where it was asked for and there are neither weights nor soft labels."""


def row_scores(
    labels: Any,
    proba: Any = None,
    *,
    logits: Any = None,
    log_prob: Any = None,
    entropy: Any = None,
    weight: Any = None,
    tolerance: float | None = None,
    renormalise: bool = False,
    reasons: Any = None,
    count: bool = False,
) -> Rows:
    """Score each row of a batch; the arguments are those of `ScoreState.from_batch`.

    `count` asks for the histograms of the classes as well, if one visit to the rows can make them.
    """
    predictions = {"proba": proba, "logits": logits, "log_prob": log_prob}
    kinds = [kind for kind, values in predictions.items() if values is not None]
    if len(kinds) != 1:
        problem = f"found {' and '.join(kinds) or 'none of them'}"
        raise ArgumentError(message(CALL, "proba, logits, log_prob", problem, "Pass exactly one of the three"))
    if log_prob is not None:
        rows = _rows_of_log_probabilities(log_prob, entropy)
    elif entropy is not None:
        raise ArgumentError(message(CALL, "entropy", "found it without log_prob", "Pass it together with log_prob"))
    else:
        count = count and weight is None
        rows = _rows_of_classes(labels, kinds[0], predictions[kinds[0]], tolerance, renormalise, count)
    if reasons is not None:
        known = one_per_row("reasons", as_array(CALL, "reasons", reasons), len(rows.loss))
        rows.status[:] = np.where(known > loops.VALID, known, rows.status)
    if weight is not None:
        rows.weight = one_per_row("weight", _numbers("weight", weight), len(rows.loss)).astype(np.float64)
        rows.status[~((rows.weight >= 0) & (rows.weight <= MOST_WEIGHT))] = loops.WRONG_WEIGHT
        rows.status[rows.weight == 0] = loops.NO_WEIGHT
    return rows


def _rows_of_log_probabilities(log_prob: Any, entropy: Any) -> Rows:
    """Score rows of which only the log-probability of the label is known."""
    loss = 0.0 - _numbers("log_prob", log_prob).astype(np.float64)
    if loss.ndim != 1:
        problem = f"found shape {loss.shape}, expected (rows,)"
        raise ShapeError(message(CALL, "log_prob", problem, "Pass the log-probability of each row's label"))
    # A log-probability that rounding left just above 0 counts as 0.
    status = np.where(loss >= -1e-6, loops.VALID, loops.NOT_A_PROBABILITY).astype(np.int8)
    rows = Rows(np.maximum(loss, 0.0), status)
    if entropy is not None:
        rows.entropy = one_per_row("entropy", _numbers("entropy", entropy), len(loss)).astype(np.float64)
        status[~(np.isfinite(rows.entropy) & (rows.entropy >= 0))] = loops.NOT_A_PROBABILITY
    return rows


def _rows_of_classes(
    labels: Any, kind: str, predictions: Any, tolerance: float | None, renormalise: bool, count: bool
) -> Rows:
    """Score rows with a probability or logit for each class."""
    p, tolerance = _matrix(kind, predictions, tolerance)
    if renormalise and kind == "proba":
        p = _renormalised(p)
    number, classes = p.shape
    label = as_array(CALL, "labels", labels)
    soft = label.ndim == 2
    if label.shape not in ((number,), (number, classes)):
        problem = f"found shape {label.shape} for {kind} of shape {p.shape}"
        raise ShapeError(message(CALL, "labels", problem, f"Pass ({number},) class indices or ({number}, {classes})"))
    if soft:
        p, target = np.ascontiguousarray(p), np.ascontiguousarray(_numbers("labels", label), np.float64)
    else:
        label = _checked_labels(label, classes)
    log_p = EMPTY
    if kind == "logits":
        p, log_p = _softmax(p, None if soft else label)
        tolerance = max(tolerance, 1e-6)
    loss, status = np.empty(number), np.empty(number, np.int8)
    brier, confidence, predicted = np.empty(number), np.empty(number), np.empty(number, np.int64)
    rows = Rows(loss, status, p=p, brier=brier, confidence=confidence, predicted=predicted)
    if soft:
        rows.target, rows.entropy, rows.correct = target, np.empty(number), np.empty(number)
        log_p = log_p if log_p.ndim == 2 else NO_MATRIX
        soft_rows(p, target, log_p, tolerance, loss, brier, confidence, predicted, rows.entropy, rows.correct, status)
    else:
        rows.label, rows.correct = label, np.empty(number, np.int8)
        if count and classes <= loops.FEW_CLASSES:
            rows.one_vs_rest = zeros(classes, loops.PROBABILITY_BINS, 3)
        per_row = (loss, brier, confidence, predicted, rows.correct, status)
        hard_rows(p, label, log_p, tolerance, *per_row, rows.one_vs_rest.reshape(-1))
    return rows


def _renormalised(p: Array) -> Array:
    """Return rows of numbers of 0 or more divided by their sums; others are left, and not valid."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        total = p.sum(axis=1, keepdims=True, dtype=np.float64)
        usable = (total > 0) & np.isfinite(total) & (p.min(axis=1, keepdims=True) >= 0)
        return np.ascontiguousarray(np.where(usable, p / np.where(usable, total, 1.0), p))


def _softmax(logits: Array, label: Array | None) -> tuple[Array, Array]:
    """Return probabilities, and the log-probability of each label or, without labels, those of all classes.

    The loss comes from the logits: a probability of 1e-400 underflows to 0, but its logarithm is finite.
    """
    logits = np.ascontiguousarray(logits, np.float64)
    any_label = np.zeros(len(logits), np.int64) if label is None else label
    loss, lse = CpuBackend().forward(logits, any_label, Objective(ignore_index=-1, reduction="none"))
    with np.errstate(invalid="ignore", over="ignore"):
        log_p = logits - lse[:, np.newaxis]
        return np.exp(log_p), np.ascontiguousarray(log_p) if label is None else 0.0 - loss


def _matrix(kind: str, predictions: Any, tolerance: float | None) -> tuple[Array, float]:
    """Return predictions as float32 or float64 (rows, classes), and how far from 1 their sums may be.

    They are contiguous, by rows or, if there are few classes, by columns.
    """
    p = _numbers(kind, predictions)
    if tolerance is None:
        is_bfloat16 = "bfloat16" in str(getattr(predictions, "dtype", ""))
        eps = float(np.finfo(p.dtype).eps) if p.dtype.kind == "f" else 0.0
        tolerance = sum_tolerance(2.0**-7 if is_bfloat16 else eps)
    elif not (isinstance(tolerance, Real) and tolerance >= 0):
        problem = f"found {tolerance!r}, expected a number of 0 or more"
        raise ArgumentError(message(CALL, "tolerance", problem, "Omit it for the tolerance of the dtype"))
    if p.dtype != np.float32:
        p = p.astype(np.float64, copy=False)
    if p.ndim == 1:
        second = p.astype(np.float64, copy=False)
        if kind == "proba":  # what rounding left above 1 counts as 1
            first = np.where((second > 1) & (second <= 1 + tolerance), 0.0, 1.0 - second)
        else:
            first = np.zeros_like(second)
        p = np.stack([first, second], axis=1)
    if p.ndim != 2 or p.shape[1] == 0:
        problem = f"found shape {p.shape}, expected (rows, classes) or (rows,)"
        raise ShapeError(message(CALL, kind, problem, "Pass one row per prediction"))
    by_columns = p.flags.f_contiguous and p.shape[1] <= loops.FEW_CLASSES
    return p if by_columns else np.ascontiguousarray(p), float(tolerance)


def _checked_labels(label: Array, classes: int) -> Array:
    if label.dtype.kind not in "iub":
        problem = f"found dtype {label.dtype}, expected integers"
        raise DTypeError(
            message(CALL, "labels", problem, "Pass class indices; xent.score also takes names, with classes=")
        )
    label = np.ascontiguousarray(label.astype(np.int64, copy=False))
    outside = label.view(np.uint64) >= classes  # those below 0 are as well
    if outside.any():
        row = int(outside.argmax())
        problem = f"class index {label[row]} at row {row} is outside [0, {classes})"
        raise LabelError(message(CALL, "labels", problem, f"Labels of {classes} classes end at {classes - 1}"))
    return label


def as_array(call: str, argument: str, values: Any) -> Array:
    """Return values of any kind as a NumPy array; DTypeError if they do not make one.

    Tensors lose their gradients, and bfloat16, which NumPy does not have, becomes float32.
    """
    try:
        array = np.asarray(_of_torch(values) if hasattr(values, "detach") else values)
        return array.astype(np.float32) if is_numpy_bfloat16(array.dtype) else array
    except (TypeError, ValueError, RuntimeError) as error:
        problem = f"found a {type(values).__name__} that NumPy cannot read ({error})"
        raise DTypeError(message(call, argument, problem, "Pass an array, or nested lists of equal length")) from None


def _of_torch(tensor: Any) -> Any:
    """Return a tensor that NumPy can read: without a gradient, in memory, and bfloat16 as float32."""
    tensor = tensor.detach().cpu()
    return tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor


def _numbers(argument: str, values: Any) -> Array:
    array = as_array(CALL, argument, values)
    if array.dtype.kind not in "fiub":
        problem = f"found dtype {array.dtype}, expected numbers"
        raise DTypeError(message(CALL, argument, problem, "Convert it to numbers first"))
    return array


def one_per_row(argument: str, array: Array, count: int) -> Array:
    """Return the array; ShapeError unless it has one value per row."""
    if array.shape != (count,):
        problem = f"found shape {array.shape}, expected ({count},)"
        raise ShapeError(message(CALL, argument, problem, "Pass one value per row"))
    return array


def checked_clip(call: str, clip: float | None) -> float | None:
    """Return the clip as a float; ArgumentError unless it is None or between 0 and 1."""
    if clip is None:
        return None
    if not (isinstance(clip, Real) and 0 < clip < 1):
        problem = f"found {clip!r}, expected a probability between 0 and 1"
        raise ArgumentError(message(call, "clip", problem, "Omit it to score probabilities as they are"))
    return float(clip)


def checked_count(call: str, argument: str, count: Any) -> int:
    """Return a number of rows as an int; ArgumentError unless it is a whole number of 0 or more."""
    if not (isinstance(count, Integral) and count >= 0):
        problem = f"found {count!r}, expected a whole number of 0 or more"
        raise ArgumentError(message(call, argument, problem, "Pass an int"))
    return int(count)
