"""What a table is taken to mean: which columns are the label, the predictions, the weight, the id and the segments.

A `Request` holds the columns that the caller named, a `Plan` the columns found for it in one table, and `Form` what
the resulting scores have in common. Classes are matched by name. A wide table names them in its columns: the columns
'p_cat' and 'p_dog' of the pattern 'p_*' are the classes 'cat' and 'dog'. `classes=` names them where columns do not (a
list column, explicitly listed columns) and sets the order in which they are reported; labels find columns by name.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from xent.errors import ArgumentError, DataError, LabelError, message
from xent.names import listed, quoted, shown_name
from xent.scoring.sums import Array

CALL = "score"
ONE_ROW_PER_ID = "An id names one row; omit id=, or choose a column without repetitions"
ONE_VS_REST_CLASSES = 100
"""Up to this many classes, each has a reliability histogram of its own; otherwise only the predicted class has one."""
MOST_SEGMENTS = 10_000
AMOUNTS = ("bytes", "characters")
"""Of text, in which a row's loss can be counted."""
Names = str | Sequence[str]


@dataclass(frozen=True)
class Form:
    """What the rows of a state have in common, and how they were scored; states of equal form can be added."""

    classes: tuple[str, ...] = ()
    """Empty if only the log-probability of each label is known."""
    soft: bool = False
    clip: float | None = None
    """Labels with a smaller probability were scored as if they had this one. None: an impossible label costs +inf."""
    weighted: bool = False
    by: tuple[str, ...] = ()
    identified: bool = False
    entropy: bool = False
    bytes: bool = False
    characters: bool = False
    clustered: bool = False
    multilabel: bool = False
    """The rows are pairs of a row and a label."""
    worst: int = 50
    sample: int = 5_000

    @property
    def clip_loss(self) -> float:
        return math.inf if self.clip is None else 0.0 - math.log(self.clip)

    @property
    def one_vs_rest(self) -> bool:
        return 0 < len(self.classes) <= ONE_VS_REST_CLASSES


@dataclass(frozen=True)
class Request:
    """The columns that the caller named, before any table was read."""

    label: Names | None = None
    proba: Names | None = None
    logits: Names | None = None
    log_prob: str | None = None
    entropy: str | None = None
    weight: str | None = None
    id: str | None = None
    bytes: str | None = None
    characters: str | None = None
    cluster: str | None = None
    by: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """clip, tolerance, worst: for `ScoreState.from_batch`."""
    also: tuple[str, ...] = ()
    """Further columns to read."""
    labelled: bool = True
    """Whether there have to be labels."""

    def __post_init__(self) -> None:
        for option in ("label", "proba", "logits", "log_prob", "entropy", "weight", "id", *AMOUNTS, "cluster"):
            names = getattr(self, option)
            several = option in ("label", "proba", "logits") and isinstance(names, Collection) and len(names)
            if names is not None and not all(isinstance(n, str) for n in (names if several else [names])):
                problem = (
                    f"found {quoted(names)}, expected {'one or more column names' if several else 'a column name'}"
                )
                raise ArgumentError(message(CALL, option, problem, "Pass text, such as 'p', or ['p_cat', 'p_dog']"))

    @property
    def amounts(self) -> dict[str, str]:
        """The columns of bytes and characters that were named."""
        named = {"bytes": self.bytes, "characters": self.characters}
        return {name: column for name, column in named.items() if column is not None}

    def plan(self, columns: Sequence[str], dtypes: Mapping[str, Any]) -> Plan:
        """Find the columns in a table that has these columns."""
        return _Planner(self, list(columns), dtypes).plan()


def names_of(option: str, names: Any) -> tuple[str, ...]:
    """Return one name or several as a tuple of text."""
    if not isinstance(names, Iterable):
        problem = f"found a {type(names).__name__}, expected a list of names"
        raise ArgumentError(message(CALL, option, problem, "Pass a list, such as ['a', 'b']"))
    found = (names,) if isinstance(names, str) else tuple(map(str, names))
    for name in found:
        if not name.isascii() and any("\ud800" <= character <= "\udfff" for character in name):
            problem = f"found {quoted(name)}, which has half of a character (a lone surrogate)"
            raise ArgumentError(message(CALL, option, problem, "Pass text that UTF-8 can hold"))
    return found


