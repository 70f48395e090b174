"""What a state keeps of some of its rows: the sums of each segment, and of each cluster in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from xent.errors import ArgumentError, DataError, message
from xent.names import quoted
from xent.scoring import loops
from xent.scoring.batch import CALL, NO_INDEX, Rows, as_array, one_per_row
from xent.scoring.form import AMOUNTS, check_segments
from xent.scoring.grouped_sums import GroupedSums, grouped, hashes
from xent.scoring.selection import texts
from xent.scoring.sums import Array, merged, zeros
from xent.scoring.tallies import add_amounts, add_rows


def segment_columns(by: Any, count: int) -> dict[str, Array]:
    """Return the columns of segments as arrays of text; ArgumentError or ShapeError if they are none."""
    if by is not None and not isinstance(by, Mapping):
        problem = f"found a {type(by).__name__}"
        raise ArgumentError(message(CALL, "by", problem, "Pass a mapping from a name to an array"))
    return {
        str(name): one_per_row(f"by[{quoted(name)}]", as_array(CALL, f"by[{quoted(name)}]", column), count)
        for name, column in (by or {}).items()
    }


def amounts_of(rows: int, first_row: int, **columns: Any) -> Array:
    """Return bytes and characters as two rows of numbers, 0 where they are not known; none at all if neither is."""
    if all(column is None for column in columns.values()):
        return np.empty((0, rows))
    amounts = np.zeros((len(AMOUNTS), rows))
    for k, (name, column) in enumerate(columns.items()):
        if column is None:
            continue
        array = as_array(CALL, name, column)
        if array.dtype.kind not in "iuf":
            problem = f"found dtype {array.dtype}, expected numbers"
            raise ArgumentError(message(CALL, name, problem, "Pass the length of each row's text"))
        amounts[k] = one_per_row(name, array, rows)
        wrong = ~(np.isfinite(amounts[k]) & (amounts[k] >= 0))
        if wrong.any():
            row = int(wrong.argmax())
            problem = f"found {amounts[k][row]:g} in row {first_row + row}, expected a number of 0 or more"
            raise DataError(message(CALL, name, problem, "Pass the length of each row's text"))
    return amounts


def cluster_hashes(cluster: Any, rows: int) -> Array:
    """Return the hash of each row's cluster; a column of Polars is not turned into an array of Python's texts."""
    if isinstance(cluster, pl.Series) and len(cluster) == rows:
        return hashes(cluster)
    return hashes(one_per_row("cluster", as_array(CALL, "cluster", cluster), rows))


def clusters_of(
    rows: Rows, amounts: Array, cluster: Array, by: Mapping[str, Array], clip_loss: float
) -> tuple[GroupedSums, dict[str, GroupedSums]]:
    """Return the sums of the clusters of the valid rows, and of the clusters in the segments of each column."""
    valid = np.flatnonzero(rows.status == loops.VALID)
    weight = rows.weight[valid] if len(rows.weight) else rows.weight
    numbers = (rows.loss[valid], weight, np.ascontiguousarray(amounts[:, valid]), clip_loss)
    segments = {name: grouped(cluster[valid], hashes(column[valid]), *numbers) for name, column in by.items()}
    return grouped(cluster[valid], None, *numbers), segments


def segment_totals(name: str, rows: Rows, amounts: Array, column: Array, clip_loss: float) -> dict[str, Array]:
    """Return the totals of each value of a segment column."""
    values_of_rows = texts(column).fill_null("(missing)")
    names = values_of_rows.unique().sort()
    check_segments(CALL, name, len(names))
    group = values_of_rows.cast(pl.Enum(names)).to_physical().cast(pl.Int64).to_numpy()
    totals = zeros(len(names), loops.FIELDS)
    add_to_totals(rows, amounts, group, clip_loss, totals)
    return dict(zip(names.to_list(), totals, strict=True))


def add_to_totals(rows: Rows, amounts: Array, group: Array | None, clip_loss: float, totals: Array) -> None:
    """Add rows to the totals of their groups, or without groups to the only ones."""
    place, flat = NO_INDEX if group is None else group, totals.reshape(-1)
    per_row = (rows.loss, rows.brier, rows.correct, rows.entropy, rows.weight, place, rows.status)
    add_rows(*per_row, clip_loss, flat)
    if len(amounts):
        add_amounts(amounts, rows.loss, rows.weight, place, rows.status, clip_loss, flat)


def merged_segments(column: str, a: Mapping[str, Array], b: Mapping[str, Array]) -> dict[str, Array]:
    """Return the totals of the segments of two parts."""
    segments = {**a, **{value: merged(a[value], totals) if value in a else totals for value, totals in b.items()}}
    check_segments("score", column, len(segments))
    return segments
