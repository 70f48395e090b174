"""Labels as indices of the classes: by name, and where names differ, by the one way in which all of them fit.

A class is called as its column is: 'cat' in 'p_cat' of 'p_*'. The label may be written otherwise: as the whole name of
the column (Class_1), as the same number ('0' for '00', 1.0 for 1), as true, yes or +1 for the second of two classes, or
as an integer that counts the columns from 0 or from 1. Which of these it is follows from all labels of the data
together; if two fit and disagree, that is an error that shows both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from xent.errors import ArgumentError, DataError, LabelError, message, option
from xent.names import listed, quoted, shown_name
from xent.scoring.sums import Array

CALL = "score"
MISSING, UNKNOWN = -1, -2
"""In place of a class index."""
MOST_LABELS = 1_000_000
BY_NAME = "by name"
YES_AND_NO = (("false", "true"), ("f", "t"), ("no", "yes"), ("n", "y"), ("-1", "1"), ("0", "1"))


class UnknownLabelError(LabelError):
    """A label that is none of the classes by name."""


@dataclass(frozen=True)
class Way:
    """How labels stand for classes."""

    description: str
    classes: Mapping[str, int] = field(default_factory=dict)
    note: str | None = None

    @property
    def is_by_name(self) -> bool:
        return self.description == BY_NAME


def class_indices(
    labels: pl.Series, classes: tuple[str, ...], first_row: int, way: Way | None = None, skip: bool = False
) -> Array:
    """Return labels as indices of the classes that they name.

    LabelError for a label that names none and DataError for a missing one; with `skip` they are UNKNOWN and MISSING,
    once the way is known.
    """
    if len(set(classes)) < len(classes):
        raise ArgumentError(
            message(CALL, "classes", f"found a name twice in {listed(classes)}", "Name each class once")
        )
    if skip and labels.dtype.is_float():
        labels = labels.fill_nan(None)  # how pandas marks a missing integer
    missing = labels.is_null().to_numpy() if labels.null_count() else None
    if missing is not None and not skip:
        row = first_row + int(missing.argmax())
        remedy = f"Leave such rows out, or pass {option('invalid', 'skip')}"
        raise DataError(message(CALL, "label", f"row {row} has no label", remedy))
    if labels.dtype.is_integer() and way is None and classes == tuple(map(str, range(len(classes)))):
        whole = labels.cast(pl.Int64, strict=False)
        indices = (whole.fill_null(-1) if whole.null_count() else whole).to_numpy()
        unseen = indices.view(np.uint64) >= len(classes)  # those below 0 are as well
    else:
        labels = label_texts(labels, classes)
        names = classes if way is None else tuple(way.classes)
        index = labels.cast(pl.Enum(names), strict=False).to_physical()
        unseen = index.is_null().to_numpy()
        indices = index.fill_null(0).cast(pl.Int64).to_numpy()
        if way is not None:
            indices = np.array([*way.classes.values(), 0])[indices]
    if missing is not None:
        unseen &= ~missing
    if unseen.any():
        if way is None or not skip:
            raise _unknown(labels.filter(pl.Series(unseen)), classes, first_row + int(unseen.argmax()))
        indices = np.where(unseen, UNKNOWN, indices)
    return np.asarray(indices) if missing is None else np.where(missing, MISSING, indices)


def label_texts(labels: pl.Series, classes: Sequence[str]) -> pl.Series:
    """Return labels as text: whole floats as integers, truth values as classes called 0 and 1 have them."""
    if labels.dtype == pl.Boolean:
        named = {name.lower(): name for name in classes}
        if {"true", "false"} & set(named):
            texts = labels.cast(pl.String)
            return texts.replace({"true": named.get("true", "true"), "false": named.get("false", "false")})
        labels = labels.cast(pl.Int8)
    if labels.dtype.is_float():
        whole = labels.cast(pl.Int64, strict=False)
        return whole.cast(pl.String).zip_with((whole == labels).fill_null(False), labels.cast(pl.String))
    return labels.cast(pl.String)


def _unknown(labels: pl.Series, classes: Sequence[str], row: int) -> UnknownLabelError:
    found = listed(labels.unique(maintain_order=True).cast(pl.String).to_list())
    problem = f"the label {found} (first in row {row}) is none of the classes"
    order = "in the order of the columns"
    if tuple(classes) == ("0", "1"):
        order += " or, for one column, the other class first and then the one whose probability it is"
    remedy = (
        f"The classes are {listed(classes)}; {option('classes')} names them {order}; "
        f"{option('invalid', 'skip')} leaves rows with other labels out"
    )
    return UnknownLabelError(message(CALL, "label", problem, remedy))


def find_way(labels: Iterable[pl.Series], classes: tuple[str, ...], columns: tuple[str, ...]) -> Way:
    """Return how the labels of all rows stand for the classes; ArgumentError if two ways fit and disagree.

    If none fits for all labels, it is the one that fits for most of them, or else that by name: labels that do not fit
    are errors then.
    """
    seen: dict[str, None] = {}
    for part in labels:
        seen |= dict.fromkeys(label_texts(part, classes).drop_nulls().unique(maintain_order=True).to_list())
        if len(seen) > MOST_LABELS:
            break
    by_name = Way(BY_NAME, {name: k for k, name in enumerate(classes)})
    ways = [by_name, *_ways(classes, columns, list(seen))]
    fits = [sum(text in way.classes for text in seen) for way in ways]
    if max(fits) == fits[0]:
        return by_name
    best = [way for way, fit in zip(ways, fits, strict=True) if fit == max(fits)]
    for other in best[1:]:
        differing = [text for text in seen if other.classes.get(text) != best[0].classes.get(text)]
        if differing:
            raise _ambiguous(best[0], other, differing[0], columns if len(columns) == len(classes) else classes)
    return best[0]


def _ambiguous(one: Way, other: Way, text: str, columns: Sequence[str]) -> ArgumentError:
    first, second = (quoted(columns[way.classes[text]]) if text in way.classes else "no class" for way in (one, other))
    problem = f"labels fit in two ways: {one.description}, {quoted(text)} is {first}; {other.description}, {second}"
    remedy = f"Say which it is: {option('classes')} names the classes, as the labels do, in the order of the columns"
    return ArgumentError(message(CALL, "label", problem, remedy))


def _ways(classes: tuple[str, ...], columns: tuple[str, ...], seen: list[str]) -> list[Way]:
    """Return the ways other than by name that these classes allow."""
    ways = []
    if len(columns) == len(classes) and columns != classes:
        ways.append(Way("by the whole names of the columns", {name: k for k, name in enumerate(columns)}))
    elif columns == classes and len(classes) > 1:
        start, end = _common_start(classes), _common_start([name[::-1] for name in classes])
        parts = [name[start : len(name) - end] for name in classes]
        ways.append(_matched("by what differs in the names of the columns", parts, seen))
    ways.append(_matched("by what the names are but for blanks and capitals", classes, seen, str.casefold, str.strip))
    numbers = [_number(name) for name in classes]
    if None not in numbers and len(set(numbers)) == len(numbers):
        found = {text: numbers.index(value) for text in seen if (value := _number(text)) in numbers}
        ways.append(Way("as numbers", found, "Labels were matched with the classes as numbers."))
    elif all(number is None for number in numbers):
        for first in (0, 1):
            places = {text: int(text) - first for text in seen if text.isascii() and text.isdigit()}
            places = {text: place for text, place in places.items() if 0 <= place < len(classes)}
            note = f"Labels are integers, and were taken to count the columns from {first}: {first} is "
            ways.append(Way(f"counting from {first}", places, note + f"{quoted(classes[0])}."))
    if len(classes) == 2:
        ways.append(_yes_or_no(classes, seen))
    return [way for way in ways if way.classes]


def _matched(description: str, names: Sequence[str], seen: Iterable[str], *changes: object) -> Way:
    """Return the way by which labels equal these names after changes of both."""

    def changed(text: str) -> str:
        for change in changes:
            text = change(text)  # type: ignore[operator]
        return text

    known = {changed(name): k for k, name in enumerate(names)}
    found = {text: known[changed(text)] for text in seen if changed(text) in known}
    note = f"Labels were matched with the classes {description}." if changes else None
    return Way(description, found if len(known) == len(names) else {}, note)


def _yes_or_no(classes: tuple[str, ...], seen: Iterable[str]) -> Way:
    """Return the way by which true, yes and +1 are the second class, if the classes are called 0 and 1 or the like."""
    ends = {**{no: 0 for no, _ in YES_AND_NO}, **{yes: 1 for _, yes in YES_AND_NO}, "+1": 1}
    ordered = {classes[k].casefold(): k for k in (0, 1)}
    if any(name not in ends for name in ordered):
        return Way("")
    place = {ends[name]: k for name, k in ordered.items()}
    found: dict[str, int] = {}
    for text in seen:
        name = text.strip().casefold()
        number = _number(name)
        name = f"{number:g}" if number is not None else name
        if name in ends and len(place) == 2:
            found[text] = place[ends[name]]
    read = ", ".join(f"{quoted(text)} is class {shown_name(classes[k])}" for text, k in sorted(found.items()))
    return Way("as yes and no", found, f"Of two classes, the label {read}.")


def _common_start(names: Sequence[str]) -> int:
    """Return how many characters all names begin with."""
    first, last = min(names), max(names)
    return next((k for k, character in enumerate(first) if character != last[k]), len(first))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