@dataclass(frozen=True)
class Plan:
    """Columns of a table by their roles."""

    kind: str
    """proba, logits or log_prob."""
    columns: tuple[str, ...]
    """The predictions: one for each class, or one of lists, of log-probabilities, or of class 1 of two."""
    classes: tuple[str, ...] | None
    """None with a list column, whose length gives the number of classes."""
    label: tuple[str, ...]
    """One column of class names, or one for each class with soft labels; none with log_prob."""
    request: Request

    @property
    def needed(self) -> list[str]:
        """All columns to read."""
        r = self.request
        named = (r.entropy, r.weight, r.id, r.cluster, *r.amounts.values(), *r.by, *r.also)
        others = [name for name in named if name is not None]
        return list(dict.fromkeys([*self.label, *self.columns, *others]))

    def arguments(self, frame: pl.DataFrame, first_row: int = 0) -> dict[str, Any]:
        """Read a batch as the arguments of `ScoreState.from_batch`."""
        r = self.request
        return {
            **self.row_arguments(frame, first_row),
            "ids": None if r.id is None else _ids(frame[r.id], first_row),
            "by": {name: frame[name].cast(pl.String).to_numpy() for name in r.by},
            "cluster": None if r.cluster is None else frame[r.cluster],
            **{name: _numbers(frame, [column])[:, 0] for name, column in r.amounts.items()},
            "classes": self.class_names(frame),
            "first_row": first_row,
            **r.options,
        }

    def row_arguments(self, frame: pl.DataFrame, first_row: int = 0) -> dict[str, Any]:
        """Read a batch as the arguments of `row_scores`."""
        r = self.request
        return {
            self.kind: self._predictions(frame),
            "labels": self._labels(frame, first_row),
            "entropy": None if r.entropy is None else _numbers(frame, [r.entropy])[:, 0],
            "weight": None if r.weight is None else _numbers(frame, [r.weight])[:, 0],
            "tolerance": r.options.get("tolerance"),
        }

    def class_names(self, frame: pl.DataFrame) -> tuple[str, ...] | None:
        """Return the names of the classes; None with log_prob."""
        if self.kind == "log_prob":
            return None
        first = self._predictions(frame.head(1))
        number = first.shape[1] if first.ndim == 2 else 2
        classes = tuple(map(str, range(number))) if self.classes is None else self.classes
        if len(classes) != number:
            problem = f"found {len(classes)} names for {number} classes"
            raise ArgumentError(message(CALL, "classes", problem, "Name each class once"))
        return classes

    def _predictions(self, frame: pl.DataFrame) -> Array:
        return _numbers(frame, list(self.columns)) if len(self.columns) > 1 else _column(frame, self.columns[0])

    def _labels(self, frame: pl.DataFrame, first_row: int) -> Array | None:
        if not self.label:
            return None
        if len(self.label) > 1:
            return _numbers(frame, list(self.label))
        column = frame[self.label[0]]
        if isinstance(column.dtype, pl.List | pl.Array):
            return _lists(column)
        return class_indices(column, self.class_names(frame) or (), first_row)


