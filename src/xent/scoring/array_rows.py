"""Arrays of predictions, in memory or in npz and npy files, as rows that are scored in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from xent.arrays import sum_tolerance
from xent.errors import ArgumentError, DataError, DTypeError, ShapeError, message
from xent.names import listed, quoted, shown_path
from xent.scoring.batch import as_array
from xent.scoring.files import CALL, Files, find_files
from xent.scoring.form import without_unknown
from xent.scoring.labels import Way, class_indices, find_way
from xent.scoring.limits import load_arrays
from xent.scoring.pieces import Piece, Settled
from xent.scoring.selection import keys_of_ids
from xent.scoring.sums import Array

BATCH_NUMBERS = 2**20
"""Probabilities per batch: with many classes a batch has fewer rows."""
TOLERANCE_OF_BFLOAT16 = sum_tolerance(2.0**-7)


def is_array(data: Any) -> bool:
    """Whether this is an array of some library, or lists that make one."""
    libraries = ("torch", "jax", "jaxlib", "cupy")
    return isinstance(data, np.ndarray | list) or (
        hasattr(data, "__array_namespace__") or type(data).__module__.split(".")[0] in libraries
    )


def arrays_of_files(files: Files, roles: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays that the roles name, from an npz file or from npy files."""
    if len(files.paths) > 1:
        problem = f"found {len(files.paths)} files of arrays in {shown_path(files.paths[0].parent)}"
        raise DataError(message(CALL, "data", problem, "Pass one npz file, or one npy file"))
    path = files.paths[0]
    arrays = load_arrays(path)

    def array_of(role: str, name: Any) -> Array | None:
        if name is None:
            return None
        if isinstance(name, str) and name in arrays:
            return arrays[name]()
        if isinstance(name, str) and name.endswith(".npy"):
            return load_arrays(find_files(name).paths[0])["proba"]()
        problem = f"there is no array {quoted(name)} in {shown_path(path.name)}"
        raise ArgumentError(message(CALL, role, problem, f"It has {listed(arrays)}; other files are named *.npy"))

    named = {role: array_of(role, name) for role, name in roles.items()}
    kinds = [named.get(kind) for kind in ("proba", "logits", "log_prob")]
    if "proba" in roles and all(kind is None for kind in kinds) and "proba" in arrays:
        named["proba"] = arrays["proba"]()
    return named


