"""Labels as scikit-learn takes them, turned into indices of the columns of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from xent.arrays import check_is_dense
from xent.errors import DistributionError, DTypeError, LabelError, ShapeError, message
from xent.names import listed, quoted
from xent.scoring.batch import as_array
from xent.scoring.sums import Array


def coded(call: str, y_true: Any, y_proba: Any, labels: Sequence[Any] | None) -> tuple[Array, Array]:
    """Return probabilities, and the labels as indices of their columns, or as distributions over them."""
    truth, proba = _arrays(call, y_true, y_proba)
    columns = 2 if proba.ndim == 1 else proba.shape[1]
    try:
        names = None if labels is None else list(labels)
        if names is not None:
            _check_names(call, names)
        if truth.ndim == 2:
            return proba, _indicators(call, truth, columns, names)
        classes = np.unique(truth).tolist() if names is None else names
        _check_number(call, classes, columns, "in y_true" if names is None else "in labels")
        is_index = truth.dtype.kind in "iu" and truth.size > 0 and classes == list(range(columns))
        if is_index and truth.min() >= 0 and truth.max() < columns:
            return proba, truth
        order = np.argsort(np.asarray(classes), kind="stable")
        ordered = np.asarray(classes)[order]
        place = np.searchsorted(ordered, truth).clip(0, len(classes) - 1)
        unseen = ordered[place] != truth
    except (TypeError, ValueError) as error:
        if isinstance(error, LabelError | DistributionError | ShapeError | DTypeError):
            raise
        raise _incomparable(call, "y_true, labels", error) from None
    if unseen.any():
        problem = f"the label {quoted(truth[unseen].tolist()[0])} is none of the classes {listed(classes)}"
        raise LabelError(message(call, "y_true", problem, "Name every class in labels="))
    return proba, order[place]


def coded_one_class(call: str, y_true: Any, y_proba: Any, pos_label: Any) -> tuple[Array, Array]:
    """Return the probabilities of one of two classes, and 1 for the labels that are this class."""
    truth, proba = _arrays(call, y_true, y_proba)
    if truth.ndim == 2:
        return proba, _indicators(call, truth, 2, None)
    try:
        found = np.unique(truth).tolist()
    except TypeError as error:
        raise _incomparable(call, "y_true", error) from None
    if len(found) > 2:
        problem = f"found {len(found)} classes, {listed(found)}, for one column of probabilities"
        raise LabelError(message(call, "y_true", problem, "Pass a column for each class"))
    usual = truth.dtype.kind in "biuf" and (set(found) <= {0, 1} or set(found) <= {-1, 1})
    if pos_label is None and not usual and (truth.dtype.kind not in "iuf" or len(found) < 2):
        problem = f"it is not clear which of the classes {listed(found)} the probabilities are of"
        raise LabelError(message(call, "pos_label", problem, "Name that class"))
    positive = pos_label if pos_label is not None else 1 if usual else found[-1]
    if len(found) == 2 and positive not in found:
        problem = f"{quoted(positive)} is none of the classes {listed(found)}"
        raise LabelError(message(call, "pos_label", problem, "Name the class that the probabilities are of"))
    return proba, np.asarray(truth == positive).astype(np.int64)


def coded_elements(call: str, y_true: Any, y_proba: Any) -> tuple[Array, Array]:
    """Return a probability for each row and label, and 1 where the row has the label."""
    check_is_dense(call, "y_true", y_true)
    truth, proba = as_array(call, "y_true", y_true), as_array(call, "y_proba", y_proba)
    if proba.ndim != 2 or truth.shape != proba.shape:
        problem = f"found shapes {truth.shape} and {proba.shape}, expected (rows, labels) twice"
        raise ShapeError(message(call, "y_true, y_proba", problem, "Pass a column for each label in both"))
    if truth.dtype.kind not in "biuf" or not ((truth == 0) | (truth == 1)).all():
        found = (
            listed(np.unique(truth[(truth != 0) & (truth != 1)]).tolist())
            if truth.dtype.kind in "biuf"
            else truth.dtype
        )
        raise LabelError(message(call, "y_true", f"found {found}, expected 0 and 1", "Pass indicators of the labels"))
    return proba, truth.astype(np.int64)


def check_lengths(call: str, argument: str, array: Array, rows: int) -> None:
    """ShapeError unless the array has one value for each row."""
    if array.shape != (rows,):
        problem = f"found shape {array.shape} for {rows} rows of y_proba"
        raise ShapeError(message(call, argument, problem, "Pass one value per row"))


def _arrays(call: str, y_true: Any, y_proba: Any) -> tuple[Array, Array]:
    """Return both as arrays of equal length; a single column becomes one-dimensional."""
    check_is_dense(call, "y_true", y_true)
    truth, proba = as_array(call, "y_true", y_true), as_array(call, "y_proba", y_proba)
    truth, proba = (array.reshape(-1) if array.shape[1:] == (1,) else array for array in (truth, proba))
    if proba.ndim not in (1, 2):
        problem = f"found shape {proba.shape}, expected (rows, classes) or (rows,)"
        raise ShapeError(message(call, "y_proba", problem, "Pass one row per prediction"))
    if truth.ndim not in (1, 2) or len(truth) != len(proba):
        problem = f"found shapes {truth.shape} and {proba.shape}"
        raise ShapeError(message(call, "y_true, y_proba", problem, "Pass one label for each row of y_proba"))
    return truth, proba


def _indicators(call: str, truth: Array, columns: int, names: list[Any] | None) -> Array:
    """Return class indices for one-hot rows, else the rows, which have to be distributions over the columns."""
    if names is not None:
        _check_number(call, names, columns, "in labels")
    if truth.shape[1] != columns:
        problem = f"found {truth.shape[1]} columns of indicators for {columns} columns of probabilities"
        raise ShapeError(message(call, "y_true", problem, "Pass the columns of both in the same order"))
    if truth.dtype.kind not in "biuf":
        problem = f"found dtype {truth.dtype} in two dimensions, expected indicators"
        raise DTypeError(message(call, "y_true", problem, "Pass 0 and 1, or one label for each row"))
    marked = truth != 0
    if (marked.sum(axis=1) == 1).all() and (truth[marked] == 1).all():
        return np.asarray(marked.argmax(axis=1))
    if truth.dtype.kind != "f" or (truth == np.floor(truth)).all():
        row = int((marked.sum(axis=1) != 1).argmax())
        problem = f"row {row} has {int(marked[row].sum())} labels, expected one"
        raise DistributionError(message(call, "y_true", problem, "Rows of several labels are for multilabel_log_loss"))
    return truth


def _check_names(call: str, names: list[Any]) -> None:
    """LabelError if a class is named twice."""
    repeated = (
        [name for place, name in enumerate(names) if name in names[:place]] if len(set(names)) < len(names) else []
    )
    if repeated:
        problem = f"found {quoted(repeated[0])} twice"
        raise LabelError(message(call, "labels", problem, "Name the class of each column once, in their order"))


def _check_number(call: str, classes: list[Any], columns: int, whose: str) -> None:
    if len(classes) != columns:
        problem = f"found {len(classes)} classes {whose} for {columns} columns of probabilities"
        raise LabelError(message(call, "labels", problem, "Name the class of each column, in their order"))


def _incomparable(call: str, argument: str, error: Exception) -> DTypeError:
    problem = f"the labels cannot be compared with each other ({error})"
    return DTypeError(message(call, argument, problem, "Pass labels of one kind, all text or all numbers"))
