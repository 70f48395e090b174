"""Rows that a state keeps whole: the most surprising ones, a random sample, and invalid ones.

Which rows are kept depends on the rows and not on how they were divided. The sample holds those whose keys are the
smallest; a key is a hash of the row's id or, without ids, of its number, so that this is a simple random sample of the
rows, and the smallest keys of all parts are the smallest of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xent.scoring.sums import from_json, to_json

Array = NDArray[Any]


@dataclass(frozen=True)
class Kept:
    """Columns of equal length; `key` is among them."""

    columns: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.columns["key"])

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def __add__(self, other: Kept) -> Kept:
        if not len(other):
            return self
        if not len(self):
            return other
        return Kept({name: np.concatenate([column, other[name]]) for name, column in self.columns.items()})

    def take(self, rows: Array) -> Kept:
        return Kept({name: column[rows] for name, column in self.columns.items()})

    def sampled(self, size: int) -> Kept:
        """The rows with the smallest keys, in the order of their keys."""
        return self.take(smallest_keys(self["key"], size))

    def most_surprising(self, size: int) -> Kept:
        """The rows with the largest loss, the largest first."""
        return self.take(largest_losses(self["loss"], self["key"], size)) if len(self) else self

    def moved(self, rows: int) -> Kept:
        """The same rows with numbers that begin later."""
        return Kept({**self.columns, "row": self["row"] + rows})

    def to_json(self) -> dict[str, Any]:
        return {name: to_json(column) for name, column in self.columns.items()}

    @classmethod
    def from_json(cls, written: Mapping[str, Any]) -> Kept:
        return cls({name: from_json(column) for name, column in written.items()})


def smallest_keys(key: Array, size: int) -> Array:
    """The places of the smallest keys, smallest first."""
    if len(key) > size:
        candidates = np.argpartition(key, size)[:size] if size else np.empty(0, np.int64)
        return candidates[np.argsort(key[candidates], kind="stable")]
    return np.argsort(key, kind="stable")


def largest_losses(loss: Array, key: Array, size: int) -> Array:
    """The places of the largest losses, largest first; equal ones by their keys."""
    places = np.arange(len(loss))
    if len(loss) > size:
        if not size:
            return places[:0]
        threshold = np.partition(loss, len(loss) - size)[len(loss) - size]
        places = np.flatnonzero(loss >= threshold)
    order = np.lexsort((key[places], -loss[places]))
    return places[order[:size]]


def keys_of_rows(first_row: int, rows: int) -> Array:
    """Keys from row numbers."""
    return _scrambled(np.arange(first_row, first_row + rows, dtype=np.uint64))


def keys_of_ids(ids: Array) -> Array:
    """Keys from ids: integers by their value, everything else by its text."""
    if ids.dtype.kind in "iub":
        return _scrambled(ids.astype(np.int64).view(np.uint64))
    import polars as pl

    texts = pl.Series([None if i is None else str(i) for i in ids.tolist()], dtype=pl.String)
    return _scrambled(texts.hash(seed=0).to_numpy())


def _scrambled(numbers: Array) -> Array:
    """SplitMix64 (Steele, Lea and Flood 2014): a bijection of 64 bits whose results look random."""
    z = numbers + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