@dataclass(frozen=True)
class ArrayRows:
    """Arrays of equal length, checked: predictions of one kind, and what else is known of the rows."""

    kind: str
    predictions: Array
    columns: Mapping[str, Any]
    segments: Mapping[str, Any]
    names: tuple[str, ...]
    options: Mapping[str, Any]
    skip: bool

    @property
    def again(self) -> bool:
        return True

    @property
    def has_labels(self) -> bool:
        return self.kind != "log_prob" and bool(self.columns["label"].ndim == 1)

    @property
    def notes(self) -> Sequence[str]:
        return ()

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def column_names(self) -> Sequence[str]:
        return self.names if self.predictions.ndim == 2 else self.names[1:]

    def pieces(self, settled: Settled) -> Iterator[Piece]:
        """Slice the arrays."""
        rows = len(self.predictions)
        size = max(1024, BATCH_NUMBERS // len(self.names))
        for first in range(0, rows, size):
            last = min(first + size, rows)
            ids = self.columns["id"]
            keys = None if ids is None else keys_of_ids(ids[first:last])
            yield last - first, keys, partial(self._arguments, first, last, settled)

    def find_way(self) -> Way:
        """Return how the labels stand for the classes."""
        return find_way([_series("label", self.columns["label"])], self.names, ())

    def matrices(self, soft: bool) -> Iterator[Array]:
        """Yield the predictions, or soft labels."""
        yield self.columns["label"] if soft else self.predictions

    def _arguments(self, first: int, last: int, settled: Settled) -> dict[str, Any]:
        part: dict[str, Any] = {name: None if c is None else c[first:last] for name, c in self.columns.items()}
        reasons = None
        if self.kind == "log_prob":
            part["label"] = None
        elif part["label"].ndim == 1:
            series = _series("label", part["label"])
            part["label"] = class_indices(series, self.names, first, settled.way, self.skip)
            if self.skip:
                part["label"], reasons = without_unknown(part["label"])
        return {
            self.kind: self.predictions[first:last],
            "labels": part["label"],
            "entropy": part["entropy"],
            "weight": part["weight"],
            "ids": part["id"],
            **{name: part.get(name) for name in ("cluster", "bytes", "characters")},
            "by": {name: column[first:last] for name, column in self.segments.items()},
            "classes": None if self.kind == "log_prob" else self.names,
            "first_row": first,
            "reasons": reasons,
            **self.options,
            **({} if settled.tolerance is None else {"tolerance": settled.tolerance}),
        }


def array_rows(
    arrays: Mapping[str, Any],
    columns: Mapping[str, Any],
    by: Any,
    classes: tuple[str, ...] | None,
    options: Mapping[str, Any],
    skip: bool,
) -> ArrayRows:
    """Check arrays of predictions (by their kind), of labels, weights, ids, entropies and segments."""
    present = {kind: array for kind, array in arrays.items() if array is not None}
    if len(present) != 1:
        problem = f"found {' and '.join(present) or 'none of them'}"
        raise ArgumentError(message(CALL, "proba, logits, log_prob", problem, "Name exactly one array of predictions"))
    ((kind, array),) = present.items()
    if kind == "proba" and "bfloat16" in str(getattr(array, "dtype", "")) and options.get("tolerance") is None:
        options = {**options, "tolerance": TOLERANCE_OF_BFLOAT16}
    predictions = as_array(CALL, kind, array)
    if predictions.ndim == 2 and predictions.shape[1] == 1 and kind != "log_prob" and len(classes or "01") == 2:
        is_one_class = kind == "proba" and classes is None and bool((predictions == 1).all())
        predictions = predictions if is_one_class else predictions[:, 0]
    rows = predictions.shape[0] if predictions.ndim else 0
    if not rows:
        raise DataError(message(CALL, "data", "there are no rows", "Pass at least one"))
    if kind != "log_prob" and columns["label"] is None:
        raise ArgumentError(message(CALL, "label", "there are no labels", "Pass an array of class indices or names"))
    if kind == "log_prob" and columns["label"] is not None:
        problem = "found it beside log-probabilities, which are those of the labels already"
        raise ArgumentError(message(CALL, "label", problem, "Omit it, or pass probabilities of all classes"))
    if by is not None and not isinstance(by, Mapping) and (not hasattr(by, "__len__") or len(by)):
        problem = f"found a {type(by).__name__}"
        raise ArgumentError(message(CALL, "by", problem, "With arrays, pass a mapping from a name to an array"))
    whole: dict[str, Any] = {name: _column(name, column, rows) for name, column in columns.items()}
    segments: dict[str, Any] = {name: _column(f"by[{quoted(name)}]", c, rows) for name, c in dict(by or {}).items()}
    number = 2 if predictions.ndim == 1 else predictions.shape[1]
    if predictions.ndim > 2 or not number:
        problem = f"found shape {predictions.shape}, expected (rows, classes) or (rows,)"
        raise ShapeError(message(CALL, kind, problem, "Pass one row per prediction"))
    names = classes or tuple(map(str, range(number)))
    if kind != "log_prob" and len(names) != number:
        problem = f"found {len(names)} names for {number} classes"
        raise ArgumentError(message(CALL, "classes", problem, "Name each class once, in the order of the columns"))
    return ArrayRows(kind, predictions, whole, segments, names, options, skip)


def _column(name: str, values: Any, rows: int) -> Array | None:
    if values is None:
        return None
    column = as_array(CALL, name, values)
    if column.shape == (rows, 1) and name == "label":
        column = column[:, 0]
    if column.shape[:1] != (rows,):
        problem = f"found shape {column.shape} for {rows} rows"
        raise ShapeError(message(CALL, name, problem, "Pass one value per row"))
    return column


def _series(argument: str, values: Array) -> pl.Series:
    try:
        series = pl.Series(values.tolist() if values.dtype.kind == "O" else values)
        if series.dtype == pl.Object:
            raise TypeError("objects of other kinds")
        return series
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        problem = f"found values that make no column ({error})"
        raise DTypeError(message(CALL, argument, problem, "Pass integers, booleans or text, all of one kind")) from None
