"""The rows that a state keeps whole: the most surprising ones, a random sample, and the first invalid ones.

The selection depends on the rows alone, not on how they were divided. The sample holds the rows with the smallest keys;
a key is a hash of the row's id or, without ids, of its number. That makes it a simple random sample, and the smallest
keys of all parts are the smallest keys of the whole. The key of an invalid row is its number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from xent.scoring.batch import Rows
from xent.scoring.loops import NO_WEIGHT, REASONS, VALID
from xent.scoring.sums import Array, to_json

LIKELIEST = 5
"""Classes whose probabilities are kept with a surprising row."""
MOST_INVALID = 50
SELECTIONS = ("surprising", "sample", "invalid")
WEIGHT_OF_ZERO = "a weight of 0"


@dataclass(frozen=True)
class SelectedRows:
    """A table of rows: columns of equal length, `key` among them."""

    columns: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.columns["key"])

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def __add__(self, other: SelectedRows) -> SelectedRows:
        if not len(other):
            return self
        if not len(self):
            return other
        return SelectedRows({name: np.concatenate([column, other[name]]) for name, column in self.columns.items()})

    def take(self, rows: Array) -> SelectedRows:
        return SelectedRows({name: column[rows] for name, column in self.columns.items()})

    def sampled(self, size: int) -> SelectedRows:
        """Return the rows with the smallest keys, in the order of their keys."""
        return self.take(smallest_keys(self["key"], size))

    def most_surprising(self, size: int) -> SelectedRows:
        """Return the rows with the largest losses, in descending order."""
        return self.take(largest_losses(self["loss"], self["key"], size)) if len(self) else self

    def moved(self, rows: int) -> SelectedRows:
        """Return the same rows with `rows` added to their numbers."""
        return SelectedRows({**self.columns, "row": self["row"] + rows}) if len(self) else self

    def to_json(self) -> dict[str, Any]:
        return {name: to_json(column) for name, column in self.columns.items()}


NO_PLACES = np.empty(0, np.int64)
NO_ROWS = SelectedRows({"key": np.empty(0, np.uint64)})


@dataclass(frozen=True)
class Kept:
    """Which rows can still be among those that a state keeps whole."""

    key: int = 2**64 - 1
    """The largest key of a sampled row."""
    loss: float = -math.inf
    """The smallest loss of a surprising row."""

    @classmethod
    def of(cls, surprising: SelectedRows, worst: int, sample: SelectedRows, size: int) -> Kept:
        """Return which rows can still be among these, of which a state keeps at the most so many."""
        return cls(
            int(sample["key"].max()) if 0 < size == len(sample) else ANY.key,
            float(surprising["loss"].min()) if 0 < worst == len(surprising) else ANY.loss,
        )


ANY = Kept()


def select(
    rows: Rows,
    ids: Array | None,
    first_row: int,
    worst: int,
    sample: int,
    cluster: Array | None = None,
    kept: Kept = ANY,
) -> dict[str, SelectedRows]:
    """Select the surprising, sampled and invalid rows of a batch whose first row has the number `first_row`.

    `cluster` has the hash of each row's cluster, which is kept with the sample. `kept` is of the state that these rows
    are added to.
    """
    keys = keys_of_rows(first_row, len(rows.loss)) if ids is None else keys_of_ids(ids)
    valid = rows.status == VALID
    wrong = NO_PLACES if valid.all() else np.flatnonzero(rows.status > VALID)
    surprising = np.flatnonzero(valid & (rows.loss >= kept.loss))
    surprising = surprising[largest_losses(rows.loss[surprising], keys[surprising], worst)]
    sampled = np.flatnonzero(valid & (keys <= kept.key))
    sampled = sampled[smallest_keys(keys[sampled], sample)]
    invalid = wrong[:MOST_INVALID]
    with np.errstate(invalid="ignore", over="ignore"):  # such rows may hold infinities of both signs
        total = rows.p[invalid].sum(axis=1, dtype=np.float64) if rows.p.shape[1] else np.full(len(invalid), np.nan)

    def named(places: Array) -> dict[str, Array]:
        names = np.full(len(places), None, object)
        if ids is not None:
            names[:] = [str(i) for i in ids[places].tolist()]
        return {"key": keys[places], "row": places + first_row, "id": names}

    clusters = {} if cluster is None else {"cluster": cluster[sampled]}
    first_rows = {"key": (invalid + first_row).astype(np.uint64)}  # the first rows are kept, in place of a sample
    return {
        "surprising": SelectedRows({**named(surprising), **_with_likeliest_classes(rows, surprising)}),
        "sample": SelectedRows({**named(sampled), **_with_all_classes(rows, sampled), **clusters}),
        "invalid": SelectedRows({**named(invalid), **first_rows, "reason": rows.status[invalid], "total": total}),
    }


def _scores(rows: Rows, places: Array) -> dict[str, Array]:
    weight = rows.weight[places] if len(rows.weight) else np.ones(len(places))
    label = rows.label[places] if len(rows.label) else np.full(len(places), -1)
    return {"loss": rows.loss[places], "weight": weight, "label": label}


def _with_likeliest_classes(rows: Rows, places: Array) -> dict[str, Array]:
    columns = _scores(rows, places)
    if rows.p.shape[1]:
        p = rows.p[places].astype(np.float64)
        few = min(LIKELIEST, p.shape[1])
        likeliest = np.tile(np.arange(few), (len(p), 1))
        if few < p.shape[1]:
            likeliest = np.argpartition(-p, few - 1, axis=1)[:, :few]
        order = np.argsort(-np.take_along_axis(p, likeliest, axis=1), axis=1, kind="stable")
        likeliest = np.take_along_axis(likeliest, order, axis=1)
        probabilities = np.take_along_axis(p, likeliest, axis=1)
        columns |= {"predicted": rows.predicted[places], "likeliest": likeliest, "probabilities": probabilities}
    return columns


def _with_all_classes(rows: Rows, places: Array) -> dict[str, Array]:
    columns = _scores(rows, places)
    if rows.p.shape[1]:
        columns |= {"p": rows.p[places].astype(np.float64), "brier": rows.brier[places]}
        if rows.target.shape[1]:
            columns["target"] = rows.target[places]
    return columns


def counts_of_left_out(rows: Rows) -> dict[str, int]:
    """Return how many rows are left out, by the reason."""
    if (rows.status == VALID).all():
        return {}
    counts = np.bincount(rows.status.astype(np.int64) - NO_WEIGHT, minlength=len(REASONS) + 1).tolist()
    reasons = {WEIGHT_OF_ZERO: counts[0], **dict(zip(REASONS[1:], counts[2:], strict=True))}
    return {reason: count for reason, count in reasons.items() if count}


def check_columns(name: str, rows: SelectedRows, classes: int, soft: bool, clustered: bool) -> None:
    """Raise ValueError unless rows that were read from JSON have the columns that `select` makes."""
    number, index, few = ("f", ()), ("i", ()), min(LIKELIEST, classes)
    expected: dict[str, Any] = {"key": ("u", ()), "row": index, "id": ("O", ())}
    if name == "invalid":
        expected |= {"reason": index, "total": number}
    else:
        expected |= {"loss": number, "weight": number, "label": index}
    if name == "surprising" and classes:
        expected |= {"predicted": index, "likeliest": ("i", (few,)), "probabilities": ("f", (few,))}
    if name == "sample" and classes:
        expected |= {"p": ("f", (classes,)), "brier": number}
    if name == "sample" and soft:
        expected["target"] = ("f", (classes,))
    if name == "sample" and clustered:
        expected["cluster"] = ("u", ())
    columns = rows.columns
    if any(values.ndim == 0 for values in columns.values()) or "key" not in columns:
        raise ValueError(f"other columns of {name!r} than expected")
    if {len(column) for column in columns.values()} != {len(rows)}:
        raise ValueError(f"columns of {name!r} of different lengths")
    if not len(rows):
        return
    if {column: (values.dtype.kind, values.shape[1:]) for column, values in columns.items()} != expected:
        raise ValueError(f"other columns of {name!r} than expected")
    ranges = {"label": (-1, classes), "predicted": (0, classes), "likeliest": (0, classes), "reason": (0, len(REASONS))}
    for column, (low, end) in ranges.items():
        if column in columns and not (low <= columns[column].min() and columns[column].max() < end):
            raise ValueError(f"column {column!r} of {name!r} out of range")


def smallest_keys(key: Array, size: int) -> Array:
    """Return the places of the smallest keys, in ascending order of the keys.

    Keys are spread evenly over the 64-bit numbers, so that nearly always all that are wanted are below a bound that
    follows from how many there are; a search among those few takes a tenth of the time.
    """
    if 0 < size < len(key):
        bound = (size + 5 * math.sqrt(size)) / len(key)
        few = np.flatnonzero(key <= np.uint64(bound * 2.0**64)) if bound < 1 else NO_PLACES
        if len(few) >= size:
            return few[np.argsort(key[few], kind="stable")[:size]]
    return np.argsort(key, kind="stable")[:size]


def largest_losses(loss: Array, key: Array, size: int) -> Array:
    """Return the places of the largest losses, in descending order; equal losses by their keys."""
    places = np.arange(len(loss))
    if len(loss) > size:
        if not size:
            return places[:0]
        threshold = np.partition(loss, len(loss) - size)[len(loss) - size]
        places = np.flatnonzero(loss >= threshold)
    order = np.lexsort((key[places], -loss[places]))
    return places[order[:size]]


def keys_of_rows(first_row: int, rows: int) -> Array:
    """Return keys made from row numbers."""
    return scrambled(np.arange(first_row, first_row + rows, dtype=np.uint64))


def keys_of_ids(ids: Array) -> Array:
    """Return keys made from ids: integers by their value, everything else by its text."""
    if ids.dtype.kind in "iub":
        return scrambled(ids.astype(np.int64).view(np.uint64))
    return scrambled(texts(ids).hash(seed=0).to_numpy())


def texts(values: Array) -> pl.Series:
    """Values as text; None stays missing."""
    return pl.Series([None if value is None else str(value) for value in values.tolist()], dtype=pl.String)


def scrambled(numbers: Array) -> Array:
    """SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64 bits whose results look random."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
