"""Which column of a table is what: the user's words become a `Plan`, and a plan makes a state of a batch of the table.

Classes are matched by name. A wide table names them in its columns: the columns 'p_cat' and 'p_dog' of the pattern
'p_*' are the classes 'cat' and 'dog'. `classes=` names them where columns do not (a list column, explicit columns), and
sets their order, which is only the order in which they are shown: a label finds its column by its name.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from xent.errors import ArgumentError, DataError, LabelError, message
from xent.scoring.batch import Rows, row_scores, state_of
from xent.scoring.state import ScoreState
from xent.scoring.sums import Array

CALL = "score"
Names = str | Sequence[str]


@dataclass(frozen=True)
class Request:
    """What the user said, before any table was looked at."""

    label: Names | None = None
    proba: Names | None = None
    logits: Names | None = None
    log_prob: str | None = None
    entropy: str | None = None
    weight: str | None = None
    id: str | None = None
    by: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    options: Mapping[str, Any] = None  # type: ignore[assignment]
    """clip, tolerance, worst: for `ScoreState.from_batch`."""
    also: tuple[str, ...] = ()
    """Columns that are needed beside."""

    def plan(self, columns: Sequence[str], dtypes: Mapping[str, Any] | None = None) -> Plan:
        """Find the columns in a table with these columns."""
        return _Planner(self, list(columns), dtypes or {}).plan()


@dataclass(frozen=True)
class Plan:
    """Columns of a table by their roles."""

    kind: str
    """proba, logits or log_prob."""
    columns: tuple[str, ...]
    """The predictions: one for each class, or one of lists, of log-probabilities, or of class 1 of two."""
    classes: tuple[str, ...] | None
    """None with a list column: its length tells."""
    label: tuple[str, ...]
    """One column of class names, or one for each class with soft labels; none with log_prob."""
    request: Request

    @property
    def needed(self) -> list[str]:
        """All columns to be read."""
        r = self.request
        extra = [name for name in (r.entropy, r.weight, r.id, *r.by, *r.also) if name is not None]
        return list(dict.fromkeys([*self.label, *self.columns, *extra]))

    def state(self, frame: pl.DataFrame, first_row: int = 0) -> ScoreState:
        """The state of a batch."""
        r = self.request
        arrays = self._arrays(frame, first_row)
        classes = self._classes(arrays["given"])
        return state_of(
            arrays["labels"],
            **{self.kind: arrays["given"]},
            entropy=arrays["entropy"],
            weight=arrays["weight"],
            ids=None if r.id is None else _ids(frame[r.id], first_row),
            by={name: frame[name].cast(pl.String).to_numpy() for name in r.by},
            classes=classes,
            first_row=first_row,
            **(r.options or {}),
        )

    def rows(self, frame: pl.DataFrame, first_row: int = 0) -> Rows:
        """The scores of the rows of a batch, one by one."""
        arrays = self._arrays(frame, first_row)
        tolerance = (self.request.options or {}).get("tolerance")
        given = {self.kind: arrays["given"]}
        proba, logits, log_prob = (given.get(kind) for kind in ("proba", "logits", "log_prob"))
        return row_scores(arrays["labels"], proba, logits, log_prob, arrays["entropy"], arrays["weight"], tolerance)

    def names(self, frame: pl.DataFrame) -> tuple[str, ...]:
        """The names of the classes, as this batch tells them."""
        return self._classes(self._predictions(frame.head(1))) or ()

    def _arrays(self, frame: pl.DataFrame, first_row: int) -> dict[str, Any]:
        r = self.request
        given = self._predictions(frame)
        return {
            "given": given,
            "labels": self._labels(frame, given, first_row),
            "entropy": None if r.entropy is None else _numbers(frame, [r.entropy])[:, 0],
            "weight": None if r.weight is None else _numbers(frame, [r.weight])[:, 0],
        }

    def _predictions(self, frame: pl.DataFrame) -> Array:
        if len(self.columns) > 1:
            return _numbers(frame, list(self.columns))
        column = frame[self.columns[0]]
        if isinstance(column.dtype, pl.List | pl.Array):
            return _lists(column)
        return _numbers(frame, [column.name])[:, 0]

    def _classes(self, given: Array) -> tuple[str, ...] | None:
        if self.kind == "log_prob":
            return None
        number = given.shape[1] if given.ndim == 2 else 2
        classes = tuple(map(str, range(number))) if self.classes is None else self.classes
        if len(classes) != number:
            found = f"found {len(classes)} names for {number} classes"
            raise ArgumentError(message(CALL, "classes", found, "Name each class once"))
        return classes

    def _labels(self, frame: pl.DataFrame, given: Array, first_row: int) -> Array | None:
        if not self.label:
            return None
        if len(self.label) > 1:
            return _numbers(frame, list(self.label))
        column = frame[self.label[0]]
        if isinstance(column.dtype, pl.List | pl.Array):
            return _lists(column)
        return class_indices(column, self._classes(given) or (), first_row)


class _Planner:
    """Finds the columns; every error names the option and lists what there is."""

    def __init__(self, request: Request, columns: list[str], dtypes: Mapping[str, Any]) -> None:
        self.request, self.all, self.dtypes = request, columns, dtypes

    def plan(self) -> Plan:
        r = self.request
        kinds = {name: getattr(r, name) for name in ("proba", "logits", "log_prob") if getattr(r, name) is not None}
        if len(kinds) != 1:
            found = f"found {' and '.join(kinds) or 'none of them'}"
            remedy = f"Name the columns by exactly one of the three; there are {self.listed()}"
            raise ArgumentError(message(CALL, "proba, logits, log_prob", found, remedy))
        ((kind, names),) = kinds.items()
        for name in (r.entropy, r.weight, r.id, *r.by, *r.also):
            if name is not None:
                self.check("column", name)
        if kind == "log_prob":
            self.check(kind, names)
            return Plan(kind, (names,), None, (), r)
        columns, classes = self.predictions(kind, names)
        return Plan(kind, columns, classes, self.labels(classes, (*columns, r.weight, r.id, *r.by)), r)

    def predictions(self, kind: str, names: Names) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """The columns of the predictions, and the names of the classes."""
        given = self.request.classes
        if isinstance(names, str) and any(sign in names for sign in "*?["):
            found = self.matching(kind, names)
            return self.in_order(kind, found, given)
        columns = (names,) if isinstance(names, str) else tuple(names)
        for name in columns:
            self.check(kind, name)
        if len(columns) > 1:
            classes = columns if given is None else given
            if len(classes) != len(columns):
                found_text = f"found {len(classes)} names for {len(columns)} columns"
                raise ArgumentError(
                    message(CALL, "classes", found_text, "Name the classes in the order of the columns")
                )
            return columns, classes
        is_list = isinstance(self.dtypes.get(columns[0]), pl.List | pl.Array)
        return columns, given if given is not None or is_list else ("0", "1")

    def matching(self, option: str, pattern: str) -> dict[str, str]:
        """Columns by what the star of the pattern stands for."""
        names = [name for name in self.all if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            found = f"no column matches {pattern!r}"
            raise ArgumentError(message(CALL, option, found, f"The columns are {self.listed()}"))
        if pattern.count("*") != 1 or any(sign in pattern for sign in "?["):
            return {name: name for name in names}
        before, after = pattern.split("*")
        return {name[len(before) : len(name) - len(after) or None]: name for name in names}

    def in_order(
        self, option: str, found: Mapping[str, str], classes: tuple[str, ...] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The columns of these classes, in their order."""
        if classes is None:
            return tuple(found.values()), tuple(found)
        if set(classes) != set(found) or len(classes) != len(found):
            text = f"the columns are of {_listed(found)}, the classes {_listed(classes)}"
            raise ArgumentError(message(CALL, f"{option}, classes", text, "Name the classes as the columns do"))
        return tuple(found[name] for name in classes), classes

    def labels(self, classes: tuple[str, ...] | None, taken: tuple[str | None, ...]) -> tuple[str, ...]:
        """The column of the labels, or those of soft labels in the order of the classes."""
        label = self.request.label
        if label is None:
            others = [name for name in self.all if name not in taken]
            text = "which column holds the labels?"
            raise ArgumentError(message(CALL, "label", text, f"Name it; the other columns are {_listed(others)}"))
        if isinstance(label, str) and "*" not in label:
            self.check("label", label)
            return (label,)
        if isinstance(label, str):
            found = self.matching("label", label)
            return self.in_order("label", found, classes)[0]
        for name in label:
            self.check("label", name)
        if len(label) != len(classes or label):
            text = f"found {len(label)} columns for {len(classes or ())} classes"
            raise ArgumentError(message(CALL, "label", text, "Soft labels need one column for each class"))
        return tuple(label)

    def check(self, option: str, name: Any) -> None:
        if name not in self.all:
            raise ArgumentError(message(CALL, option, f"there is no column {name!r}", f"There are {self.listed()}"))

    def listed(self) -> str:
        return _listed(self.all)


