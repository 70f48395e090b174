"""Sums by cluster, and by cluster and segment, which intervals of dependent rows are made of.

Rows of one cluster (a user, a document) may depend on each other, so that an interval needs the sums of the clusters.
Clusters are remembered by 64-bit hashes of their names, in 80 bytes each: two of a million clusters share a hash with a
probability of 3e-8.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np
import polars as pl

from xent.scoring import loops
from xent.scoring.intervals import Estimate
from xent.scoring.selection import scrambled, texts
from xent.scoring.sums import Array, exactly, merged, values
from xent.scoring.tallies import GROUP_AMOUNTS, GROUP_FIELDS, GROUP_LOSS, GROUP_WEIGHT, add_groups

NO_KEYS = np.empty(0, np.uint64)


@dataclass(frozen=True)
class Groups:
    """Sums of the rows of each group."""

    key: Array = field(default_factory=lambda: NO_KEYS)
    """Ascending hashes that name the groups."""
    part: Array = field(default_factory=lambda: NO_KEYS)
    """Hash of the segment that the group is in; 0 without segments."""
    sums: Array = field(default_factory=lambda: np.empty((0, GROUP_FIELDS, 2)))

    def __add__(self, other: Groups) -> Groups:
        key = np.concatenate([self.key, other.key])
        key.sort(kind="stable")  # a merge of two ascending runs; union1d hashes all keys anew
        key = key[np.concatenate([key[:1] == key[:1], key[1:] != key[:-1]])]
        part, sums = np.empty(len(key), np.uint64), np.zeros((len(key), GROUP_FIELDS, 2))
        for side in (self, other):
            places = np.searchsorted(key, side.key)
            part[places] = side.part
            sums[places] = merged(sums[places], side.sums)
        return Groups(key, part, sums)

    def of_part(self, part: Any) -> Groups:
        """Return the groups of one segment."""
        chosen = self.part == part
        return Groups(self.key[chosen], self.part[chosen], self.sums[chosen])


@dataclass(frozen=True)
class GroupedSums:
    """The groups of some batches, as a few tables each at least twice as long as the next.

    So a table is merged with one of about its length, and n batches take n log n steps, not n**2.
    """

    tables: tuple[Groups, ...] = ()

    def __add__(self, other: GroupedSums) -> GroupedSums:
        tables = sorted((*self.tables, *other.tables), key=lambda table: len(table.key))
        done: list[Groups] = []
        for table in tables:
            done.append(table)
            while len(done) > 1 and len(done[-1].key) < 2 * len(done[-2].key):
                done[-2:] = [done[-2] + done[-1]]
        return GroupedSums(tuple(done))

    @property
    def whole(self) -> Groups:
        """All groups in one table."""
        return reduce(Groups.__add__, self.tables) if self.tables else Groups()


def hashes(names: Array | pl.Series) -> Array:
    """Return the 64-bit hash of each name; equal names of any type have equal hashes, and so have missing ones."""
    if isinstance(names, pl.Series) or names.dtype.kind in "iu":
        series = pl.Series(names).cast(pl.String)
    else:
        series = texts(names)
    return np.asarray(series.fill_null("(missing)").hash(seed=0).to_numpy())


def grouped(
    cluster: Array, segment: Array | None, loss: Array, weight: Array, amounts: Array, clip_loss: float
) -> GroupedSums:
    """Return the sums of rows by the hashes of their clusters and, if there are any, of their segments."""
    keys = cluster if segment is None else scrambled(cluster ^ scrambled(segment))
    key, first, group = np.unique(keys, return_index=True, return_inverse=True)
    sums = np.zeros((len(key), GROUP_FIELDS, 2))
    add_groups(amounts, loss, weight, group, clip_loss, sums.reshape(-1))
    part = np.zeros(len(key), np.uint64) if segment is None else segment[first]
    return GroupedSums((Groups(key, part, sums),) if len(key) else ())


def estimate(totals: Array, groups: Groups | None, amount: int | None = None) -> Estimate:
    """Weighted mean loss with Student's interval: of independent rows, or of independent groups of rows.

    *Definition*: ``sum(w * loss) / sum(w)`` or, for an `amount` (0: bytes, 1: characters) of each row,
    ``sum(w * loss) / sum(w * amount)``; intervals.py has the standard error, in which ``w * (loss - mean * amount)``
    takes the place of ``w * (loss - mean)``.
    """
    places = (loops.WEIGHT, loops.WEIGHT_SQUARED, loops.WEIGHTED_LOSS)
    if amount is not None:
        first = loops.BYTES + amount * loops.PER_AMOUNT
        places = (first, first + 1, first + 2)
    size = exactly(totals[places[0]])
    if not size:
        return Estimate.of(math.nan)
    if values(totals)[loops.IMPOSSIBLE_WEIGHT] > 0 or not np.isfinite(totals[loops.LOSS]).all():
        return Estimate.of(math.inf)
    mean = exactly(totals[loops.LOSS]) / size
    if groups is not None:
        of = values(groups.sums)
        residual = of[:, GROUP_LOSS] - float(mean) * of[:, GROUP_WEIGHT if amount is None else GROUP_AMOUNTS + amount]
        units, variance = len(residual), float(residual @ residual) / float(size) ** 2
    else:
        squares = totals[[loops.WEIGHTED_LOSS_SQUARED, *places[1:]]]
        units = int(totals[loops.ROWS, 0])
        if not np.isfinite(squares).all():
            return Estimate.of(float(mean))
        # sum(w**2 (l - mean)**2) from exact sums: in floats it cancels when the losses are nearly equal.
        loss_squared, size_squared, product = map(exactly, squares)
        spread = loss_squared - 2 * mean * product + mean * mean * size_squared
        variance = float(max(Fraction(0), spread) / size**2)
    if units < 2:
        return Estimate.of(float(mean))
    return Estimate.of(float(mean), math.sqrt(variance * units / (units - 1)), units)