class _Planner:
    """Finds the columns of a request; every error names the option and lists the columns."""

    def __init__(self, request: Request, columns: list[str], dtypes: Mapping[str, Any]) -> None:
        self.request, self.columns, self.dtypes = request, columns, dtypes
        self.known = {name for name in columns if isinstance(name, str)}

    def plan(self) -> Plan:
        r = self.request
        wrong = [name for name in self.columns if not isinstance(name, str)]
        if wrong or len(set(self.columns)) < len(self.columns):
            problem = f"found a column named {quoted(wrong[0])}" if wrong else "found columns of equal names"
            raise DataError(message(CALL, "data", problem, "Give each column a name of its own, as text"))
        kinds = {name: getattr(r, name) for name in ("proba", "logits", "log_prob") if getattr(r, name) is not None}
        if len(kinds) != 1:
            problem = f"found {' and '.join(kinds) or 'none of them'}"
            remedy = f"Name the columns by exactly one of the three; there are {listed(self.columns)}"
            raise ArgumentError(message(CALL, "proba, logits, log_prob", problem, remedy))
        ((kind, names),) = kinds.items()
        others = {"entropy": r.entropy, "weight": r.weight, "id": r.id, "cluster": r.cluster, **r.amounts}
        for option, name in (*others.items(), *(("by", name) for name in r.by), *(("by", name) for name in r.also)):
            if name is not None:
                self._check(option, name)
        if kind == "log_prob":
            self._check(kind, names)
            return Plan(kind, (names,), None, (), r)
        columns, classes = self._predictions(kind, names)
        taken = (*columns, r.weight, r.id, r.cluster, *r.amounts.values(), *r.by)
        labels = self._labels(classes, taken) if r.labelled else ()
        return Plan(kind, columns, classes, labels, r)

    def _predictions(self, kind: str, names: Names) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
        """Return the columns of the predictions, and the names of the classes."""
        classes = self.request.classes
        if isinstance(names, str) and any(sign in names for sign in "*?["):
            return self._in_order(kind, self._matching(kind, names), classes)
        columns = (names,) if isinstance(names, str) else tuple(names)
        for name in columns:
            self._check(kind, name)
        if len(columns) > 1:
            if classes is not None and len(classes) != len(columns):
                problem = f"found {len(classes)} names for {len(columns)} columns"
                raise ArgumentError(message(CALL, "classes", problem, "Name the classes in the order of the columns"))
            return columns, columns if classes is None else classes
        is_list = isinstance(self.dtypes.get(columns[0]), pl.List | pl.Array)
        return columns, classes if classes is not None or is_list else ("0", "1")

    def _matching(self, option: str, pattern: str) -> dict[str, str]:
        """Return the columns that match a pattern, by the part that the star stands for."""
        names = [name for name in self.columns if fnmatch.fnmatchcase(name, pattern)]
        if not names:
            problem = f"no column matches {quoted(pattern)}"
            raise ArgumentError(message(CALL, option, problem, f"The columns are {listed(self.columns)}"))
        if pattern.count("*") != 1 or any(sign in pattern for sign in "?["):
            return {name: name for name in names}
        before, after = pattern.split("*")
        return {name[len(before) : len(name) - len(after) or None]: name for name in names}

    def _in_order(
        self, option: str, columns: Mapping[str, str], classes: tuple[str, ...] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the columns in the order of the classes, and the classes."""
        if classes is None:
            return tuple(columns.values()), tuple(columns)
        if set(classes) != set(columns) or len(classes) != len(columns):
            problem = f"the columns are of {listed(columns)}, the classes {listed(classes)}"
            raise ArgumentError(message(CALL, f"{option}, classes", problem, "Name the classes as the columns do"))
        return tuple(columns[name] for name in classes), classes

    def _labels(self, classes: tuple[str, ...] | None, taken: tuple[str | None, ...]) -> tuple[str, ...]:
        """Return the column of the labels, or those of soft labels in the order of the classes."""
        label = self.request.label
        if label is None:
            without = set(taken)
            others = [name for name in self.columns if name not in without]
            problem = "which column holds the labels?"
            raise ArgumentError(message(CALL, "label", problem, f"Name it; the other columns are {listed(others)}"))
        if isinstance(label, str) and "*" in label:
            return self._in_order("label", self._matching("label", label), classes)[0]
        names = (label,) if isinstance(label, str) else tuple(label)
        for name in names:
            self._check("label", name)
        if not isinstance(label, str) and len(names) != len(classes or names):
            problem = f"found {len(names)} columns for {len(classes or ())} classes"
            raise ArgumentError(message(CALL, "label", problem, "Soft labels need one column for each class"))
        return names

    def _check(self, option: str, name: Any) -> None:
        if name not in self.known:
            problem = f"there is no column {quoted(name)}"
            raise ArgumentError(message(CALL, option, problem, f"There are {listed(self.columns)}"))


def class_indices(labels: pl.Series, classes: tuple[str, ...], first_row: int) -> Array:
    """Return labels as indices of the classes that they name; LabelError for a label that names none."""
    if len(set(classes)) < len(classes):
        raise ArgumentError(
            message(CALL, "classes", f"found a name twice in {listed(classes)}", "Name each class once")
        )
    if labels.null_count():
        row = first_row + int(labels.is_null().arg_max() or 0)
        raise DataError(message(CALL, "label", f"row {row} has no label", "Leave such rows out"))
    if labels.dtype == pl.Boolean and not {"true", "false"} & {name.lower() for name in classes}:
        labels = labels.cast(pl.Int8)
    if labels.dtype.is_float() and bool((labels == labels.floor()).all()) and bool(labels.is_finite().all()):
        labels = labels.cast(pl.Int64)
    names = classes
    if labels.dtype.is_integer() and classes == tuple(map(str, range(len(classes)))):
        indices = labels.cast(pl.Int64).to_numpy()
        unseen = (indices < 0) | (indices >= len(classes))
    else:
        if labels.dtype == pl.Boolean:
            names = tuple(name.lower() for name in classes)
        index = labels.cast(pl.String).cast(pl.Enum(names), strict=False).to_physical()
        unseen = index.is_null().to_numpy()
        indices = index.fill_null(0).cast(pl.Int64).to_numpy()
    if unseen.any():
        names_found = listed(labels.filter(pl.Series(unseen)).unique(maintain_order=True).cast(pl.String).to_list())
        problem = f"the label {names_found} (first in row {first_row + int(unseen.argmax())}) is none of the classes"
        remedy = f"The classes are {listed(classes)}; classes= names them in the order of the columns"
        raise LabelError(message(CALL, "label", problem, remedy))
    return np.asarray(indices)


def check_segments(call: str, column: str, count: int) -> None:
    """DataError if a column has more values than segments are for."""
    if count > MOST_SEGMENTS:
        remedy = "Segments are for columns with few values; a column that names each row is an id"
        raise DataError(message(call, "by", f"column {quoted(column)} has more than {MOST_SEGMENTS} values", remedy))


def id_array(ids: pl.Series) -> Array:
    """Return ids as integers or text."""
    return ids.to_numpy() if ids.dtype.is_integer() else ids.cast(pl.String).to_numpy()


def _ids(ids: pl.Series, first_row: int) -> Array:
    if ids.null_count():
        row = first_row + int(ids.is_null().arg_max() or 0)
        raise DataError(message(CALL, "id", f"row {row} has no id", "Choose a column that names every row"))
    return id_array(ids)


def _column(frame: pl.DataFrame, name: str) -> Array:
    column = frame[name]
    return _lists(column) if isinstance(column.dtype, pl.List | pl.Array) else _numbers(frame, [name])[:, 0]


def _numbers(frame: pl.DataFrame, columns: list[str]) -> Array:
    """Return columns as a matrix; missing values are NaN."""
    chosen = frame.select(columns)
    for name, dtype in chosen.schema.items():
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            problem = f"column {quoted(name)} holds {shown_name(dtype)}, not numbers"
            raise DataError(message(CALL, "data", problem, "Convert the column, or leave it out of the pattern"))
    if set(chosen.dtypes) != {pl.Float32}:
        chosen = chosen.cast(pl.Float64)
    return chosen.to_numpy(order="c").reshape(frame.height, len(columns))


def _lists(column: pl.Series) -> Array:
    """Return a column of lists of equal length as a matrix."""
    if column.null_count():
        row = int(column.is_null().arg_max() or 0)
        raise DataError(
            message(CALL, "data", f"column {quoted(column.name)} is empty in row {row} of its batch", "Fill it")
        )
    inner = column.dtype.inner  # type: ignore[attr-defined]
    if not inner.is_numeric():
        raise DataError(
            message(
                CALL, "data", f"column {quoted(column.name)} holds lists of {shown_name(inner)}", "Expected numbers"
            )
        )
    if isinstance(column.dtype, pl.List):
        lengths = column.list.len().unique().to_list()
        if len(lengths) > 1:
            problem = f"column {quoted(column.name)} holds lists of {min(lengths)} to {max(lengths)} numbers"
            raise DataError(message(CALL, "data", problem, "Each row needs a number for each class"))
        width = lengths[0] if lengths else 0
    else:
        width = column.dtype.shape[0]  # type: ignore[attr-defined]
    flat = column.explode(empty_as_null=False) if len(column) else pl.Series([], dtype=inner)
    dtype = pl.Float32 if inner == pl.Float32 else pl.Float64
    return flat.cast(dtype).to_numpy().reshape(len(column), width)