def class_indices(labels: pl.Series, classes: tuple[str, ...], first_row: int) -> Array:
    """Labels as indices of the classes that they name; LabelError for a label that is no class."""
    if labels.null_count():
        row = first_row + int(labels.is_null().arg_max() or 0)
        raise DataError(message(CALL, "label", f"row {row} has no label", "Leave such rows out"))
    if labels.dtype == pl.Boolean and not {"true", "false"} & {name.lower() for name in classes}:
        labels = labels.cast(pl.Int8)
    if labels.dtype.is_float() and bool((labels == labels.floor()).all()):
        labels = labels.cast(pl.Int64)
    names = classes
    if labels.dtype.is_integer() and classes == tuple(map(str, range(len(classes)))):
        found = labels.cast(pl.Int64).to_numpy()
        unseen = (found < 0) | (found >= len(classes))
    else:
        if labels.dtype == pl.Boolean:
            names = tuple(name.lower() for name in classes)
        index = labels.cast(pl.String).cast(pl.Enum(names), strict=False).to_physical()
        unseen = index.is_null().to_numpy()
        found = index.fill_null(0).cast(pl.Int64).to_numpy()
    if unseen.any():
        bad = labels.filter(pl.Series(unseen))
        names_found = _listed(bad.unique(maintain_order=True).cast(pl.String).to_list())
        text = f"the label {names_found} (first in row {first_row + int(unseen.argmax())}) is none of the classes"
        remedy = f"The classes are {_listed(classes)}; classes= names them in the order of the columns"
        raise LabelError(message(CALL, "label", text, remedy))
    return np.asarray(found)


