"""What a table is taken to mean: which columns are the label, the predictions, the weight, the id and the segments.

A `Request` holds the columns that the caller named, a `Plan` the columns found for it in one table, and `Form` what
the resulting scores have in common. Classes are matched by name. A wide table names them in its columns: the columns
'p_cat' and 'p_dog' of the pattern 'p_*' are the classes 'cat' and 'dog'. `classes=` names them where columns do not (a
list column, explicitly listed columns) and sets the order in which they are reported; labels find columns by name.
"""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from xent.arrays import sum_tolerance
from xent.errors import ArgumentError, DataError, message
from xent.names import listed, quoted
from xent.scoring.columns import id_array, is_lists, list_matrix, number_matrix, one_column, rounding_of
from xent.scoring.labels import MISSING, UNKNOWN, Way, class_indices
from xent.scoring.loops import FEW_CLASSES, NO_ID, NO_LABEL, UNKNOWN_LABEL, VALID
from xent.scoring.sums import Array

CALL = "score"
ONE_ROW_PER_ID = "An id names one row; name no id, or choose a column without repetitions"
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
    renormalised: bool = False
    """Probabilities were divided by their sum."""

    @property
    def clip_loss(self) -> float:
        return math.inf if self.clip is None else 0.0 - math.log(self.clip)

    @property
    def one_vs_rest(self) -> bool:
        return 0 < len(self.classes) <= FEW_CLASSES


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
    """clip, tolerance, renormalise, worst: for `ScoreState.from_batch`."""
    also: tuple[str, ...] = ()
    """Further columns to read."""
    labelled: bool = True
    """Whether there have to be labels."""
    exclude: tuple[str, ...] = ()
    """Columns that no pattern matches."""
    skip: bool = False
    """Whether rows without a valid label or id are left out instead of being errors."""
    way: Way | None = None
    """How labels stand for classes, once it had to be found out."""

    def __post_init__(self) -> None:
        for role in ("label", "proba", "logits", "log_prob", "entropy", "weight", "id", *AMOUNTS, "cluster"):
            names = getattr(self, role)
            several = role in ("label", "proba", "logits") and isinstance(names, Collection) and len(names)
            if names is not None and not all(isinstance(n, str) for n in (names if several else [names])):
                problem = (
                    f"found {quoted(names)}, expected {'one or more column names' if several else 'a column name'}"
                )
                raise ArgumentError(message(CALL, role, problem, "Pass text, such as 'p', or ['p_cat', 'p_dog']"))

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

    way: Way | None = None
    """How labels stand for classes, once it had to be found out."""

    @property
    def needed(self) -> list[str]:
        """All columns to read."""
        r = self.request
        named = (r.entropy, r.weight, r.id, r.cluster, *r.amounts.values(), *r.by, *r.also)
        others = [name for name in named if name is not None]
        return list(dict.fromkeys([*self.label, *self.columns, *others]))

    @property
    def numbers(self) -> list[str]:
        """Those of them that hold numbers, whatever they look like in a text."""
        soft = self.label if len(self.label) > 1 else ()
        named = (self.request.entropy, self.request.weight, *self.request.amounts.values())
        others = [name for name in named if name is not None]
        return list(dict.fromkeys([*self.columns, *soft, *others]))

    def arguments(self, frame: pl.DataFrame, first_row: int = 0) -> dict[str, Any]:
        """Read a batch as the arguments of `ScoreState.from_batch`."""
        r = self.request
        return {
            **self.row_arguments(frame, first_row),
            "ids": None if r.id is None else _ids(frame[r.id], first_row, r.skip),
            "by": {name: frame[name].cast(pl.String).to_numpy() for name in r.by},
            "cluster": None if r.cluster is None else frame[r.cluster],
            **{name: number_matrix(frame, [column])[:, 0] for name, column in r.amounts.items()},
            "classes": self.class_names(frame),
            "first_row": first_row,
            **{name: value for name, value in r.options.items() if name not in ("tolerance", "renormalise")},
        }

    def row_arguments(self, frame: pl.DataFrame, first_row: int = 0) -> dict[str, Any]:
        """Read a batch as the arguments of `row_scores`."""
        r = self.request
        predictions = self._predictions(frame)
        labels = self._labels(frame, first_row)
        reasons = np.zeros(frame.height, np.int8)
        if r.skip and labels is not None and labels.ndim == 1:
            labels, reasons = without_unknown(labels)
        if r.skip and r.id is not None and frame[r.id].null_count():
            reasons = np.where(frame[r.id].is_null().to_numpy(), NO_ID, reasons).astype(np.int8)
        return {
            self.kind: predictions,
            "labels": labels,
            "entropy": None if r.entropy is None else number_matrix(frame, [r.entropy])[:, 0],
            "weight": None if r.weight is None else number_matrix(frame, [r.weight])[:, 0],
            "tolerance": self._tolerance(frame),
            "renormalise": r.options.get("renormalise", False),
            "reasons": reasons if (reasons != VALID).any() else None,
        }

    def class_names(self, frame: pl.DataFrame) -> tuple[str, ...] | None:
        """Return the names of the classes; None with log_prob."""
        if self.kind == "log_prob":
            return None
        number = len(self.columns)
        if number == 1:
            first = self._predictions(frame.head(1))
            number = first.shape[1] if first.ndim == 2 else 2
        classes = tuple(map(str, range(number))) if self.classes is None else self.classes
        if len(classes) != number:
            problem = f"found {len(classes)} names for {number} classes"
            raise ArgumentError(message(CALL, "classes", problem, "Name each class once"))
        return classes

    def _predictions(self, frame: pl.DataFrame) -> Array:
        if len(self.columns) > 1:
            return number_matrix(frame, list(self.columns))
        found = one_column(frame, self.columns[0])
        one_of_two = found.ndim == 2 and found.shape[1] == 1 and len(self.classes or "01") == 2
        return found[:, 0] if one_of_two else found

    def _tolerance(self, frame: pl.DataFrame) -> float | None:
        """Return how far from 1 sums may be, where the matrix does not show how the columns were rounded."""
        given: float | None = self.request.options.get("tolerance")
        schema = frame.schema  # made anew by each call, of all columns
        eps = max((rounding_of(schema[name]) for name in (*self.columns, *self.label[1:])), default=0.0)
        return sum_tolerance(eps) if given is None and eps > 2.0**-23 else given

    def _labels(self, frame: pl.DataFrame, first_row: int) -> Array | None:
        if not self.label:
            return None
        if len(self.label) > 1:
            return number_matrix(frame, list(self.label))
        column = frame[self.label[0]]
        if is_lists(column.dtype):
            return list_matrix(column)
        return class_indices(column, self.class_names(frame) or (), first_row, self.request.way, self.request.skip)


def without_unknown(labels: Array) -> tuple[Array, Array]:
    """Return class indices with a 0 in place of missing and unknown labels, and the reasons to leave those rows out."""
    reasons = np.where(labels == MISSING, NO_LABEL, np.where(labels == UNKNOWN, UNKNOWN_LABEL, VALID))
    return np.maximum(labels, 0), reasons.astype(np.int8)


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
        for role, name in (*others.items(), *(("by", name) for name in r.by), *(("by", name) for name in r.also)):
            if name is not None:
                self._check(role, name)
        if kind == "log_prob":
            if r.label is not None:
                problem = "found it beside log-probabilities, which are those of the labels already"
                raise ArgumentError(message(CALL, "label", problem, "Omit it, or name probabilities of all classes"))
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
        dtype = self.dtypes.get(columns[0])
        if isinstance(dtype, pl.Struct) and not is_lists(dtype):
            fields = {f.name: f"{columns[0]}.{f.name}" for f in dtype.fields}
            return self._in_order(kind, fields, classes)
        return columns, classes if classes is not None or is_lists(dtype) else ("0", "1")

    def _matching(self, role: str, pattern: str) -> dict[str, str]:
        """Return the columns that match a pattern, by the part that the star stands for.

        Columns that have another role, such as the label, or are excluded, match no pattern.
        """
        r = self.request
        named = {name for name in (r.label, r.weight, r.id, r.entropy, *r.by, *r.exclude) if isinstance(name, str)}
        names = [name for name in self.columns if fnmatch.fnmatchcase(name, pattern) and name not in named]
        if not names:
            problem = f"no column matches {quoted(pattern)}"
            raise ArgumentError(message(CALL, role, problem, f"The columns are {listed(self.columns)}"))
        if pattern.count("*") != 1 or any(sign in pattern for sign in "?["):
            return {name: name for name in names}
        before, after = pattern.split("*")
        return {name[len(before) : len(name) - len(after) or None]: name for name in names}

    def _in_order(
        self, role: str, columns: Mapping[str, str], classes: tuple[str, ...] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the columns in the order of the classes, and the classes."""
        if classes is None:
            return tuple(columns.values()), tuple(columns)
        by_column = {column: column for column in columns.values()}
        numbered = list(columns) in ([str(k + first) for k in range(len(columns))] for first in (0, 1))
        if numbered and len(classes) == len(columns) and not any(name.isdigit() for name in classes):
            return tuple(columns.values()), classes  # names for p_0, p_1, ... in their order
        for named in (columns, by_column):
            if set(classes) == set(named) and len(classes) == len(named):
                return tuple(named[name] for name in classes), classes
        problem = f"the columns are of {listed(columns)}, the classes {listed(classes)}"
        raise ArgumentError(message(CALL, f"{role}, classes", problem, "Name the classes as the columns do"))

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
            if isinstance(self.dtypes.get(name), pl.Struct):
                problem = f"column {quoted(name)} holds structures"
                remedy = "Name a field (a dot reaches into them); of pandas, to_json(orient='records') writes rows"
                raise DataError(message(CALL, "label", problem, remedy))
        if not isinstance(label, str) and len(names) != len(classes or names):
            problem = f"found {len(names)} columns for {len(classes or ())} classes"
            raise ArgumentError(message(CALL, "label", problem, "Soft labels need one column for each class"))
        return names

    def _check(self, role: str, name: Any) -> None:
        if name not in self.known:
            near = difflib.get_close_matches(str(name), self.known, 1) if len(self.known) < 1000 else []
            meant = f"Did you mean {quoted(near[0])}? " if near else ""
            problem = f"there is no column {quoted(name)}"
            raise ArgumentError(message(CALL, role, problem, f"{meant}There are {listed(self.columns)}"))


def check_segments(call: str, column: str, count: int) -> None:
    """DataError if a column has more values than segments are for."""
    if count > MOST_SEGMENTS:
        remedy = "Segments are for columns with few values; a column that names each row is an id"
        raise DataError(message(call, "by", f"column {quoted(column)} has more than {MOST_SEGMENTS} values", remedy))


def _ids(ids: pl.Series, first_row: int, skip: bool) -> Array:
    if ids.null_count() and not skip:
        row = first_row + int(ids.is_null().arg_max() or 0)
        raise DataError(message(CALL, "id", f"row {row} has no id", "Choose a column that names every row"))
    return id_array(ids.fill_null(0 if ids.dtype.is_integer() else "") if ids.null_count() else ids)