def _numbers(frame: pl.DataFrame, columns: list[str]) -> Array:
    """Columns as a matrix with a row for each row; missing values are NaN."""
    for name in columns:
        dtype = frame.schema[name]
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            text = f"column {name!r} holds {dtype}, not numbers"
            raise DataError(message(CALL, "data", text, "Convert the column, or leave it out of the pattern"))
    chosen = frame.select(columns)
    kinds = set(chosen.dtypes)
    if kinds != {pl.Float32}:
        chosen = chosen.cast(pl.Float64)
    matrix = chosen.to_numpy(order="c")
    return matrix.reshape(frame.height, len(columns))


def _lists(column: pl.Series) -> Array:
    """A column of lists of one length as a matrix."""
    if column.null_count():
        row = int(column.is_null().arg_max() or 0)
        raise DataError(message(CALL, "data", f"column {column.name!r} is empty in row {row} of its batch", "Fill it"))
    inner = column.dtype.inner  # type: ignore[attr-defined]
    if not inner.is_numeric():
        raise DataError(message(CALL, "data", f"column {column.name!r} holds lists of {inner}", "Expected numbers"))
    if isinstance(column.dtype, pl.List):
        lengths = column.list.len().unique().to_list()
        if len(lengths) > 1:
            text = f"column {column.name!r} holds lists of {min(lengths)} to {max(lengths)} numbers"
            raise DataError(message(CALL, "data", text, "Each row needs a number for each class"))
        width = lengths[0] if lengths else 0
    else:
        width = column.dtype.shape[0]  # type: ignore[attr-defined]
    flat = column.explode(empty_as_null=False) if len(column) else pl.Series([], dtype=inner)
    wanted = pl.Float32 if inner == pl.Float32 else pl.Float64
    return flat.cast(wanted).to_numpy().reshape(len(column), width)


def _ids(ids: pl.Series, first_row: int) -> Array:
    if ids.null_count():
        row = first_row + int(ids.is_null().arg_max() or 0)
        raise DataError(message(CALL, "id", f"row {row} has no id", "Choose a column that names every row"))
    if ids.dtype.is_integer():
        return ids.to_numpy()
    return ids.cast(pl.String).to_numpy()


def _listed(names: Any) -> str:
    every = [str(name) for name in names]
    return ", ".join(every[:20]) + (f" and {len(every) - 20} more" if len(every) > 20 else "")
